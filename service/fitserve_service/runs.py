"""Requests that run, and the batches that they run in: what the engine hands from thread to thread.

A run is made on the loop, carried out anywhere, and answered on the loop; it belongs to one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias

from fitserve_service import run_record
from fitserve_service.batcher import Entry, Priority
from fitserve_service.costs import inputs_bytes, row_elements
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.joining import bucket_size, join, joining_key, split
from fitserve_service.served_version import Lease, ServedVersion
from fitserve_service.session import OperatorError, RunSwitch
from fitserve_service.signature import Signature, Tensor


# What is made for every request is a tuple: a frozen dataclass costs several times as much to make.
class Timing(NamedTuple):
    """Where a request's time went, seconds; the run with joining and splitting."""

    queue_s: float
    run_s: float


class Completed(NamedTuple):
    """The answer to a job: output name to tensor, in the order asked for."""

    outputs: dict[str, Tensor]
    timing: Timing


class Kind(NamedTuple):
    """What requests of the same names, datatypes and shapes have in common.

    Args:
        output_names: Outputs wanted.
        example_count: Rows.
        key: What requests that run together have in common; None: it runs alone.
        row_elements: Elements of one example, all inputs together.
        size_bytes: Memory that the inputs hold.
    """

    output_names: tuple[str, ...]
    example_count: int
    key: Hashable
    row_elements: int
    size_bytes: int


class Prepared(NamedTuple):
    """A request that fits a version: its tensors by input name, and what holds for all of its kind."""

    inputs: dict[str, Tensor]
    kind: Kind

    @classmethod
    def check(cls, signature: Signature, inputs: dict[str, Tensor], outputs: Sequence[str]) -> Prepared:
        """Holds a request against a signature.

        Raises:
            ServiceError: INVALID_INPUT, INVALID_OUTPUT or BATCH_TOO_LARGE.
        """
        rows = signature.check(inputs)
        if signature.row_limit:
            _check_row_limit(signature, inputs)
        names = signature.check_outputs(outputs)
        key = joining_key(signature, inputs, names, rows)
        return cls(inputs, Kind(names, rows, key, row_elements(inputs, rows), inputs_bytes(inputs)))


def _check_row_limit(signature: Signature, inputs: Mapping[str, Tensor]) -> None:
    limit = signature.row_limit
    shapes = [inputs[spec.name].array.shape for spec in signature.inputs if not spec.is_optional]
    found = max((shape[0] for shape in shapes if shape), default=0)
    if found > limit:
        text = f"expected at most {limit} examples in a request (max_batch_size in model.toml), got {found}"
        raise ServiceError(Reason.BATCH_TOO_LARGE, text)


NO_SLOT: Final = nullcontext()

Outcome: TypeAlias = Completed | ServiceError


class Job(Entry):
    """One request to run.

    Args:
        lease: The version; the engine releases it before `on_done`.
        prepared: The request, checked against the version's signature.
        deadline_s: Monotonic time at which the caller stops waiting; None: never.
        priority: PREDICT before EVALUATE.
        on_done: Takes the job and its outcome, exactly once, on the loop thread.
    """

    __slots__ = ("deadline_s", "inputs", "is_abandoned", "lease", "on_done", "output_names", "row_elements")

    def __init__(
        self,
        lease: Lease,
        prepared: Prepared,
        deadline_s: float | None,
        priority: Priority,
        on_done: Callable[[Any, Outcome], None],
    ) -> None:
        self.deadline_s = deadline_s
        self.on_done = on_done
        self.is_abandoned = False
        self.bind(lease, prepared, priority)

    def bind(self, lease: Lease, prepared: Prepared, priority: Priority) -> None:
        """Takes what is known of a request once its version is."""
        self.lease = lease
        self.inputs, kind = prepared
        self.output_names, example_count, key, self.row_elements, size_bytes = kind
        super().__init__(key, example_count, priority, size_bytes)

    def least_run_s(self) -> float:
        """Returns what a run of this job alone should take; 0 where that is not known."""
        expected_s = self.lease.served.costs.expected_s(self.example_count, self.row_elements)
        return 0.0 if expected_s == inf else expected_s


class RowCountError(OperatorError):
    """An output has another number of rows than the requests that were joined."""


class BatchRecord(NamedTuple):
    """One run, for whoever observes.

    Args:
        request_count: Requests joined.
        example_count: Rows, padding left out.
        run_s: Time in the runtime.
        queue_s: How long each request waited.
        has_failed: An operator refused the values.
    """

    request_count: int
    example_count: int
    run_s: float
    queue_s: Sequence[float]
    has_failed: bool


@dataclass(slots=True, eq=False)
class Run:
    """One batch on its way through the runtime; made on the loop, run anywhere, answered on the loop."""

    served: ServedVersion
    jobs: list[Job]
    queue_s: list[float]
    example_count: int
    answers: list[dict[str, Tensor] | Exception] = field(default_factory=list)
    input_s: float = 0.0
    run_s: float = 0.0
    output_s: float = 0.0
    joined_rows: int = 0
    """Rows of the batch that all of it ran in, padding included; 0 where it took several runs."""
    row_problem: str = ""
    """An output had not as many rows as were joined."""
    switch: RunSwitch | None = None
    """Ends it; none where it runs on the loop."""
    slot: AbstractContextManager[object] = NO_SLOT
    """Held while the runtime has it; joining and splitting happen outside."""

    def is_wanted(self, now_s: float) -> bool:
        """Tells whether anybody still waits for it."""
        return any(not job.is_abandoned and (job.deadline_s is None or job.deadline_s > now_s) for job in self.jobs)

    def turn_off(self) -> None:
        """Ends it, where it has a switch."""
        if self.switch is not None:
            self.switch.turn_off()

    @property
    def row_elements(self) -> int:
        """Elements of one example."""
        return self.jobs[0].row_elements


def is_carried_out(run: Run) -> bool:
    """Runs a batch once; False where culprits are to be found in it, which takes many runs. Never raises."""
    try:
        run.answers = list(_run_together(run, run.jobs))
    except Exception as error:
        if isinstance(error, OperatorError) and len(run.jobs) > 1:
            return False
        run.answers = [error] * len(run.jobs)
    return True


def carry_out(run: Run) -> None:
    """Runs a batch; where an operator refuses it, halves it until each culprit stands alone. Never raises."""
    try:
        run.answers = _answer(run, run.jobs)
    except Exception as error:
        run.answers = [error] * len(run.jobs)


def _answer(run: Run, jobs: list[Job]) -> list[dict[str, Tensor] | Exception]:
    try:
        return list(_run_together(run, jobs))
    except RowCountError as error:
        # Halves could fit by chance, and deal one request's answer out to others.
        run.row_problem = run.row_problem or str(error)
        if len(jobs) == 1:
            return [error]
        return [answer for job in jobs for answer in _answer(run, [job])]
    except OperatorError as error:
        if len(jobs) == 1 or (run.switch is not None and run.switch.is_off):
            return [error] * len(jobs)
    middle = len(jobs) // 2
    return _answer(run, jobs[:middle]) + _answer(run, jobs[middle:])


def _run_together(run: Run, jobs: list[Job]) -> list[dict[str, Tensor]]:
    begin_s = time.perf_counter()
    row_counts = [job.example_count for job in jobs]
    rows = sum(row_counts)
    buckets = run.served.config.batch_size_buckets
    padded = bucket_size(rows, buckets) - rows if rows and buckets else 0
    inputs = join([job.inputs for job in jobs], padded)
    joined_s = time.perf_counter()
    with run.slot:
        entered_s = time.perf_counter()
        run_record.begin(run.served.model, run.served.version)
        try:
            outputs = run.served.session.run(inputs, jobs[0].output_names, run.switch)
        finally:
            run_record.end()
        ran_s = time.perf_counter()
    if len(jobs) > 1 or padded:
        _check_rows(outputs, rows + padded)
    parts = split(outputs, row_counts) if len(jobs) > 1 or padded else [outputs]
    if len(jobs) == len(run.jobs):
        run.joined_rows = rows + padded
    run.input_s += joined_s - begin_s
    run.run_s += ran_s - entered_s
    run.output_s += time.perf_counter() - ran_s
    return parts


def _check_rows(outputs: dict[str, Tensor], rows: int) -> None:
    """A batch axis that model.toml claims and the model does not have: such requests are run alone."""
    for name, tensor in outputs.items():
        if tensor.array.shape[:1] != (rows,):
            raise RowCountError(f"output '{name}': expected {rows} rows, got shape {tensor.array.shape}")
