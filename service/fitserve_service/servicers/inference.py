"""fitserve.inference.v1.InferenceService: Predict and Evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import sums
from fitserve_contract.datatypes import BF16
from fitserve_contract.tasks import Task, TaskKind
from fitserve_contract.tensor_bytes import Array
from fitserve_service import codec
from fitserve_service.batcher import Priority
from fitserve_service.calls import UnaryCall, UnaryMethod
from fitserve_service.engine import Completed
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.intake import Intake, Order, Target, answer_call
from fitserve_service.registry import ServedVersion
from fitserve_service.signature import Tensor

SERVICE = "fitserve.inference.v1.InferenceService"


class InferenceServicer:
    """Answers Predict and Evaluate. Lives on the loop thread."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        return {f"/{SERVICE}/Predict": self.predict, f"/{SERVICE}/Evaluate": self.evaluate}

    def predict(self, call: UnaryCall, message: bytes) -> None:
        """Runs one version on one batch."""
        request = codec.parse(pb.PredictRequest, message)

        def prepare(_: ServedVersion) -> tuple[dict[str, Tensor], Sequence[str]]:
            return codec.decode_inputs(request.inputs), request.outputs

        order = Order("Predict", target_of(request.model), prepare, call.deadline_s)
        call.on_cancel(self._intake.run(order, _encode_prediction, answer_call(call)))

    def evaluate(self, call: UnaryCall, message: bytes) -> None:
        """Runs one version on labelled examples and answers the sums of its task."""
        request = codec.parse(pb.EvaluateRequest, message)
        labels = codec.decode_tensor("labels", request.labels, Reason.INVALID_LABELS)

        def prepare(served: ServedVersion) -> tuple[dict[str, Tensor], Sequence[str]]:
            task = _task_of(served)
            inputs = codec.decode_inputs(request.inputs)
            _check_labels_early(served, task, labels, served.signature.check(inputs))
            return inputs, (task.output,)

        def encode(served: ServedVersion, completed: Completed) -> bytes:
            return _evaluate_response(served, labels, completed).SerializeToString()

        order = Order("Evaluate", target_of(request.model), prepare, call.deadline_s, Priority.EVALUATE)
        call.on_cancel(self._intake.run(order, encode, answer_call(call)))


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


def _encode_prediction(served: ServedVersion, completed: Completed) -> bytes:
    outputs = [codec.encode_tensor(name, tensor) for name, tensor in completed.outputs.items()]
    response = pb.PredictResponse(model_name=served.model, model_version=served.version, outputs=outputs)
    return response.SerializeToString()


def _task_of(served: ServedVersion) -> Task:
    if served.task is None:
        text = f"model '{served.model}' version {served.version}: expected a task in its manifest to score, got none"
        raise ServiceError(Reason.NO_TASK, text, model=served.model)
    return served.task


def _check_labels_early(served: ServedVersion, task: Task, labels: Tensor, example_count: int) -> None:
    """Refuses labels before the model runs, as far as the signature tells the output's shape."""
    spec = next(spec for spec in served.signature.outputs if spec.name == task.output)
    if task.kind is TaskKind.REGRESSION and labels.datatype != spec.datatype:
        raise ServiceError(Reason.INVALID_LABELS, f"labels: expected datatype {spec.datatype}, got {labels.datatype}")
    if not spec.shape:
        return
    first = example_count if served.signature.has_batch_axis else spec.shape[0]
    rest = (len(task.class_names),) if task.class_names else spec.shape[1:]
    shape = tuple(axis for axis in (first, *rest) if isinstance(axis, int))
    if len(shape) == len(spec.shape):
        with _refused_labels():
            sums.check_labels(task, _reals(labels), shape)


class _refused_labels:
    """Turns the contract's ValueError into INVALID_LABELS."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, ValueError):
            raise ServiceError(Reason.INVALID_LABELS, str(error)) from None


def _evaluate_response(served: ServedVersion, labels: Tensor, completed: Completed) -> pb.EvaluateResponse:
    task = _task_of(served)
    with _refused_labels():
        scored = sums.score(task, _reals(completed.outputs[task.output]), _reals(labels))
    response = pb.EvaluateResponse(model_name=served.model, model_version=served.version)
    if isinstance(scored, sums.ClassificationSums):
        response.classification.CopyFrom(_classification(scored))
    elif isinstance(scored, sums.MultiLabelSums):
        response.multi_label.CopyFrom(_multi_label(scored))
    else:
        response.regression.CopyFrom(_regression(scored))
    return response


def _reals(tensor: Tensor) -> Array:
    """A tensor's numbers; BF16 bit patterns widened, since they are the upper half of an FP32."""
    if tensor.datatype != BF16:
        return tensor.array
    return (tensor.array.astype(np.uint32) << 16).view(np.float32)


def _exact(total: sums.ExactSum) -> tensor_pb2.ExactSum:
    return tensor_pb2.ExactSum(units=str(total.units), fraction_bits=total.fraction_bits)


def _classification(scored: sums.ClassificationSums) -> pb.ClassificationSums:
    return pb.ClassificationSums(
        example_count=scored.example_count,
        correct_count=scored.correct_count,
        loss=_exact(scored.loss),
        tie_count=scored.tie_count,
        nan_count=scored.nan_count,
    )


def _multi_label(scored: sums.MultiLabelSums) -> pb.MultiLabelSums:
    return pb.MultiLabelSums(
        example_count=scored.example_count,
        exact_match_count=scored.exact_match_count,
        true_positive_counts=scored.true_positive_counts,
        false_positive_counts=scored.false_positive_counts,
        false_negative_counts=scored.false_negative_counts,
        loss=_exact(scored.loss),
        nan_count=scored.nan_count,
    )


def _regression(scored: sums.RegressionSums) -> pb.RegressionSums:
    return pb.RegressionSums(
        example_count=scored.example_count,
        value_count=scored.value_count,
        squared_error=_exact(scored.squared_error),
        absolute_error=_exact(scored.absolute_error),
        label=_exact(scored.label),
        label_squared=_exact(scored.label_squared),
        nan_count=scored.nan_count,
    )
