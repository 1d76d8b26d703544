"""Runs the version labelled `shadow` on a sample of what others answered, unheard, and counts how the two compare.

A request is shadowed once it has been answered, and only while the engine has nothing else to do: what would delay
live requests waits a moment and is then dropped. Nothing that happens here reaches the request. All of it lives on the
loop thread, but for the counts, which a scrape may read.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeAlias
from weakref import ref

from fitserve_contract.datatypes import BYTES
from fitserve_contract.labels import SHADOW
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

MAX_REQUEST_BYTES: Final = 1 << 20
"""Larger ones are left out: comparing them would hold the loop."""

MAX_WAITING: Final = 32
MAX_WAIT_S: Final = 1.0
"""How long an answered request waits for the engine to be idle."""

RETRY_S: Final = 0.002

MAX_PAIRS: Final = 1024
"""Pairs of versions that are remembered: a server that lives for years meets more."""

_DROPPED: Final = frozenset({Reason.DEADLINE_PASSED, Reason.QUEUE_FULL, Reason.DRAINING, Reason.CALLER_CANCELLED})

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
    dropped_count: int = 0
    example_count: int = 0
    agreed_count: int = 0
    has_agreement: bool = False
    max_abs_diff: float = 0.0
    live_run_ns: int = 0
    shadow_run_ns: int = 0

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
    answered: Answered
    lease: Lease
    counts: ShadowCounts
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
        self._is_busy = False
        self._is_scheduled = False
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
        if lease.served is answered.served:
            lease.release()
            return
        counts = self._counts_of(answered.served, lease.served)
        counts.sampled_count += 1
        if len(self._waiting) >= MAX_WAITING or _size_bytes(answered) > MAX_REQUEST_BYTES:
            counts.dropped_count += 1
            lease.release()
        elif not _suits(lease.served, answered):
            counts.failed_count += 1
            lease.release()
        else:
            self._waiting.append(_Waiting(answered, lease, counts, self._clock()))
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
        oldest_s = self._clock() - MAX_WAIT_S
        while self._waiting and self._waiting[0].since_s < oldest_s:
            late = self._waiting.popleft()
            late.counts.dropped_count += 1
            late.lease.release()
        if self._is_busy or not self._waiting:
            return
        if self._engine.is_idle():
            self._run(self._waiting.popleft())
        else:
            self._is_scheduled = True
            self._loop.call_later(RETRY_S, self._look)

    def _run(self, waiting: _Waiting) -> None:
        self._is_busy = True
        answered, deadline_s = waiting.answered, self._clock() + MAX_WAIT_S
        prepared = Prepared.check(waiting.lease.served.signature, answered.inputs, answered.output_names)
        job = Job(waiting.lease, prepared, deadline_s, Priority.EVALUATE, partial(self._ran, waiting))
        self._engine.submit(job)

    def _ran(self, waiting: _Waiting, _: Job, outcome: Outcome) -> None:
        self._is_busy = False
        counts = waiting.counts
        if isinstance(outcome, Completed):
            live = waiting.answered
            counts.add(_agreement(live, outcome), live.completed.timing.run_s, outcome.timing.run_s)
        elif outcome.reason in _DROPPED:
            counts.dropped_count += 1
        else:
            counts.failed_count += 1
        self._schedule()


def _agreement(live: Answered, other: Completed) -> Agreement | None:
    try:
        return compare(live.served.task, live.completed.outputs, other.outputs, live.example_count)
    except Exception:
        # Counted like answers of different forms: a request that is sampled comes to one count, whatever happens.
        _log.exception("answers of model '%s' could not be compared", live.served.model)
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
    return sum(map(_tensor_bytes, tensors))


def _tensor_bytes(tensor: Tensor) -> int:
    if tensor.datatype != BYTES:
        return tensor.array.nbytes
    # Counted as far as the limit goes: a million short strings are too many to look at.
    if tensor.array.size * 8 > MAX_REQUEST_BYTES:
        return tensor.array.size * 8
    return sum(8 + len(element) for element in tensor.array.flat)
