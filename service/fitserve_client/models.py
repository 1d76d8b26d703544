"""What a server has: models, their versions, and one version's signature and task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fitserve.control.v1 import control_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_client.errors import InvalidArgumentError
from fitserve_contract.manifest import Manifest, ManifestError, TensorSpec
from fitserve_contract.tasks import Task

READY: Final = "READY"
FAILED: Final = "FAILED"
_STATE_PREFIX: Final = "STATE_"


@dataclass(frozen=True, slots=True)
class Selector:
    """Which version of which model a call is for.

    Args:
        model: Model name.
        version: Version number; None where the server or the label chooses.
        label: A label of the model; None where the version or the server chooses.

    Raises:
        InvalidArgumentError: both version and label are given.
    """

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise InvalidArgumentError(
                f"model '{self.model}': expected a version or a label, got both {self.version} and '{self.label}'"
            )

    @staticmethod
    def of(model: str, version: int | str) -> Selector:
        """Names a version by its number, or by a label."""
        return Selector(model, label=version) if isinstance(version, str) else Selector(model, version)

    def to_proto(self) -> tensor_pb2.ModelSpec:
        """Gives the message that says the same."""
        return tensor_pb2.ModelSpec(name=self.model, version=self.version, label=self.label)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version as the server sees it; fields as in `fitserve.control.v1.ModelVersion`."""

    version: int
    state: str
    reason: str
    is_verified: bool
    execution_provider: str
    labels: tuple[str, ...]
    task: str
    max_batch_size: int
    load_ms: float
    replay_ms: float = 0.0
    joining: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One model; its versions ascend."""

    name: str
    versions: tuple[ModelVersion, ...]

    @property
    def is_ready(self) -> bool:
        """At least one version answers requests."""
        return any(version.state == READY for version in self.versions)


@dataclass(frozen=True, slots=True)
class VersionDetails:
    """One version with its signature.

    Args:
        model: Model name.
        version: The version.
        inputs: In the model's order; empty unless READY.
        outputs: In the model's order; empty unless READY.
        task: What its outputs mean; None where it declares none.
        manifest_json: The version's manifest as published; "" where it has none.
        effective_config_toml: What was inferred and overridden, as TOML.
    """

    model: str
    version: ModelVersion
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: Task | None
    manifest_json: str = ""
    effective_config_toml: str = ""

    def output(self, name: str) -> TensorSpec | None:
        """Finds an output by name."""
        return next((spec for spec in self.outputs if spec.name == name), None)


def model_of(message: control_pb2.Model) -> Model:
    """Reads a model."""
    return Model(message.name, tuple(map(version_of, message.versions)))


def version_of(message: control_pb2.ModelVersion) -> ModelVersion:
    """Reads a version."""
    return ModelVersion(
        version=message.version,
        state=_state_name(message.state),
        reason=message.reason,
        is_verified=message.is_verified,
        execution_provider=message.execution_provider,
        labels=tuple(message.labels),
        task=message.task,
        max_batch_size=message.max_batch_size,
        load_ms=message.load_ms,
        replay_ms=message.replay_ms,
        joining=message.joining,
    )


def details_of(message: control_pb2.GetModelVersionResponse) -> VersionDetails:
    """Reads a version with its signature; a manifest that this client cannot read leaves the task open."""
    return VersionDetails(
        model=message.model_name,
        version=version_of(message.version),
        inputs=tuple(map(_spec_of, message.inputs)),
        outputs=tuple(map(_spec_of, message.outputs)),
        task=_task_of(message.manifest_json),
        manifest_json=message.manifest_json,
        effective_config_toml=message.effective_config_toml,
    )


def _state_name(number: int) -> str:
    """A state that a newer server knows and this client does not is given by its number."""
    state = control_pb2.State.DESCRIPTOR.values_by_number.get(number)
    return state.name.removeprefix(_STATE_PREFIX) if state else str(number)


def _spec_of(message: control_pb2.TensorSpec) -> TensorSpec:
    names = [*message.axis_names, *[""] * (len(message.shape) - len(message.axis_names))]
    shape = tuple(size if size >= 0 else name or None for size, name in zip(message.shape, names, strict=False))
    return TensorSpec(message.name, message.datatype, None if message.has_dynamic_rank else shape, message.is_optional)


def _task_of(manifest_json: str) -> Task | None:
    if not manifest_json:
        return None
    try:
        return Manifest.from_bytes(manifest_json.encode()).task
    except ManifestError:
        return None
