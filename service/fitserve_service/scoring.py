"""Labels against a task and a signature: what can be refused before a model runs, and numbers as the sums take them."""

from __future__ import annotations

from types import TracebackType

from fitserve_contract import scoring
from fitserve_contract.datatypes import BF16
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import Task, TaskKind
from fitserve_contract.tensor_bytes import Array, widened
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.signature import Signature, Tensor


def check_labels(signature: Signature, task: Task, labels: Tensor, example_count: int) -> None:
    """Refuses labels before the model runs, as far as the signature tells the output's shape.

    Raises:
        ServiceError: INVALID_LABELS; they do not fit the task.
    """
    spec = next(spec for spec in signature.outputs if spec.name == task.output)
    if task.kind is TaskKind.REGRESSION and labels.datatype != spec.datatype:
        raise ServiceError(Reason.INVALID_LABELS, f"labels: expected datatype {spec.datatype}, got {labels.datatype}")
    if not spec.shape:
        return
    first = example_count if signature.has_batch_axis else spec.shape[0]
    shape = tuple(axis for axis in (first, *_rest(task, spec, labels)) if isinstance(axis, int))
    if len(shape) == len(spec.shape):
        with refused_labels():
            scoring.check_labels(task, reals(labels), shape)


def _rest(task: Task, spec: TensorSpec, labels: Tensor) -> tuple[int | str | None, ...]:
    """Says what the axes of the output behind the first will be; a free axis of positions is that of the labels."""
    if task.kind is TaskKind.REGRESSION:
        return spec.shape[1:] if spec.shape else ()
    positions = spec.shape[1:-1] if spec.shape else ()
    given = labels.array.shape[1:]
    if len(positions) == len(given):
        positions = tuple(axis if isinstance(axis, int) else size for axis, size in zip(positions, given, strict=True))
    return (*positions, len(task.class_names))


class refused_labels:
    """Turns the contract's ValueError into INVALID_LABELS."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ValueError):
            raise ServiceError(Reason.INVALID_LABELS, str(error)) from None


def reals(tensor: Tensor) -> Array:
    """Gives a tensor's numbers; those of BF16 as float32."""
    return widened(tensor.array) if tensor.datatype == BF16 else tensor.array
