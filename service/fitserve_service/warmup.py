"""Runs a model on made-up inputs before it is READY, and measures what a run costs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES
from fitserve_contract.joinability.rows import is_identical
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tensor_bytes import Array, shape_text
from fitserve_service.costs import CostTable, row_elements
from fitserve_service.run_errors import DeviceMemoryError
from fitserve_service.runtime.run_limit import RunLimit
from fitserve_service.session import CPU_PROVIDER, FirstRun, OperatorError, RunawayError, Session
from fitserve_service.signature import Tensor

FREE_AXIS_SIZES: Final = (8, 32, 224)
"""Tried in turn for free axes other than the batch axis, until the model runs."""

_SEED: Final = 20_240_229

MAX_ELEMENTS: Final = 1 << 26
"""A tensor larger than this is not made up: it would cost more memory than the knowledge is worth."""
_REPEATS: Final = 3

_SLOW_S: Final = 0.5
"""A run that takes longer is not repeated: the load would take minutes, and what disturbs a run is short beside it."""


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
    with session.limit() as limit:
        if (found := first_run(session, limit)) is None:
            return 0.0, costs
        known_s = found.run_s if session.provider == CPU_PROVIDER else 0.0
        begin_s = time.monotonic() - known_s
        for batch_size in batch_sizes:
            try:
                inputs = made_up_inputs(session.inputs, batch_size, found.free_axis_size)
                session.keep(inputs)
                fastest_s = _fastest_run_s(session, inputs, limit, known_s if batch_size == 1 else 0.0)
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


def first_run(session: Session, limit: RunLimit) -> FirstRun | None:
    """Runs one made-up row, once for a session: what is slow is not run again to learn the same.

    Returns:
        None where made-up inputs do not run.

    Raises:
        RunawayError: the run did not end, or wanted more memory than there is.
    """
    if session.first_run is None and (tried := _try_sizes(session, limit)) is not None:
        session.first_run, inputs, _ = tried
        if session.provider != CPU_PROVIDER:
            # On a GPU the first run chooses its kernels, which takes longer than a run.
            session.first_run = FirstRun(session.first_run.free_axis_size, _timed_run(session, inputs, limit))
    return session.first_run


def answers_alike(first: Session, second: Session) -> bool:
    """Tells whether two sessions answer made-up inputs alike, bit by bit; also where the first does not run any.

    Raises:
        RunawayError: a run did not end, or wanted more memory than there is.
    """
    names = [spec.name for spec in first.outputs]
    with first.limit() as limit:
        tried = _try_sizes(first, limit)
        if tried is None:
            return True
        run, inputs, expected = tried
        if run.run_s <= _SLOW_S:
            # Once more: what draws random numbers answers alike where both sessions are new.
            expected = first.run(inputs, names, limit)
        try:
            found = second.run(inputs, names, limit)
        except RunawayError:
            raise
        except OperatorError:
            return False
    return all(
        is_identical(one.array, other.array) for one, other in zip(expected.values(), found.values(), strict=True)
    )


def made_up_rows(specs: Sequence[TensorSpec]) -> Iterator[dict[str, Tensor]]:
    """Yields the inputs of one row that `measure` may have run, for each size of free axes that it tries."""
    for size in FREE_AXIS_SIZES:
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
        if math.prod(shape) > MAX_ELEMENTS:
            raise OperatorError(f"input '{spec.name}': {shape_text(shape)} is too large to try out")
        inputs[spec.name] = Tensor(spec.datatype, _values(random, spec.datatype, shape))
    return inputs


def _try_sizes(session: Session, limit: RunLimit) -> tuple[FirstRun, dict[str, Tensor], dict[str, Tensor]] | None:
    """Runs one row at each size of free axes until one runs; returns the run, its inputs and its outputs."""
    names = [spec.name for spec in session.outputs]
    for size in FREE_AXIS_SIZES:
        try:
            inputs = made_up_inputs(session.inputs, 1, size)
            begin_s = time.perf_counter()
            outputs = session.run(inputs, names, limit)
            return FirstRun(size, time.perf_counter() - begin_s), inputs, outputs
        except RunawayError:
            raise
        except OperatorError:
            continue
    return None


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


def _fastest_run_s(session: Session, inputs: Mapping[str, Tensor], limit: RunLimit, known_s: float) -> float:
    """Measures a run; a known time of the same run that is slow stands for it."""
    runs_s = [known_s] if known_s > _SLOW_S else []
    while len(runs_s) < _REPEATS and not (runs_s and runs_s[-1] > _SLOW_S):
        runs_s.append(_timed_run(session, inputs, limit))
    return min(runs_s)


def _timed_run(session: Session, inputs: Mapping[str, Tensor], limit: RunLimit) -> float:
    names = [spec.name for spec in session.outputs]
    begin_s = time.perf_counter()
    session.run(inputs, names, limit)
    return time.perf_counter() - begin_s


def has_free_first_axis(spec: TensorSpec) -> bool:
    """Tells whether a tensor's first axis may count examples, as its shape says; not so where the rank is open."""
    return bool(spec.shape) and type(spec.shape[0]) is not int  # type: ignore[index]
