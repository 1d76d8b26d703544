"""fitserve.control.v1.ModelControlService: what there is, and explicit loads and unloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fitserve.control.v1 import control_pb2 as pb
from fitserve_contract.manifest import TensorSpec
from fitserve_service.calls import Loop, UnaryCall, UnaryMethod
from fitserve_service.codec_oip import axis_sizes
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.intake import Target
from fitserve_service.known_model import ModelSnapshot, VersionSnapshot
from fitserve_service.messages import parse
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers.inference import target_of
from fitserve_service.status import answering

SERVICE = "fitserve.control.v1.ModelControlService"


class ModelLoader(Protocol):
    """Loads and unloads models; `on_done` may be called on any thread."""

    def load(self, model: str, on_done: Callable[[ServiceError | None], None]) -> None:
        """Makes a model aspired and its failed versions tried again."""
        ...

    def unload(self, model: str, on_done: Callable[[ServiceError | None], None]) -> None:
        """Unloads a model until it is loaded again."""
        ...


class ControlServicer:
    """Answers the control service. Lives on the loop thread."""

    def __init__(self, registry: Registry, loader: ModelLoader, loop: Loop) -> None:
        self._registry = registry
        self._loader = loader
        self._loop = loop

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        return {
            f"/{SERVICE}/ListModels": self.list_models,
            f"/{SERVICE}/GetModel": self.get_model,
            f"/{SERVICE}/GetModelVersion": self.get_model_version,
            f"/{SERVICE}/GetModelVersionFile": self.get_model_version_file,
            f"/{SERVICE}/LoadModel": self.load_model,
            f"/{SERVICE}/UnloadModel": self.unload_model,
        }

    def list_models(self, call: UnaryCall, message: bytes) -> None:
        """Lists every model."""
        parse(pb.ListModelsRequest, message)
        models = [_model(snapshot) for snapshot in self._registry.snapshot()]
        call.reply(pb.ListModelsResponse(models=models).SerializeToString())

    def get_model(self, call: UnaryCall, message: bytes) -> None:
        """Describes one model."""
        request = parse(pb.GetModelRequest, message)
        model = _model(self._registry.model(request.name))
        call.reply(pb.GetModelResponse(model=model).SerializeToString())

    def get_model_version(self, call: UnaryCall, message: bytes) -> None:
        """Describes one version, READY or not."""
        request = parse(pb.GetModelVersionRequest, message)
        target = target_of(request.model)
        snapshot = self._registry.model(target.model)
        version = self._version(snapshot, target)
        response = pb.GetModelVersionResponse(model_name=snapshot.name, version=_version(version))
        if version.served is not None:
            _describe(response, version.served)
        call.reply(response.SerializeToString())

    def get_model_version_file(self, call: UnaryCall, message: bytes) -> None:
        """Gives a file that travels with a version for its callers."""
        request = parse(pb.GetModelVersionFileRequest, message)
        target = target_of(request.model)
        lease = self._registry.lease(target.model, version=target.version, label=target.label)
        try:
            served = lease.served
            content = served.files.get(request.file_name)
        finally:
            lease.release()
        if content is None:
            known = ", ".join(sorted(served.files)) or "none"
            text = f"model '{served.model}' version {served.version}: expected a file of {known}"
            raise ServiceError(Reason.FILE_NOT_FOUND, f"{text}, got '{request.file_name[:128]}'")
        answer = pb.GetModelVersionFileResponse(model_name=served.model, version=served.version, content=content)
        call.reply(answer.SerializeToString())

    def load_model(self, call: UnaryCall, message: bytes) -> None:
        """Loads a model; answers once that is settled."""
        name = parse(pb.LoadModelRequest, message).name

        def answer() -> bytes:
            return pb.LoadModelResponse(model=_model(self._registry.model(name))).SerializeToString()

        self._loader.load(name, answer_later(call, self._loop, answer))

    def unload_model(self, call: UnaryCall, message: bytes) -> None:
        """Unloads a model; answers once its last version is gone."""
        name = parse(pb.UnloadModelRequest, message).name
        on_done = answer_later(call, self._loop, pb.UnloadModelResponse().SerializeToString)
        self._loader.unload(name, on_done)

    def _version(self, model: ModelSnapshot, target: Target) -> VersionSnapshot:
        number = target.version
        if number is None and target.label is not None:
            number = model.labels.get(target.label)
        found = next((version for version in model.versions if version.version == number), None)
        if found is not None:
            return found
        # Neither number nor label, or one that is not there: what a request for it would meet.
        lease = self._registry.lease(target.model, version=target.version, label=target.label)
        try:
            # Looked up anew: what was leased may have come after the snapshot, and stays as long as the lease.
            versions = self._registry.model(target.model).versions
            return next(version for version in versions if version.version == lease.served.version)
        finally:
            lease.release()


def answer_later(call: UnaryCall, loop: Loop, answer: Callable[[], bytes]) -> Callable[[ServiceError | None], None]:
    """Makes what a loader calls when it is done, on its thread: the call is answered on the loop."""

    def finish(error: ServiceError | None) -> None:
        with answering(call):
            if error is not None:
                raise error
            call.reply(answer())

    return lambda error: loop.post(lambda: finish(error))


def _model(snapshot: ModelSnapshot) -> pb.Model:
    return pb.Model(name=snapshot.name, versions=[_version(version) for version in snapshot.versions])


def _version(snapshot: VersionSnapshot) -> pb.ModelVersion:
    message = pb.ModelVersion(
        version=snapshot.version,
        state=f"STATE_{snapshot.state}",
        reason=snapshot.reason,
        labels=snapshot.labels,
        load_ms=snapshot.load_ms,
    )
    if snapshot.served is not None:
        message.is_verified = snapshot.served.is_verified
        message.replay_ms = snapshot.served.replay.replay_ms if snapshot.served.replay else 0.0
        message.execution_provider = snapshot.served.provider
        message.task = snapshot.served.task.kind.value if snapshot.served.task else ""
        message.max_batch_size = snapshot.served.config.max_batch_size
        message.joining = snapshot.served.joining
    return message


def _describe(response: pb.GetModelVersionResponse, served: ServedVersion) -> None:
    response.inputs.extend(_tensor_spec(spec) for spec in served.signature.inputs)
    response.outputs.extend(_tensor_spec(spec) for spec in served.signature.outputs)
    response.manifest_json = served.manifest_json.decode(errors="replace")
    response.class_names.extend(served.task.class_names if served.task else ())
    response.effective_config_toml = served.effective_toml


def _tensor_spec(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=axis_sizes(spec) if spec.shape is not None else [],
        axis_names=[axis if isinstance(axis, str) else "" for axis in spec.shape or ()],
        has_dynamic_rank=spec.shape is None,
        is_optional=spec.is_optional,
    )
