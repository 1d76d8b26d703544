"""What Predict, Evaluate and ModelInfer have in common: lease, decode, check, run, count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fitserve_contract.labels import CANARY
from fitserve_service.batcher import Priority
from fitserve_service.budget import Budget
from fitserve_service.calls import Metadata, UnaryCall
from fitserve_service.engine import Completed, Engine, Job, Outcome
from fitserve_service.errors import Code, ServiceError
from fitserve_service.registry import Lease, Registry, ServedVersion
from fitserve_service.series import MAX_ROWS, ExampleSet, Series
from fitserve_service.shadow import Answered, Shadow
from fitserve_service.signature import Tensor
from fitserve_service.status import incident
from fitserve_service.tracing import RequestTracer
from fitserve_service.traffic import Draw, routing_key

Answer: TypeAlias = bytes | ServiceError
Encode: TypeAlias = "Callable[[ServedVersion, Completed], bytes]"
Admit: TypeAlias = Callable[[ServedVersion, int], None]
"""Is told of a request's version and number of examples before it is queued; raises ServiceError where its caller has
too much under way."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which version a request names; neither version nor label: the model's default."""

    model: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One request to run.

    Args:
        method: Name of the method, for the counters.
        target: Which version.
        prepare: Reads the inputs and the names of the outputs wanted (none: all), once the version is known; raises
            ServiceError where they cannot be taken.
        deadline_s: Monotonic time at which the caller stops waiting; None: never.
        priority: Its class.
        metadata: What the caller sent along; its routing key decides which share of the traffic it belongs to.
        budget: Where its time goes, begun when its message was there.
    """

    method: str
    target: Target
    prepare: Callable[[ServedVersion], tuple[dict[str, Tensor], Sequence[str]]]
    deadline_s: float | None
    priority: Priority = Priority.PREDICT
    metadata: Metadata = ()
    budget: Budget = field(default_factory=Budget)

    @property
    def is_open(self) -> bool:
        """An answer is wanted, from whatever version the server chooses: such requests are shared out."""
        return self.target.version is None and self.target.label is None and self.priority is Priority.PREDICT


@dataclass(frozen=True, slots=True)
class SeriesOrder:
    """A whole set of examples to run.

    Args:
        method: Name of the method, for the counters.
        targets: The versions, each of which runs every example.
        prepare: Gives the examples once the versions are known; raises ServiceError where they cannot be taken.
        deadline_s: Monotonic time at which the caller stops waiting; None: never.
    """

    method: str
    targets: tuple[Target, ...]
    prepare: Callable[[Sequence[ServedVersion]], ExampleSet]
    deadline_s: float | None


class RequestObserver(Protocol):
    """Is told of every request, on the loop thread."""

    def on_request(self, method: str, served: ServedVersion | None, code: Code, elapsed_s: float) -> None:
        """Takes the end of a request; `served` is None where no version was found for it."""
        ...

    def on_budget(self, served: ServedVersion, budget: Budget) -> None:
        """Takes where the time of a request went that was answered."""
        ...


class Intake:
    """Takes orders to the engine. Lives on the loop thread."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        observer: RequestObserver,
        shadow: Shadow,
        draw: Draw,
        clock: Callable[[], float] = time.monotonic,
        tracer: RequestTracer | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._tracer = tracer
        self._admit = admit
        self._registry = registry
        self._shadow = shadow
        self._draw = draw
        self._engine = engine
        self._observer = observer
        self._clock = clock

    def run(self, order: Order, encode: Encode, on_done: Callable[[Answer], None]) -> Callable[[], None]:
        """Runs an order.

        Args:
            order: The request.
            encode: Writes the answer.
            on_done: Takes the answer or the error, once, on the loop thread, when it is counted; perhaps before this
                returns.

        Returns:
            A function that takes the order back where it has not run yet.

        Raises:
            ServiceError: it cannot be run; `on_done` is not called.
        """
        budget, served = order.budget, None
        try:
            lease = self._lease(order)
            served = lease.served
            job = self._job(order, lease)
        except Exception as error:
            budget.decoded(self._clock())
            self._count(order, served, error.code if isinstance(error, ServiceError) else Code.INTERNAL)
            raise

        def finish(outcome: Outcome) -> None:
            budget.ran(outcome.timing.run_s if isinstance(outcome, Completed) else 0.0, self._clock())
            answer = _answer(order.method, lease.served, outcome, encode)
            budget.encoded(self._clock())
            # Before the answer: whoever has it finds it counted.
            self._count(order, lease.served, answer.code if isinstance(answer, ServiceError) else Code.OK)
            on_done(answer)
            if isinstance(outcome, Completed) and order.is_open:
                self._offer(order, lease.served, job, outcome)

        job.on_done = finish
        budget.decoded(self._clock())
        self._engine.submit(job)
        return lambda: self._engine.cancel(job)

    def run_series(self, order: SeriesOrder, on_done: Callable[[Answer], None]) -> Callable[[], None]:
        """Runs a set of examples, counted as one request; arguments, result and errors as for `run`."""
        begin_s = self._clock()
        leases: list[Lease] = []
        try:
            for target in order.targets:
                lease = self._registry.lease(target.model, version=target.version, label=target.label)
                leases.append(lease)
            examples = order.prepare([lease.served for lease in leases])
            if self._admit is not None:
                # A series has one batch under way, however long it is.
                self._admit(leases[0].served, min(examples.example_count, MAX_ROWS))
        except BaseException as error:
            for lease in leases:
                lease.release()
            code = error.code if isinstance(error, ServiceError) else Code.INTERNAL
            self._observer.on_request(order.method, _first(leases), code, self._clock() - begin_s)
            raise

        def finish(answer: Answer) -> None:
            code = answer.code if isinstance(answer, ServiceError) else Code.OK
            self._observer.on_request(order.method, _first(leases), code, self._clock() - begin_s)
            on_done(answer)

        series = Series(self._engine, leases, examples, order.deadline_s, finish)
        series.start()
        return series.cancel

    def _count(self, order: Order, served: ServedVersion | None, code: Code) -> None:
        self._observer.on_request(order.method, served, code, order.budget.total_s)
        if code is Code.OK and served is not None:
            self._observer.on_budget(served, order.budget)
        if self._tracer is not None:
            self._tracer.on_request(order.method, served, code, order.budget, order.metadata)

    def _offer(self, order: Order, served: ServedVersion, job: Job, completed: Completed) -> None:
        if self._registry.traffic(served.model).shadow_share:
            answered = Answered(served, job.inputs, job.output_names, job.example_count, completed)
            self._shadow.offer(answered, order.metadata)

    def _lease(self, order: Order) -> Lease:
        target = order.target
        if order.is_open and (share := self._registry.traffic(target.model).canary_share):
            key = routing_key(order.metadata)
            if self._draw.is_in(share, CANARY, target.model, key):
                # A canary that is not there, or not READY, costs nobody an answer.
                with contextlib.suppress(ServiceError):
                    return self._registry.lease(target.model, label=CANARY)
        return self._registry.lease(target.model, version=target.version, label=target.label)

    def _job(self, order: Order, lease: Lease) -> Job:
        """Makes the job; the lease is given back where that fails."""
        try:
            inputs, names = order.prepare(lease.served)
            signature = lease.served.signature
            example_count = signature.check(inputs)
            outputs = signature.check_outputs(names)
            if self._admit is not None:
                self._admit(lease.served, example_count)
        except BaseException:
            lease.release()
            raise
        return Job(lease, inputs, outputs, example_count, order.deadline_s, order.priority, _unanswered)


def answer_call(call: UnaryCall, budget: Budget | None = None) -> Callable[[Answer], None]:
    """Makes what answers a unary call, and tells the caller where its time went."""

    def answer(result: Answer) -> None:
        if isinstance(result, ServiceError):
            call.fail(result)
        else:
            call.reply(result, budget.metadata() if budget else ())

    return answer


def _first(leases: Sequence[Lease]) -> ServedVersion | None:
    return leases[0].served if leases else None


def _answer(method: str, served: ServedVersion, outcome: Outcome, encode: Encode) -> Answer:
    if isinstance(outcome, ServiceError):
        return outcome
    try:
        return encode(served, outcome)
    except ServiceError as error:
        return error
    except Exception as error:
        return incident(method, error)


def _unanswered(_: Outcome) -> None:
    raise AssertionError("a job is given its on_done before it is submitted")
