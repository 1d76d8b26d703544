"""Runs a model on made-up inputs before it is READY: to learn whether rows are independent, and what a run costs.

A free first axis looks like a batch axis, but a model may mix its rows (a mean over the batch, a cumulative sum).
Joining requests would then change answers; so it is tried out, and without proof nothing is joined.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tensor_bytes import Array, shape_text, widened
from fitserve_service.costs import CostTable, row_elements
from fitserve_service.run_errors import DeviceMemoryError
from fitserve_service.session import OperatorError, RunawayError, RunLimit, Session
from fitserve_service.signature import Tensor

_FREE_AXIS_SIZES: Final = (8, 32, 224)
"""Tried in turn for free axes other than the batch axis, until the model runs."""

_ROWS: Final = 3
_SEED: Final = 20_240_229

_MAX_ELEMENTS: Final = 1 << 26
"""A tensor larger than this is not made up: it would cost more memory than the knowledge is worth."""
_REPEATS: Final = 3

_RUN_LIMIT_S: Final = 60.0
"""Trying a model out ends here, so that one that loops for ever does not hold a loader for ever."""

_ROW_TOLERANCES: Final = {"FP16": 2e-2, "FP32": 1e-3, "FP64": 1e-6}
"""Largest difference, relative to the largest value, between a row alone and among others: rounding, not mixing."""


def looks_batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Tells whether the first axis of every required input and every output is free."""
    specs = [spec for spec in inputs if not spec.is_optional]
    return bool(specs) and all(has_free_first_axis(spec) for spec in (*specs, *outputs))


def batching_problem(session: Session, proved_error: float = 0.0) -> str:
    """Tells why requests to a model cannot be joined; empty where a run showed that rows are independent.

    Args:
        session: The model.
        proved_error: How far the answers of a variant that rounds by what is in a batch were proved to be off at most:
            two of them may be twice as far from each other without any row being mixed with others.
    """
    if not looks_batched(session.inputs, session.outputs):
        return "not every input and output has a free first axis"
    names = [spec.name for spec in session.outputs]
    with RunLimit(_RUN_LIMIT_S) as limit:
        for size in _FREE_AXIS_SIZES:
            try:
                joined = made_up_inputs(session.inputs, _ROWS, size)
                whole = session.run(joined, names, limit)
                alone = [session.run(_row(joined, index), names, limit) for index in range(_ROWS)]
            except RunawayError:
                raise
            except OperatorError:
                continue
            return _difference(whole, alone, proved_error)
    return "the model did not run on made-up inputs, so that its rows are not known to be independent"


def measure(session: Session, batch_sizes: Sequence[int], *, budget_s: float) -> tuple[float, CostTable]:
    """Runs a model at batch sizes, in their order.

    Args:
        session: The model.
        batch_sizes: Examples in a run, ascending; a model without a batch axis ignores them.
        budget_s: Once this time is spent the remaining sizes are left out; infinite: all of them must fit into memory.

    Returns:
        The fastest run of the first size, seconds, and all of them; 0 and nothing where made-up inputs do not run.

    Raises:
        RunawayError: the first run did not end, or wanted more memory than there is.
        GraphError: a run could not be captured as a CUDA graph.
    """
    costs, first_s = CostTable(), 0.0
    begin_s = time.monotonic()
    with RunLimit(_RUN_LIMIT_S) as limit:
        size = next(_free_axis_sizes(session, limit), None)
        for batch_size in batch_sizes if size is not None else ():
            try:
                inputs = made_up_inputs(session.inputs, batch_size, size or 1)
                session.keep(inputs)
                fastest_s = min(_timed_run(session, inputs, limit) for _ in range(_REPEATS))
            except OperatorError as error:
                if isinstance(error, RunawayError) and not first_s:
                    raise
                if isinstance(error, DeviceMemoryError) and math.isinf(budget_s):
                    raise DeviceMemoryError(f"batch size {batch_size}: {error}") from None
                # A model that refuses made-up values may well serve real ones.
                break
            costs.record(batch_size, row_elements(inputs, batch_size), fastest_s)
            first_s = first_s or fastest_s
            if time.monotonic() - begin_s > budget_s:
                break
    return first_s, costs


def answers_alike(first: Session, second: Session) -> bool:
    """Tells whether two sessions answer made-up inputs alike, bit by bit; also where the first does not run any.

    Raises:
        RunawayError: a run did not end, or wanted more memory than there is.
    """
    names = [spec.name for spec in first.outputs]
    with RunLimit(_RUN_LIMIT_S) as limit:
        size = next(_free_axis_sizes(first, limit), None)
        if size is None:
            return True
        inputs = made_up_inputs(first.inputs, 1, size)
        expected = first.run(inputs, names, limit)
        try:
            found = second.run(inputs, names, limit)
        except RunawayError:
            raise
        except OperatorError:
            return False
    return all(
        _is_identical(one.array, other.array) for one, other in zip(expected.values(), found.values(), strict=True)
    )


def made_up_rows(specs: Sequence[TensorSpec]) -> Iterator[dict[str, Tensor]]:
    """Yields the inputs of one row that `measure` may have run, for each size of free axes that it tries."""
    for size in _FREE_AXIS_SIZES:
        with contextlib.suppress(OperatorError):
            yield made_up_inputs(specs, 1, size)


def made_up_inputs(specs: Sequence[TensorSpec], batch_size: int, free_axis_size: int) -> dict[str, Tensor]:
    """Makes inputs that fit a signature: uniform reals in 0..1, integers 0 or 1, the same for the same arguments.

    Args:
        specs: Inputs; optional ones are left out. A free rank becomes (batch_size,).
        batch_size: Size of a free first axis.
        free_axis_size: Size of every other free axis.

    Raises:
        OperatorError: an input would be too large.
    """
    random = np.random.default_rng(_SEED)
    inputs = {}
    for spec in specs:
        if spec.is_optional:
            continue
        axes = (None,) if spec.shape is None else spec.shape
        free = [batch_size, *[free_axis_size] * len(axes)]
        shape = tuple(axis if type(axis) is int else free[index] for index, axis in enumerate(axes))
        if math.prod(shape) > _MAX_ELEMENTS:
            raise OperatorError(f"input '{spec.name}': {shape_text(shape)} is too large to try out")
        inputs[spec.name] = Tensor(spec.datatype, _values(random, spec.datatype, shape))
    return inputs


def _is_identical(one: Array, other: Array) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bool((one == other).all()) if one.dtype == object else one.tobytes() == other.tobytes()


def _free_axis_sizes(session: Session, limit: RunLimit) -> Iterator[int]:
    names = [spec.name for spec in session.outputs]
    for size in _FREE_AXIS_SIZES:
        try:
            session.run(made_up_inputs(session.inputs, 1, size), names, limit)
        except RunawayError:
            raise
        except OperatorError:
            continue
        yield size


def _values(random: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> Array:
    dtype = NUMPY_DTYPES[datatype]
    if datatype == BF16:
        return (np.asarray(random.random(shape, np.float32)).view(np.uint32) >> 16).astype(dtype)
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    bits = np.asarray(random.integers(0, 2, shape))
    if shape and shape[0] > 1:
        # Rows that happen to be alike could not show that they are mixed.
        bits[0] = 1 - bits[-1]
    if datatype != BYTES:
        return bits.astype(dtype)
    words = np.empty(bits.size, object)
    words[:] = [b"ab"[bit : bit + 1] for bit in bits.reshape(-1).tolist()]
    return words.reshape(shape)


def _timed_run(session: Session, inputs: Mapping[str, Tensor], limit: RunLimit) -> float:
    names = [spec.name for spec in session.outputs]
    begin_s = time.perf_counter()
    session.run(inputs, names, limit)
    return time.perf_counter() - begin_s


def has_free_first_axis(spec: TensorSpec) -> bool:
    """Tells whether a tensor's first axis may count examples, as its shape says; not so where the rank is open."""
    return bool(spec.shape) and type(spec.shape[0]) is not int  # type: ignore[index]


def _row(inputs: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: Tensor(tensor.datatype, tensor.array[index : index + 1]) for name, tensor in inputs.items()}


def _difference(whole: Mapping[str, Tensor], alone: Sequence[Mapping[str, Tensor]], proved_error: float) -> str:
    for name, tensor in whole.items():
        rows = [part[name].array for part in alone]
        if tensor.array.shape[:1] != (_ROWS,) or any(row.shape != (1, *tensor.array.shape[1:]) for row in rows):
            return f"output '{name}' does not give one row for each row of the inputs"
        if not _is_same(tensor, np.concatenate(rows), 2 * proved_error):
            return f"a row of output '{name}' depends on the other rows of the batch"
    return ""


def _is_same(tensor: Tensor, rows: Array, atol: float) -> bool:
    if tensor.datatype == BF16:
        return _is_close(widened(tensor.array), widened(rows), _ROW_TOLERANCES["FP16"], atol)
    tolerance = _ROW_TOLERANCES.get(tensor.datatype)
    if tolerance is None:
        return bool((tensor.array == rows).all())
    return _is_close(tensor.array, rows, tolerance, atol)


def _is_close(left: Array, right: Array, rtol: float, atol: float) -> bool:
    finite = np.abs(left[np.isfinite(left)], dtype=np.float64)
    scale = float(finite.max(initial=0.0))
    allowed = max(rtol * max(scale, 1e-6), atol)
    return bool(np.allclose(left, right, rtol=0.0, atol=allowed, equal_nan=True))
