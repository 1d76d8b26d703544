"""Runs a whole set of examples batch by batch, each batch by one version or by several, one run at a time.

A set takes one place in each queue and no more, however large it is: the next batch is queued when the last is back,
so that requests that predict come in between. Lives on the loop thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from fitserve_service.batcher import Priority
from fitserve_service.engine import Engine, Job, Outcome
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.runs import Prepared
from fitserve_service.served_version import Lease, ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.status import incident

MAX_ROWS: Final = 256
"""Examples in one run at most: what waits behind it waits no longer than behind a large request."""


class Tally(Protocol):
    """Takes the answers to a set of examples."""

    def add(self, rows: slice, answers: Sequence[Tensor]) -> None:
        """Takes one batch: each version's output for these rows. Raises ServiceError where they cannot be scored."""
        ...

    def message(self) -> bytes:
        """Writes what it all came to."""
        ...


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """What is to be run.

    Args:
        inputs: Input name to tensor, each with an axis of examples first.
        example_count: Its length, at least 1.
        outputs: Output wanted of each version.
        tally: Takes the answers.
    """

    inputs: Mapping[str, Tensor]
    example_count: int
    outputs: tuple[str, ...]
    tally: Tally


class Series:
    """One set on its way. Holds its leases until it has ended and nothing of it runs any more.

    Args:
        engine: Runs the batches.
        leases: The versions, as many as `examples.outputs`.
        examples: What is run.
        deadline_s: Monotonic time at which the caller stops waiting; None: never.
        on_done: Takes the answer or the error, once, on the loop thread; perhaps before `start` returns.
    """

    def __init__(
        self,
        engine: Engine,
        leases: Sequence[Lease],
        examples: ExampleSet,
        deadline_s: float | None,
        on_done: Callable[[bytes | ServiceError], None],
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._examples = examples
        self._deadline_s = deadline_s
        self._on_done = on_done
        self._size = batch_size([lease.served for lease in leases], examples)
        self._start = 0
        self._answers: list[Tensor] = []
        self._job: Job | None = None
        self._is_over = False

    def start(self) -> None:
        """Queues the first batch."""
        self._next()

    def cancel(self) -> None:
        """Ends it: its caller has gone. A batch that runs already runs to its end."""
        if not self._is_over:
            self._end(ServiceError(Reason.CALLER_CANCELLED, "the caller cancelled"))
            if self._job is not None:
                self._engine.cancel(self._job)

    def _next(self) -> None:
        try:
            self._job = self._make_job()
        except Exception as error:
            self._end(_refusal(error))
            return
        self._engine.submit(self._job)

    def _make_job(self) -> Job:
        served = self._leases[len(self._answers)].served
        inputs = {name: Tensor(each.datatype, each.array[self._rows]) for name, each in self._examples.inputs.items()}
        prepared = Prepared.check(served.signature, inputs, (self._examples.outputs[len(self._answers)],))
        return Job(_Held(served), prepared, self._deadline_s, Priority.EVALUATE, self._took)

    @property
    def _rows(self) -> slice:
        return slice(self._start, min(self._start + self._size, self._examples.example_count))

    def _took(self, _: Job, outcome: Outcome) -> None:
        self._job = None
        if self._is_over:
            self._release()
        elif isinstance(outcome, ServiceError):
            self._end(outcome)
        else:
            self._answers += outcome.outputs.values()
            self._go_on()

    def _go_on(self) -> None:
        try:
            if len(self._answers) == len(self._leases):
                self._examples.tally.add(self._rows, self._answers)
                self._start, self._answers = self._rows.stop, []
            is_done = self._start >= self._examples.example_count
            message = self._examples.tally.message() if is_done else b""
        except Exception as error:
            self._end(_refusal(error))
            return
        if is_done:
            self._end(message)
        else:
            self._next()

    def _end(self, answer: bytes | ServiceError) -> None:
        self._is_over = True
        if self._job is None:
            self._release()
        self._on_done(answer)

    def _release(self) -> None:
        for lease in self._leases:
            lease.release()


def batch_size(versions: Sequence[ServedVersion], examples: ExampleSet) -> int:
    """Chooses how many examples go into one run: as many as every version takes at once, at most MAX_ROWS."""
    return max(1, min(MAX_ROWS, examples.example_count, *map(_largest, versions)))


def _largest(served: ServedVersion) -> int:
    if served.config.max_batch_size:
        return min(served.config.max_batch_size, served.config.max_queued_examples)
    most = served.signature.row_limit or MAX_ROWS
    # Without a batch axis a version takes what its first axis says; one that is free but mixes rows takes any.
    first = [spec.shape[0] for spec in served.signature.inputs if spec.shape]
    return next((axis for axis in first if isinstance(axis, int)), most)


class _Held:
    """A lease for a job of a series: the series itself keeps the version."""

    def __init__(self, served: ServedVersion) -> None:
        self.served = served

    def release(self) -> None:
        """Does nothing: the series gives the version back."""


def _refusal(error: Exception) -> ServiceError:
    return error if isinstance(error, ServiceError) else incident("series", error)
