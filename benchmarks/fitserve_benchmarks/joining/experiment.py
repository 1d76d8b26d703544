"""Holds a label against ONNX Runtime: what does a row's answer owe to its neighbours?

The experiment knows nothing of proof and trial. Shapes: N is the axis that the rows share, the first of every input.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime

from fitserve_benchmarks.joining.labelled import DEFAULT_SIZE

Array: TypeAlias = np.ndarray[Any, Any]
Feed: TypeAlias = Mapping[str, Array]

ROUNDS: Final = 12
BATCH: Final = 5

ROUNDING: Final = 0.05
"""Relative to the largest element: far above float32 sums in another order, even behind a norm of equal values."""

_ELEMENT_TYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
RuntimeErrors: Final = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)
"""What a model raises that does not take some values."""

_WORDS: Final = ("a", "b", "c", "d", "")


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far answers beside others are from answers alone."""

    by_neighbours: float
    """Largest absolute difference between beside strangers and beside copies, at one size and place: 0 for independent
    rows, since a kernel never sums in another order because of what its neighbours are."""

    by_company: float
    """Largest difference between beside copies and alone, relative to the answer's largest element: rounding."""

    @property
    def is_coupled(self) -> bool:
        """True where a neighbour changed a bit, or company changed more than rounding does."""
        return self.by_neighbours > 0 or self.by_company > ROUNDING

    def __or__(self, other: Deviation) -> Deviation:
        """Returns the larger of both figures."""
        return Deviation(max(self.by_neighbours, other.by_neighbours), max(self.by_company, other.by_company))


NONE: Final = Deviation(0.0, 0.0)
COUPLED: Final = Deviation(math.inf, math.inf)


def open_session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Loads a model for the CPU, without a word on stderr."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Caller:
    """Draws one row's inputs after another, each row of another magnitude.

    Args:
        session: Tells names, types and shapes.
        ranges: Input name to lowest and highest integer.
        sizes: Axis name to its size.
        seed: Same seed, same rows.
        example: Input name to (R, ...): rows are drawn from its values where there are any.
        default_size: Of a free axis that `sizes` does not name.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        ranges: Mapping[str, tuple[int, int]],
        sizes: Mapping[str, int],
        seed: int,
        example: Feed | None = None,
        default_size: int = DEFAULT_SIZE,
    ) -> None:
        self._inputs = session.get_inputs()
        self._ranges = ranges
        self._sizes = sizes
        self._random = np.random.default_rng(seed)
        self._example = example or {}
        self._default_size = default_size

    def row(self) -> dict[str, Array]:
        """Draws inputs with a first axis of 1."""
        magnitude = 10.0 ** self._random.integers(-2, 4) * self._random.choice([-1.0, 1.0])
        return {spec.name: self._tensor(spec, magnitude) for spec in self._inputs}

    def _tensor(self, spec: Any, magnitude: float) -> Array:
        kind = _ELEMENT_TYPES.get(spec.type)
        if kind is None:
            raise ValueError(f"input '{spec.name}': expected a tensor of {sorted(_ELEMENT_TYPES)}, got {spec.type}")
        if spec.name in self._example:
            return self._like(self._example[spec.name], magnitude)
        shape = [1, *(self._size(axis) for axis in spec.shape[1:])] if spec.shape else [1]
        if kind is np.object_:
            return self._random.choice(np.array(_WORDS, np.object_), shape)
        if np.issubdtype(kind, np.floating):
            return (self._random.standard_normal(shape) * magnitude).astype(kind)
        if kind is np.bool_:
            return self._random.random(shape) < self._random.random()
        low, high = self._ranges.get(spec.name, (0, 1))
        return self._random.integers(low, high, shape, endpoint=True).astype(kind)

    def _like(self, example: Array, magnitude: float) -> Array:
        row: Array = example[self._random.integers(len(example)) :][:1]
        if example.dtype.kind != "f":
            return row
        scaled = row * magnitude * self._random.uniform(0.5, 1.0, row.shape)
        return np.asarray(scaled, example.dtype)

    def _size(self, axis: int | str | None) -> int:
        return axis if isinstance(axis, int) and axis > 0 else self._sizes.get(str(axis), self._default_size)


def together(rows: Sequence[Feed]) -> dict[str, Array]:
    """Joins rows along the first axis."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def deviation(session: onnxruntime.InferenceSession, callers: Caller, limit_s: float = math.inf) -> Deviation:
    """Runs rows beside strangers, beside copies of themselves, and alone, at several places.

    Args:
        session: The model.
        callers: Draws the rows.
        limit_s: No round begins after so many seconds.

    Returns:
        The largest deviation found; COUPLED where the shapes do not tell which row is whose.

    Raises:
        ValueError: the model ran in no round.
    """
    found: list[Deviation | None] = []
    end = time.monotonic() + limit_s
    for number in range(ROUNDS):
        if found and time.monotonic() > end:
            break
        rows: list[Feed] = [callers.row() for _ in range(BATCH)]
        place = number % BATCH
        if number % 3 == 2:
            rows[place - 1] = _without_numbers(rows[place - 1])
        found.append(_of_one(session, rows, place))
    ran = [one for one in found if one is not None]
    if not ran:
        raise ValueError(
            f"expected a model that runs at 1 and {BATCH} rows, got one that failed in {len(found)} rounds"
        )
    return reduce(or_, ran)


def _without_numbers(row: Feed) -> dict[str, Array]:
    return {name: np.full_like(array, math.nan) if array.dtype.kind == "f" else array for name, array in row.items()}


def _of_one(session: onnxruntime.InferenceSession, rows: Sequence[Feed], place: int) -> Deviation | None:
    """Compares one row's answers; None where the model refuses a value: a server runs such requests alone."""
    worst = NONE
    try:
        answers = [answers_of(session, feed) for feed in (rows[place], together([rows[place]] * BATCH), together(rows))]
    except RuntimeErrors:
        return None
    for alone, same, mixed in zip(*answers, strict=True):
        if same.shape != mixed.shape or same.shape[:1] != (BATCH,) or alone.shape != (1, *same.shape[1:]):
            return COUPLED
        by_company = largest_difference(same[place:][:1], alone) / (largest_element(alone) or 1.0)
        worst |= Deviation(largest_difference(mixed[place:][:1], same[place:][:1]), by_company)
    return worst


def answers_of(session: onnxruntime.InferenceSession, feed: Feed) -> list[Array]:
    """Runs a model; every output as an array."""
    return [np.asarray(answer) for answer in session.run(None, dict(feed))]


def largest_element(array: Array) -> float:
    """Returns the largest finite absolute value; 1 for what is no real number."""
    if array.dtype.kind != "f":
        return 1.0
    return float(np.abs(array, where=np.isfinite(array), out=np.zeros(array.shape)).max(initial=0.0))


def largest_difference(a: Array, b: Array) -> float:
    """Returns the largest absolute difference; not-a-numbers equal each other, anything else that differs is 1."""
    if a.shape != b.shape:
        return math.inf
    if a.dtype.kind not in "fc":
        return float(np.any(a != b))
    with np.errstate(all="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(np.where(equal, 0.0, np.where(np.isnan(gap), math.inf, gap)).max(initial=0.0))
