"""Runs the version labelled `shadow` on a sample of what others answered, unheard, and counts how the two compare.

A request is shadowed once it has been answered, and only while the engine has nothing else to do: it waits for such a
moment, and is dropped only where none comes or too much waits, counted with the reason. Nothing that happens here
reaches the request. All of it lives on the loop thread, but for the comparison of large answers, and for the counts,
which a scrape may read.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple, TypeAlias
from weakref import ref

from fitserve_contract.datatypes import BYTES
from fitserve_contract.labels import SHADOW
from fitserve_contract.tasks import Task
from fitserve_service.agreement import Agreement, compare
from fitserve_service.batcher import Priority
from fitserve_service.calls import Loop, Metadata
from fitserve_service.engine import Completed, Engine, Job, Outcome
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.registry import Registry
from fitserve_service.runs import Prepared
from fitserve_service.served_version import Lease, ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.traffic import Draw, routing_key

MAX_LOOP_BYTES: Final = 256 << 10
"""Inputs and outputs up to which two answers are compared on the loop thread; larger ones are compared beside it."""

MAX_WAITING_BYTES: Final = 64 << 20
"""Of the requests that wait, `_REQUEST_BYTES` each included; one alone may be larger."""

_REQUEST_BYTES: Final = 4096
"""What a request without any values takes: objects of Python and numpy, rounded up."""

MAX_BUSY_S: Final = 30.0
"""How long the engine may be without an idle moment before what has waited as long is dropped."""

MAX_RUN_S: Final = 60.0
"""How long a run of the shadow may take."""

RETRY_S: Final = 0.002

MAX_PAIRS: Final = 1024
"""Pairs of versions that are remembered: a server that lives for years meets more."""


class Dropped(StrEnum):
    """Why a request that was sampled was not run by the shadow."""

    BUSY = "busy"
    """The engine had live requests to run, without a pause, for MAX_BUSY_S."""

    FULL = "full"
    """The requests that wait hold MAX_WAITING_BYTES."""

    GONE = "gone"
    """The label moved, or the version was unloaded or replaced, before its turn."""

    LATE = "late"
    """The run did not end within MAX_RUN_S."""

    DRAINING = "draining"
    """The server ends."""


_DROPPED: Final = {
    Reason.DEADLINE_PASSED: Dropped.LATE,
    Reason.QUEUE_FULL: Dropped.FULL,
    Reason.DRAINING: Dropped.DRAINING,
    Reason.CALLER_CANCELLED: Dropped.DRAINING,
}

_log = logging.getLogger(__name__)


_Pair: TypeAlias = tuple[ref[ServedVersion], ref[ServedVersion]]
"""Two loaded instances: the one that answered and the one that ran unheard."""


class ShadowKey(NamedTuple):
    """The names of a pair of versions: the one that answered and the one that ran unheard."""

    model: str
    live_version: int
    shadow_version: int


@dataclass(slots=True)
class ShadowCounts:
    """What one pair of versions came to; fields as in `fitserve.control.v1.ShadowReport`."""

    sampled_count: int = 0
    compared_count: int = 0
    failed_count: int = 0
    dropped: dict[Dropped, int] = field(default_factory=lambda: dict.fromkeys(Dropped, 0))
    example_count: int = 0
    agreed_count: int = 0
    has_agreement: bool = False
    max_abs_diff: float = 0.0
    live_run_ns: int = 0
    shadow_run_ns: int = 0

    @property
    def dropped_count(self) -> int:
        """Requests that were not run, for any reason."""
        return sum(self.dropped.values())

    @property
    def pending_count(self) -> int:
        """Requests whose run is still to come."""
        return self.sampled_count - self.compared_count - self.failed_count - self.dropped_count

    def add(self, agreement: Agreement | None, live_run_s: float, shadow_run_s: float) -> None:
        """Counts one request that both ran; None: their answers have different forms."""
        if agreement is None:
            self.failed_count += 1
            return
        self.compared_count += 1
        self.example_count += agreement.example_count
        self.agreed_count += agreement.agreed_count or 0
        self.has_agreement = agreement.agreed_count is not None
        self.max_abs_diff = max(self.max_abs_diff, agreement.max_abs_diff)
        self.live_run_ns += round(live_run_s * 1e9)
        self.shadow_run_ns += round(shadow_run_s * 1e9)


@dataclass(frozen=True, slots=True)
class Answered:
    """A live request and its answer.

    Args:
        served: The version that answered.
        inputs: What it was given.
        output_names: What was asked of it.
        example_count: Rows.
        completed: The answer.
    """

    served: ServedVersion
    inputs: dict[str, Tensor]
    output_names: tuple[str, ...]
    example_count: int
    completed: Completed


@dataclass(slots=True)
class _Waiting:
    """A request to be shadowed. It keeps no version loaded: neither the one that answered nor the shadow."""

    model: str
    task: Task | None
    shadow: ref[ServedVersion]
    inputs: dict[str, Tensor]
    output_names: tuple[str, ...]
    example_count: int
    outputs: dict[str, Tensor]
    run_s: float
    counts: ShadowCounts
    size_bytes: int
    since_s: float


class Shadow:
    """The shadow of all models.

    Args:
        registry: Versions and shares.
        engine: Runs the shadow's jobs too.
        loop: The transport's loop.
        draw: Chooses the sample.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        loop: Loop,
        draw: Draw,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._loop = loop
        self._draw = draw
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._idle_s = clock()
        self._is_busy = self._is_scheduled = self._is_timed = False
        self._comparing: ThreadPoolExecutor | None = None
        self._counts: dict[_Pair, tuple[ShadowKey, ShadowCounts]] = {}
        registry.subscribe(self._forget_replaced)

    def counts(self) -> dict[ShadowKey, ShadowCounts]:
        """Returns what each pair of versions came to, the last MAX_PAIRS of them; from any thread.

        A pair counts for the instances that were loaded: it outlives them, and goes once another instance of the same
        name and number is loaded in the place of either.
        """
        return dict(dict(self._counts).values())

    def offer(self, answered: Answered, metadata: Metadata) -> None:
        """Takes an answered request, and shadows it where the sample has it. Never raises."""
        model = answered.served.model
        share = self._registry.traffic(model).shadow_share
        try:
            if share and self._draw.is_in(share, SHADOW, model, routing_key(metadata)):
                self._sample(answered)
        except Exception:
            _log.exception("a request to model '%s' could not be shadowed", model)

    def _sample(self, answered: Answered) -> None:
        try:
            lease = self._registry.lease(answered.served.model, label=SHADOW)
        except ServiceError:
            return
        shadow = lease.served
        lease.release()
        if shadow is answered.served:
            return
        counts = self._counts_of(answered.served, shadow)
        counts.sampled_count += 1
        size_bytes = _size_bytes(answered)
        if not _suits(shadow, answered):
            counts.failed_count += 1
        elif self._waiting and self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            counts.dropped[Dropped.FULL] += 1
        else:
            self._wait(answered, shadow, counts, size_bytes)

    def _wait(self, answered: Answered, shadow: ServedVersion, counts: ShadowCounts, size_bytes: int) -> None:
        waiting = _Waiting(
            model=answered.served.model,
            task=answered.served.task,
            shadow=ref(shadow),
            inputs=answered.inputs,
            output_names=answered.output_names,
            example_count=answered.example_count,
            outputs=answered.completed.outputs,
            run_s=answered.completed.timing.run_s,
            counts=counts,
            size_bytes=size_bytes,
            since_s=self._clock(),
        )
        self._waiting.append(waiting)
        self._waiting_bytes += size_bytes
        self._schedule()

    def _counts_of(self, live: ServedVersion, shadow: ServedVersion) -> ShadowCounts:
        pair = (ref(live), ref(shadow))
        known = self._counts.get(pair)
        if known is None:
            if len(self._counts) >= MAX_PAIRS:
                self._counts.pop(next(iter(self._counts)), None)
            known = self._counts[pair] = (ShadowKey(live.model, live.version, shadow.version), ShadowCounts())
        return known[1]

    def _forget_replaced(self, model: str) -> None:
        """Forgets the pairs of a model in whose place others are loaded; on the thread that loads them."""
        loaded = self._registry.served(model)
        for pair, (key, _) in dict(self._counts).items():
            if key.model == model:
                numbers = (key.live_version, key.shadow_version)
                found = [loaded.get(number) for number in numbers]
                if any(now is not None and now is not then() for now, then in zip(found, pair, strict=True)):
                    self._counts.pop(pair, None)

    def _schedule(self) -> None:
        """Looks again once the arrivals at hand are with the engine: they come first."""
        if not self._is_scheduled and not self._is_busy and self._waiting:
            self._is_scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._is_scheduled = False
        if self._is_busy or not self._waiting:
            return
        now_s = self._clock()
        if self._engine.is_idle():
            self._idle_s = now_s
            self._run(self._take())
            return
        # Where the engine has not been idle since, it was busy all the time that they have waited.
        while self._waiting and now_s - max(self._waiting[0].since_s, self._idle_s) > MAX_BUSY_S:
            self._take().counts.dropped[Dropped.BUSY] += 1
        if self._waiting and not self._is_timed:
            self._is_timed = True
            self._loop.call_later(RETRY_S, self._look_again)

    def _look_again(self) -> None:
        self._is_timed = False
        self._look()

    def _take(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._waiting_bytes -= waiting.size_bytes
        return waiting

    def _run(self, waiting: _Waiting) -> None:
        lease = self._lease(waiting)
        if lease is None:
            waiting.counts.dropped[Dropped.GONE] += 1
            self._schedule()
            return
        try:
            prepared = Prepared.check(lease.served.signature, waiting.inputs, waiting.output_names)
        except ServiceError:
            lease.release()
            waiting.counts.failed_count += 1
            self._schedule()
            return
        self._is_busy = True
        deadline_s = self._clock() + MAX_RUN_S
        self._engine.submit(Job(lease, prepared, deadline_s, Priority.EVALUATE, partial(self._ran, waiting)))

    def _lease(self, waiting: _Waiting) -> Lease | None:
        """Leases the version that the request was sampled for; None where it is the shadow no more."""
        try:
            lease = self._registry.lease(waiting.model, label=SHADOW)
        except ServiceError:
            return None
        if lease.served is waiting.shadow():
            return lease
        lease.release()
        return None

    def _ran(self, waiting: _Waiting, _: Job, outcome: Outcome) -> None:
        if not isinstance(outcome, Completed):
            self._count_refusal(waiting.counts, outcome)
        elif waiting.size_bytes <= MAX_LOOP_BYTES:
            waiting.counts.add(_agreement(waiting, outcome), waiting.run_s, outcome.timing.run_s)
        else:
            if self._comparing is None:
                self._comparing = ThreadPoolExecutor(1, "shadow")
            self._comparing.submit(self._compare_aside, waiting, outcome)
            return
        self._go_on()

    def _compare_aside(self, waiting: _Waiting, outcome: Completed) -> None:
        agreement = _agreement(waiting, outcome)

        def count() -> None:
            waiting.counts.add(agreement, waiting.run_s, outcome.timing.run_s)
            self._go_on()

        self._loop.post(count)

    @staticmethod
    def _count_refusal(counts: ShadowCounts, error: ServiceError) -> None:
        reason = _DROPPED.get(error.reason)
        if reason is None:
            counts.failed_count += 1
        else:
            counts.dropped[reason] += 1

    def _go_on(self) -> None:
        self._is_busy = False
        self._schedule()


def _agreement(live: _Waiting, other: Completed) -> Agreement | None:
    try:
        return compare(live.task, live.outputs, other.outputs, live.example_count)
    except Exception:
        # Counted like answers of different forms: a request that is sampled comes to one count, whatever happens.
        _log.exception("answers of model '%s' could not be compared", live.model)
        return None


def _suits(shadow: ServedVersion, answered: Answered) -> bool:
    try:
        shadow.signature.check(answered.inputs)
        shadow.signature.check_outputs(answered.output_names)
    except ServiceError:
        return False
    return True


def _size_bytes(answered: Answered) -> int:
    tensors = [*answered.inputs.values(), *answered.completed.outputs.values()]
    return _REQUEST_BYTES + sum(map(_tensor_bytes, tensors))


def _tensor_bytes(tensor: Tensor) -> int:
    if tensor.datatype != BYTES:
        return tensor.array.nbytes
    return 8 * tensor.array.size + sum(map(len, tensor.array.flat))
