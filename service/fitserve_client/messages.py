"""Calls and answers as messages: what goes out, and what comes back as the client's own values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_client.errors import INVALID_INPUT, FitserveError, InvalidArgumentError
from fitserve_client.models import Selector, VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.tensors import (
    LABELS,
    ArrayLike,
    Subject,
    array_of,
    as_array,
    cast,
    natural_datatype,
    tensor_message,
)
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import TaskKind
from fitserve_contract.tensor_bytes import Array

Response = TypeVar("Response", bound=Message)

Inputs = Mapping[str, ArrayLike] | ArrayLike
"""Input name to array; or the array itself, where the model has one input."""

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name
_CONTROL = control_pb2.DESCRIPTOR.services_by_name["ModelControlService"].methods_by_name


ROUTING_KEY: Final = "fitserve-routing-key"
"""Metadata whose value assigns a request to a share of the traffic."""

TIMING_KEY: Final = "fitserve-timing"
"""Trailing metadata that tells where the server's time went."""


def timing_of(trailing: Iterable[tuple[str, str | bytes]]) -> dict[str, int]:
    """Reads where the server's time went, by part in microseconds; empty where it does not tell."""
    told = next((value for key, value in trailing if key == TIMING_KEY), "")
    pairs = (part.partition("=") for part in str(told).split(",") if part)
    return {name.removesuffix("_us"): int(value) for name, _, value in pairs if value.isdecimal()}


@dataclass(frozen=True, slots=True)
class Call(Generic[Response]):
    """One unary call.

    Args:
        path: `/package.Service/Method`.
        request: Its message.
        response_type: Class of the answer.
        is_retryable: Making it again after a lost answer does no harm.
        final_reasons: Reasons of errors that making it again would not cure.
        metadata: What goes with it.
    """

    path: str
    request: Message
    response_type: type[Response]
    is_retryable: bool = True
    final_reasons: frozenset[str] = frozenset()
    metadata: tuple[tuple[str, str], ...] = ()

    def may_repeat(self, error: FitserveError) -> bool:
        """Tells whether the call may be made again after an error, as far as the call itself decides that."""
        return self.is_retryable and error.reason not in self.final_reasons


def predict_call(
    selector: Selector, tensors: Sequence[tensor_pb2.Tensor], outputs: Sequence[str], routing_key: str | None = None
) -> Call[inference_pb2.PredictResponse]:
    """Makes a Predict call; no outputs means all of them. InvalidArgumentError: the key cannot be sent."""
    if routing_key is not None and not (routing_key.isascii() and routing_key.isprintable()):
        raise InvalidArgumentError(f"routing_key: expected printable ASCII, got {routing_key[:64]!r}")
    request = inference_pb2.PredictRequest(model=selector.to_proto(), inputs=tensors, outputs=outputs)
    metadata = () if routing_key is None else ((ROUTING_KEY, routing_key),)
    return Call(_path(_INFERENCE["Predict"]), request, inference_pb2.PredictResponse, metadata=metadata)


def evaluate_call(
    selector: Selector,
    tensors: Sequence[tensor_pb2.Tensor],
    labels: tensor_pb2.Tensor,
    final_reasons: frozenset[str] = frozenset(),
) -> Call[inference_pb2.EvaluateResponse]:
    """Makes an Evaluate call."""
    request = inference_pb2.EvaluateRequest(model=selector.to_proto(), inputs=tensors, labels=labels)
    path = _path(_INFERENCE["Evaluate"])
    return Call(path, request, inference_pb2.EvaluateResponse, final_reasons=final_reasons)


def evaluate_held_out_call(selector: Selector) -> Call[inference_pb2.EvaluateResponse]:
    """Makes an Evaluate call for the examples that the version carries."""
    request = inference_pb2.EvaluateRequest(model=selector.to_proto(), dataset=inference_pb2.DATASET_HELD_OUT)
    return Call(_path(_INFERENCE["Evaluate"]), request, inference_pb2.EvaluateResponse)


def compare_call(
    first: Selector, second: Selector, examples: tuple[Sequence[tensor_pb2.Tensor], tensor_pb2.Tensor] | None
) -> Call[inference_pb2.CompareVersionsResponse]:
    """Makes a CompareVersions call for inputs and labels; None: for the examples that the first carries."""
    request = inference_pb2.CompareVersionsRequest(first=first.to_proto(), second=second.to_proto())
    if examples is None:
        request.dataset = inference_pb2.DATASET_HELD_OUT
    else:
        request.inputs.extend(examples[0])
        request.labels.CopyFrom(examples[1])
    return Call(_path(_INFERENCE["CompareVersions"]), request, inference_pb2.CompareVersionsResponse)


def list_models_call() -> Call[control_pb2.ListModelsResponse]:
    """Makes a ListModels call."""
    return Call(_path(_CONTROL["ListModels"]), control_pb2.ListModelsRequest(), control_pb2.ListModelsResponse)


def get_model_call(model: str) -> Call[control_pb2.GetModelResponse]:
    """Makes a GetModel call."""
    return Call(_path(_CONTROL["GetModel"]), control_pb2.GetModelRequest(name=model), control_pb2.GetModelResponse)


def get_version_call(selector: Selector) -> Call[control_pb2.GetModelVersionResponse]:
    """Makes a GetModelVersion call."""
    request = control_pb2.GetModelVersionRequest(model=selector.to_proto())
    return Call(_path(_CONTROL["GetModelVersion"]), request, control_pb2.GetModelVersionResponse)


def get_version_file_call(selector: Selector, file_name: str) -> Call[control_pb2.GetModelVersionFileResponse]:
    """Makes a GetModelVersionFile call."""
    request = control_pb2.GetModelVersionFileRequest(model=selector.to_proto(), file_name=file_name)
    return Call(_path(_CONTROL["GetModelVersionFile"]), request, control_pb2.GetModelVersionFileResponse)


def load_call(model: str) -> Call[control_pb2.LoadModelResponse]:
    """Makes a LoadModel call."""
    request = control_pb2.LoadModelRequest(name=model)
    return Call(_path(_CONTROL["LoadModel"]), request, control_pb2.LoadModelResponse, is_retryable=False)


def unload_call(model: str) -> Call[control_pb2.UnloadModelResponse]:
    """Makes an UnloadModel call."""
    request = control_pb2.UnloadModelRequest(name=model)
    return Call(_path(_CONTROL["UnloadModel"]), request, control_pb2.UnloadModelResponse, is_retryable=False)


def named_inputs(details: VersionDetails, inputs: Inputs) -> dict[str, ArrayLike]:
    """Gives inputs by name: an array alone goes to the model's one required input.

    Raises:
        InvalidArgumentError: an array alone for a model with several inputs, or a name that the model does not have.
    """
    names = [spec.name for spec in details.inputs]
    if isinstance(inputs, Mapping):
        for name in inputs:
            if name not in names:
                raise _refused(details, f"expected {_listing(names)}, got '{name}'")
        return dict(inputs)
    required = [spec.name for spec in details.inputs if not spec.is_optional] or names
    if len(required) != 1:
        raise _refused(details, f"expected a mapping with {_listing(names)}, got one {type(inputs).__name__}")
    return {required[0]: inputs}


def input_tensors(details: VersionDetails, inputs: Mapping[str, ArrayLike]) -> list[tensor_pb2.Tensor]:
    """Casts inputs to the signature's datatypes and writes them as messages; errors as `tensors.cast`."""
    specs = {spec.name: spec for spec in details.inputs}
    return [_input_tensor(specs[name], value) for name, value in inputs.items()]


def cast_labels(details: VersionDetails, labels: ArrayLike) -> tuple[str, Array]:
    """Casts labels to what the version's task takes; gives their datatype and the array.

    Raises:
        InvalidArgumentError: the cast would lose something.
    """
    datatype = _label_datatype(details)
    if datatype is None:
        array = as_array(LABELS, labels)
        return natural_datatype(LABELS, array), array
    return datatype, cast(LABELS, datatype, labels)


def label_tensor(datatype: str, labels: Array) -> tensor_pb2.Tensor:
    """Writes labels as a message."""
    return tensor_message("labels", datatype, labels)


def prediction_of(response: inference_pb2.PredictResponse) -> Prediction:
    """Reads the answer to Predict."""
    outputs = {tensor.name: array_of(tensor) for tensor in response.outputs}
    return Prediction(response.model_name, response.model_version, outputs)


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _refused(details: VersionDetails, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"inputs of model '{details.model}' version {details.version.version}: {what}", reason=INVALID_INPUT
    )


def _listing(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no inputs"


def _input_tensor(spec: TensorSpec, value: ArrayLike) -> tensor_pb2.Tensor:
    return tensor_message(spec.name, spec.datatype, cast(Subject.input(spec.name), spec.datatype, value))


def _label_datatype(details: VersionDetails) -> str | None:
    """None where the client does not know the task: the server then says what is wrong."""
    if details.task is None:
        return None
    if details.task.kind in (TaskKind.CLASSIFICATION, TaskKind.TOKEN_CLASSIFICATION):
        return "INT64"
    if details.task.kind is TaskKind.MULTI_LABEL:
        return "BOOL"
    output = details.output(details.task.output)
    return output.datatype if output else None
