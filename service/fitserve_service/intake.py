"""What Predict, Evaluate and ModelInfer have in common: lease, decode, check, run, count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias

from fitserve_contract.datatypes import BYTES
from fitserve_contract.labels import CANARY
from fitserve_service.batcher import Priority
from fitserve_service.budget import Budget
from fitserve_service.calls import Metadata, UnaryCall
from fitserve_service.engine import Completed, Engine, Job, Outcome
from fitserve_service.errors import Code, ServiceError
from fitserve_service.registry import Registry
from fitserve_service.requests.answer_size import check_answer
from fitserve_service.requests.codec_thread import CodecThread
from fitserve_service.requests.contents import LARGE_BYTES
from fitserve_service.requests.message_reader import Keep, Resume, run_now
from fitserve_service.runs import Prepared
from fitserve_service.series import MAX_ROWS, ExampleSet, Series
from fitserve_service.served_version import Lease, ServedVersion
from fitserve_service.shadow import Answered, Shadow
from fitserve_service.status import incident
from fitserve_service.tracing import RequestTracer
from fitserve_service.traffic import Draw, routing_key

Answer: TypeAlias = bytes | ServiceError
Prepare: TypeAlias = Callable[[ServedVersion], Prepared]
Encode: TypeAlias = Callable[[ServedVersion, Completed], bytes]
Admit: TypeAlias = Callable[[ServedVersion, int], None]
"""Is told of a request's version and number of examples before it is queued; raises ServiceError where its caller has
too much under way."""


_SLOW_ELEMENTS: Final = 1 << 12
"""What is written element by element at once, within about a millisecond."""


class Target(NamedTuple):
    """Which version a request names; neither version nor label: the model's default."""

    model: str
    version: int | None = None
    label: str | None = None


class Order(Job):
    """One request to run, and how it is answered. What it is as a job is known once its version is.

    Args:
        method: Name of the method, for the counters.
        target: Which version.
        prepare: Reads the request and holds it against the version, once that is known; raises ServiceError where it
            cannot be taken.
        encode: Writes the answer.
        on_answer: Takes the answer or the error, once, on the loop thread, when it is counted; perhaps before
            `Intake.run` returns.
        deadline_s: Monotonic time at which the caller stops waiting; None: never.
        priority: Its class.
        metadata: What the caller sent along; its routing key decides which share of the traffic it belongs to.
        budget: Where its time goes, begun when its message was there.
    """

    __slots__ = ("budget", "encode", "is_open", "metadata", "method", "on_answer", "prepare", "target")

    def __init__(
        self,
        method: str,
        target: Target,
        prepare: Prepare,
        encode: Encode,
        on_answer: Callable[[Answer], None],
        deadline_s: float | None,
        priority: Priority,
        metadata: Metadata,
        budget: Budget,
    ) -> None:
        self.method = method
        self.target = target
        self.prepare = prepare
        self.encode = encode
        self.on_answer = on_answer
        self.deadline_s = deadline_s
        self.priority = priority
        self.metadata = metadata
        self.budget = budget
        self.is_abandoned = False
        # An answer is wanted, from whatever version the server chooses: such requests are shared out.
        self.is_open = target[1] is None and target[2] is None and priority is Priority.PREDICT


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

    def on_request(
        self, method: str, served: ServedVersion | None, code: Code, elapsed_s: float, budget: Budget | None = None
    ) -> None:
        """Takes the end of a request.

        Args:
            method: Its name.
            served: Who answered; None where no version was found for it.
            code: How it ended.
            elapsed_s: Its time.
            budget: Where that went; None where it was not answered, or not by one run.
        """
        ...

    def on_bundle(
        self, method: str, served: ServedVersion, elapsed_s: Sequence[float], decode_s: float, encode_s: float
    ) -> None:
        """Takes the end of requests that are answered together.

        Args:
            method: Its name.
            served: Who answered.
            elapsed_s: The time of each.
            decode_s: Reading them all.
            encode_s: Writing their answers.
        """
        ...


class Intake:
    """Takes orders to the engine. Lives on the loop thread.

    Attributes:
        engine: Runs them.
        observer: Is told of them.
        has_admission: Callers have shares of the queues, so that `admit` is to be asked.
        codec: Reads requests and writes answers that take long; None: that happens on the loop.
        keep: See `message_reader.Keep`.
    """

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
        codec: CodecThread | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.codec = codec
        self.keep: Keep = keep or _keep_nothing
        self._tracer = tracer
        self._admit = admit
        self.has_admission = admit is not None
        self._registry = registry
        self._shadow = shadow
        self._draw = draw
        self._clock = clock
        self.engine = engine
        self.observer = observer

    def run(self, order: Order) -> Callable[[], None]:
        """Runs an order.

        Returns:
            A function that takes the order back where it has not run yet: its caller has gone.

        Raises:
            ServiceError: it cannot be run; its `on_answer` is not called.
        """
        lease: Lease | None = None
        try:
            lease = self._lease(order)
            served = lease.served
            prepared = order.prepare(served)
            if self._admit is not None:
                self._admit(served, prepared.kind.example_count)
        except BaseException as error:
            order.budget.decoded(self._clock())
            if lease is not None:
                lease.release()
            code = error.code if isinstance(error, ServiceError) else Code.INTERNAL
            self._count(order, lease.served if lease else None, code)
            raise
        # It leads to the request, which is not needed any more.
        order.prepare = _prepared
        order.on_done = self._finish
        order.bind(lease, prepared, order.priority)
        order.budget.decoded(self._clock())
        self.engine.submit(order)
        return partial(self.engine.cancel, order)

    def _finish(self, order: Order, outcome: Outcome) -> None:
        """Answers an order that has come back, on the loop thread."""
        came_s = self._clock()
        if order.size_bytes >= LARGE_BYTES and not self._is_shadowed(order):
            order.inputs = {}
        if not isinstance(outcome, Completed):
            self._answer(order, outcome, came_s, outcome)
        elif self.codec is not None and _is_slow(order, outcome):
            self.codec.write(partial(_encoded, order, outcome), partial(self._answer, order, outcome, came_s))
        else:
            self._answer(order, outcome, came_s, _encoded(order, outcome))

    def _answer(self, order: Order, outcome: Outcome, came_s: float, encoded: Answer | Exception) -> None:
        served, budget = order.lease.served, order.budget
        if isinstance(outcome, Completed):
            budget.answered(outcome.timing.run_s, came_s, self._clock())
        else:
            budget.answered(0.0, came_s, came_s)
        answer = encoded if isinstance(encoded, bytes | ServiceError) else incident(order.method, encoded)
        # Before the answer: whoever has it finds it counted.
        self._count(order, served, answer.code if isinstance(answer, ServiceError) else Code.OK)
        completed = outcome if isinstance(outcome, Completed) and self._is_shadowed(order) else None
        if completed is None and isinstance(outcome, Completed) and isinstance(answer, bytes):
            # The transport copies the answer: what it was written from is not to stay beside both.
            outcome.outputs.clear()
        order.on_answer(answer)
        if completed is not None:
            self._offer(order, served, completed)

    def switch_number(self) -> int:
        """Returns the number of the last switch of versions; see `Registry.switch_number`."""
        return self._registry.switch_number()

    def open_bundle(self, target: Target) -> Lease | None:
        """Leases the version of requests that are to be run together.

        Returns:
            None where `run` has to look at each for itself: shares of the traffic are drawn for each, each is traced,
            or the version is not to be had, which each is told.
        """
        traffic = self._registry.traffic(target.model)
        is_open = target.version is None and target.label is None
        if self._tracer is not None or (is_open and (traffic.canary_share or traffic.shadow_share)):
            return None
        with contextlib.suppress(ServiceError):
            return self._registry.lease(target.model, version=target.version, label=target.label)
        return None

    def admit(self, method: str, served: ServedVersion, example_count: int, begin_s: float) -> None:
        """Asks whether the caller of the method that runs may queue a request; counts one that may not.

        Raises:
            ServiceError: it has too much under way.
        """
        assert self._admit is not None
        try:
            self._admit(served, example_count)
        except ServiceError as error:
            self.observer.on_request(method, served, error.code, self._clock() - begin_s)
            raise

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
            self.observer.on_request(order.method, _first(leases), code, self._clock() - begin_s)
            raise

        def finish(answer: Answer) -> None:
            code = answer.code if isinstance(answer, ServiceError) else Code.OK
            self.observer.on_request(order.method, _first(leases), code, self._clock() - begin_s)
            on_done(answer)

        series = Series(self.engine, leases, examples, order.deadline_s, finish)
        series.start()
        return series.cancel

    def _count(self, order: Order, served: ServedVersion | None, code: Code) -> None:
        budget = order.budget
        self.observer.on_request(order.method, served, code, budget.total_s, budget if code is Code.OK else None)
        if self._tracer is not None:
            self._tracer.on_request(order.method, served, code, order.budget, order.metadata)

    def _is_shadowed(self, order: Order) -> bool:
        # A share may be set once the inputs are gone.
        has_inputs = bool(order.inputs) or not order.size_bytes
        return has_inputs and order.is_open and self._registry.traffic(order.target.model).shadow_share > 0

    def _offer(self, order: Order, served: ServedVersion, completed: Completed) -> None:
        answered = Answered(served, order.inputs, order.output_names, order.example_count, completed)
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


class CallAnswer:
    """Answers a unary call.

    Args:
        call: Whom.
        budget: Where its time went, which the caller is told too; None: it is not known.
    """

    __slots__ = ("_budget", "_call")

    def __init__(self, call: UnaryCall, budget: Budget | None = None) -> None:
        self._call = call
        self._budget = budget

    def __call__(self, answer: Answer) -> None:
        """Answers, once."""
        if isinstance(answer, ServiceError):
            self._call.fail(answer)
        elif self._budget is None:
            self._call.reply(answer)
        else:
            self._call.reply(answer, self._budget.metadata())


def order_of(
    call: UnaryCall,
    method: str,
    target: Target,
    prepare: Prepare,
    encode: Encode,
    budget: Budget,
    priority: Priority = Priority.PREDICT,
) -> Order:
    """Makes the order of a unary call, which is told where its time went; arguments as of `Order`."""
    answer = CallAnswer(call, budget)
    return Order(method, target, prepare, encode, answer, call.deadline_s, priority, call.metadata, budget)


def _first(leases: Sequence[Lease]) -> ServedVersion | None:
    return leases[0].served if leases else None


def _prepared(_: ServedVersion) -> Prepared:
    raise AssertionError("an order is prepared once")


def _keep_nothing() -> Resume:
    return run_now


def _is_slow(order: Order, completed: Completed) -> bool:
    """Tells whether an answer takes long to write: sums over many examples, or many elements of text."""
    if order.priority is Priority.EVALUATE:
        return order.example_count > _SLOW_ELEMENTS
    return any(tensor.datatype == BYTES and tensor.array.size > _SLOW_ELEMENTS for tensor in completed.outputs.values())


def _encoded(order: Order, completed: Completed) -> Answer:
    served = order.lease.served
    try:
        if order.priority is Priority.PREDICT:
            check_answer(served.signature, completed.outputs)
        return order.encode(served, completed)
    except ServiceError as error:
        # Its traceback would keep the outputs until the answer is out.
        return error.with_traceback(None)
    except Exception as error:
        return incident(order.method, error)
