"""fitserve.inference.v1.InferenceService: Predict and Evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import numpy as np

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_service import codec
from fitserve_service.batcher import Priority
from fitserve_service.budget import Budget
from fitserve_service.bundles import Bundles
from fitserve_service.calls import UnaryCall, UnaryMethod
from fitserve_service.codec import ElementRoom
from fitserve_service.comparison import ComparisonTally, EvaluationTally, check_same_task, task_of, version_text
from fitserve_service.engine import Completed
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.intake import CallAnswer, Intake, SeriesOrder, Target, order_of
from fitserve_service.messages import parse
from fitserve_service.proof import HeldOut
from fitserve_service.requests.answer_size import check_expected
from fitserve_service.requests.contents import Contents
from fitserve_service.requests.message_reader import DecodedT, MessageReader, RequestT
from fitserve_service.rpc.wire_scan import DEFAULT_MAX_ELEMENTS
from fitserve_service.runs import Prepared
from fitserve_service.scoring import check_labels
from fitserve_service.series import ExampleSet
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.status import fail_with
from fitserve_service.templates import RequestTemplate, Templates, request_parts

SERVICE = "fitserve.inference.v1.InferenceService"

_PREDICT_CONTENTS: Final = (2, 4)
"""PredictRequest.inputs, Tensor.content."""

_PREDICTION_CONTENTS: Final = (3, 4)
"""PredictResponse.outputs, Tensor.content."""

MAX_COMPARED: Final = 1 << 16
"""Examples in one comparison: its answer may hold two losses for each."""


_Inputs: TypeAlias = dict[str, Tensor]
_Examples: TypeAlias = tuple[Tensor, _Inputs]
"""Labels and inputs."""

_OUTPUTS: Final = 3
_CONTENT: Final = 4
"""PredictResponse.outputs, Tensor.content."""


class InferenceServicer:
    """Answers Predict, Evaluate and CompareVersions. Lives on the loop thread.

    Args:
        intake: Runs the requests.
        max_elements: As of `--max-elements`.
    """

    def __init__(self, intake: Intake, max_elements: int = DEFAULT_MAX_ELEMENTS) -> None:
        self._intake = intake
        limits = max_elements, intake.codec, intake.keep
        self._predictions: MessageReader[pb.PredictRequest, _Inputs] = MessageReader(
            pb.PredictRequest, partial(_decode, max_elements), *limits
        )
        self._evaluations: MessageReader[pb.EvaluateRequest, _Examples] = MessageReader(
            pb.EvaluateRequest, partial(_decode_examples, max_elements), *limits
        )
        self._comparisons: MessageReader[pb.CompareVersionsRequest, _Examples] = MessageReader(
            pb.CompareVersionsRequest, partial(_decode_examples, max_elements), *limits
        )
        self._templates = Templates(_predict_template)
        self._bundles = Bundles("Predict", intake)

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        methods = {"Predict": self.predict, "Evaluate": self.evaluate, "CompareVersions": self.compare_versions}
        return {f"/{SERVICE}/{name}": method for name, method in methods.items()}

    def predict(self, call: UnaryCall, message: bytes) -> None:
        """Runs one version on one batch."""
        begin_s = time.monotonic()
        template = self._templates.find(message)
        if template is not None:
            self._bundles.add(template, call, message, begin_s)
            return
        run = partial(self._run_predict, call, begin_s, message)
        _read(self._predictions, call, message, run)

    def _run_predict(
        self,
        call: UnaryCall,
        begin_s: float,
        message: bytes,
        request: pb.PredictRequest,
        decoded: Callable[[], _Inputs],
    ) -> None:
        budget = Budget(begin_s)

        def prepare(served: ServedVersion) -> Prepared:
            prepared = Prepared.check(served.signature, decoded(), request.outputs)
            check_expected(served.signature, prepared.inputs, prepared.kind.output_names)
            return prepared

        order = order_of(call, "Predict", target_of(request.model), prepare, _encode_prediction, budget)
        call.on_cancel(self._intake.run(order))
        if request.inputs:
            self._templates.learn(message, request.inputs[0].content)

    def evaluate(self, call: UnaryCall, message: bytes) -> None:
        """Runs one version on labelled examples and answers the sums of its task."""
        run = partial(self._run_evaluate, call, Budget(time.monotonic()))
        _read(self._evaluations, call, message, run)

    def _run_evaluate(
        self, call: UnaryCall, budget: Budget, request: pb.EvaluateRequest, decoded: Callable[[], _Examples]
    ) -> None:
        if _is_held_out(request):
            self._evaluate_held_out(call, request)
            return
        labels: list[Tensor] = []

        def prepare(served: ServedVersion) -> Prepared:
            task = task_of(served)
            found, inputs = decoded()
            prepared = Prepared.check(served.signature, inputs, (task.output,))
            check_labels(served.signature, task, found, prepared.kind.example_count)
            labels.append(found)
            return prepared

        def encode(served: ServedVersion, completed: Completed) -> bytes:
            tally = EvaluationTally(served, labels[0])
            tally.add(slice(None), list(completed.outputs.values()))
            return tally.message()

        order = order_of(call, "Evaluate", target_of(request.model), prepare, encode, budget, Priority.EVALUATE)
        call.on_cancel(self._intake.run(order))

    def compare_versions(self, call: UnaryCall, message: bytes) -> None:
        """Runs two versions on the same labelled examples and answers the sums of each, and both paired."""
        _read(self._comparisons, call, message, partial(self._run_compare, call))

    def _run_compare(
        self, call: UnaryCall, request: pb.CompareVersionsRequest, decoded: Callable[[], _Examples]
    ) -> None:
        is_held_out = _is_held_out(request)

        def prepare(versions: Sequence[ServedVersion]) -> ExampleSet:
            check_same_task(*versions)
            examples = held_out_of(versions[0]) if is_held_out else _examples_of(*decoded())
            count = _check_examples(examples, versions)
            first, second = (EvaluationTally(served, examples.labels) for served in versions)
            outputs = tuple(task_of(served).output for served in versions)
            return ExampleSet(examples.inputs, count, outputs, ComparisonTally(first, second, examples.indices))

        targets = (target_of(request.first), target_of(request.second))
        order = SeriesOrder("CompareVersions", targets, prepare, call.deadline_s)
        call.on_cancel(self._intake.run_series(order, CallAnswer(call)))

    def _evaluate_held_out(self, call: UnaryCall, request: pb.EvaluateRequest) -> None:
        def prepare(versions: Sequence[ServedVersion]) -> ExampleSet:
            served = versions[0]
            task, examples = task_of(served), held_out_of(served)
            tally = EvaluationTally(served, examples.labels)
            return ExampleSet(examples.inputs, len(examples.indices), (task.output,), tally)

        order = SeriesOrder("Evaluate", (target_of(request.model),), prepare, call.deadline_s)
        call.on_cancel(self._intake.run_series(order, CallAnswer(call)))


def _read(
    reader: MessageReader[RequestT, DecodedT],
    call: UnaryCall,
    message: bytes,
    run: Callable[[RequestT, Callable[[], DecodedT]], None],
) -> None:
    cancel = reader.read(message, run, partial(fail_with, call), call.origin)
    if cancel is not None:
        call.on_cancel(cancel)


def _decode(max_elements: int, request: pb.PredictRequest, contents: Contents) -> _Inputs:
    return codec.decode_inputs(request.inputs, ElementRoom(max_elements), contents)


def _decode_examples(
    max_elements: int, request: pb.EvaluateRequest | pb.CompareVersionsRequest, contents: Contents
) -> _Examples:
    room = ElementRoom(max_elements)
    labels = codec.decode_tensor("labels", request.labels, Reason.INVALID_LABELS, room=room, contents=contents)
    return labels, codec.decode_inputs(request.inputs, room, contents)


def target_of(spec: tensor_pb2.ModelSpec) -> Target:
    """Reads which version a request names.

    Raises:
        ServiceError: INVALID_VERSION; the number is below 1.
    """
    selector = spec.WhichOneof("selector")
    if selector == "version" and spec.version < 1:
        raise ServiceError(
            Reason.INVALID_VERSION, f"model.version: expected a number of at least 1, got {spec.version}"
        )
    return Target(
        spec.name,
        version=spec.version if selector == "version" else None,
        label=spec.label if selector == "label" else None,
    )


def _predict_template(message: bytes) -> RequestTemplate | None:
    request = parse(pb.PredictRequest, message)
    inputs = codec.decode_inputs(request.inputs)
    parts = request_parts(message, _PREDICT_CONTENTS, inputs)
    if parts is None:
        return None
    target = target_of(request.model)
    return RequestTemplate(message, target, request.outputs, parts, _encode_prediction, _PREDICTION_CONTENTS)


def _encode_prediction(served: ServedVersion, completed: Completed) -> bytes:
    """Writes what protobuf would, but copies the contents once, not three times: each is its tensor's last field."""
    response = pb.PredictResponse(model_name=served.model, model_version=served.version)
    pieces: list[bytes | memoryview] = [response.SerializeToString()]
    for name, (datatype, array) in completed.outputs.items():
        content = tensor_bytes.buffer_of(array, datatype)
        head = tensor_pb2.Tensor(name=name, datatype=datatype, shape=array.shape).SerializeToString()
        # proto3 leaves an empty field out.
        tag = codec.field_head(_CONTENT, len(content)) if len(content) else b""
        pieces += (codec.field_head(_OUTPUTS, len(head) + len(tag) + len(content)), head, tag, content)
    return b"".join(pieces)


def held_out_of(served: ServedVersion) -> HeldOut:
    """Gives the held-out examples that a version carries.

    Raises:
        ServiceError: NO_HELD_OUT.
    """
    if served.held_out is None:
        text = f"{version_text(served)}: expected held-out examples in its folder, found none"
        raise ServiceError(Reason.NO_HELD_OUT, text, model=served.model)
    return served.held_out


def _is_held_out(request: pb.EvaluateRequest | pb.CompareVersionsRequest) -> bool:
    """Tells whether the examples are the version's own; then the request brings none."""
    if request.dataset == pb.DATASET_UNSPECIFIED:
        return False
    if request.dataset != pb.DATASET_HELD_OUT:
        text = f"dataset: expected DATASET_HELD_OUT or none, got {request.dataset}"
        raise ServiceError(Reason.INVALID_REQUEST, text)
    if request.inputs or request.HasField("labels"):
        raise ServiceError(Reason.INVALID_REQUEST, "inputs and labels: expected none beside a dataset, got some")
    return True


def _examples_of(labels: Tensor, inputs: _Inputs) -> HeldOut:
    """Gives the examples of a request; they are numbered in its order."""
    count = len(labels.array) if labels.array.ndim else 0
    if not 1 <= count <= MAX_COMPARED:
        text = f"labels: expected 1..{MAX_COMPARED} examples in a comparison, got {count}"
        raise ServiceError(Reason.BATCH_TOO_LARGE if count else Reason.INVALID_LABELS, text)
    return HeldOut(inputs, labels, np.arange(count))


def _check_examples(examples: HeldOut, versions: Sequence[ServedVersion]) -> int:
    """Holds examples against every version before the first runs; gives their number."""
    count = len(examples.labels.array)
    for name, tensor in examples.inputs.items():
        if tensor.array.shape[:1] != (count,):
            found = f"shape {tensor.array.shape}"
            text = f"input '{name[:128]}': expected a first axis of {count} examples, as there are labels, got {found}"
            raise ServiceError(Reason.INVALID_INPUT, text, input=name[:128])
    for served in versions:
        if served.signature.has_batch_axis:
            try:
                served.signature.check(examples.inputs)
                check_labels(served.signature, task_of(served), examples.labels, count)
            except ServiceError as error:
                raise ServiceError(error.reason, f"{version_text(served)}: {error.message}", **error.metadata) from None
    return count
