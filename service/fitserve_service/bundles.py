"""Small requests that differ in their contents alone, of one turn of the loop: run, counted and answered together.

A request of its own is leased, read, queued, joined with others, dealt its share of the answer and counted; for a small
model all this takes as long as the run. Requests that fit one template need most of it once for all of them. They go
past the queue, so they may not be many, nor take long (`lanes.rows_past_queue`), and nothing of their version may wait
or run. Wherever something is not as it should be, a row that an operator refuses, a deadline that is near, each of
them goes the way of its own after all: what is special is decided there alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from fitserve_service.batcher import Priority
from fitserve_service.budget import Budget, timing_metadata
from fitserve_service.calls import UnaryCall
from fitserve_service.intake import Intake, order_of
from fitserve_service.runs import Job, Kind, Prepared
from fitserve_service.served_version import Lease
from fitserve_service.status import answering
from fitserve_service.templates import RequestTemplate

_LEAST_BESIDE: Final = 4
"""Where bundles of several kinds have come, a smaller one saves less than being joined with others does."""

_ROOM: Final = 2.0
"""A deadline is near where what is left until then is less than so many times what all of a bundle should take."""

_NEVER: Final = float("inf")

_log = logging.getLogger(__name__)


class _Bundle:
    """Requests of one kind that have come in this turn, and the version that they are leased."""

    __slots__ = ("answered_count", "begins_s", "calls", "deadline_s", "kind", "lease", "messages", "switch_number")

    def __init__(self, lease: Lease, kind: Kind, switch_number: int) -> None:
        self.switch_number = switch_number
        self.lease = lease
        self.kind = kind
        self.calls: list[UnaryCall] = []
        self.messages: list[bytes] = []
        self.begins_s: list[float] = []
        self.deadline_s = _NEVER
        self.answered_count = 0


class Bundles:
    """Takes one method's requests that fit a template. Lives on the loop thread.

    Args:
        method: Name of the method, for the counters.
        intake: Takes those that are not run together.
    """

    def __init__(self, method: str, intake: Intake) -> None:
        self._method = method
        self._intake = intake
        self._engine = intake.engine
        self._open: dict[RequestTemplate, _Bundle] = {}

    def add(self, template: RequestTemplate, call: UnaryCall, message: bytes, begin_s: float) -> None:
        """Takes a request; it is answered in this turn, or later where it has to queue.

        Args:
            template: The one that it fits.
            call: Whom to answer.
            message: The request.
            begin_s: Monotonic time at which it was there.

        Raises:
            ServiceError: it cannot be run, or its caller has too much under way.
        """
        bundle = self._open.get(template) or self._begin(template)
        if bundle is None:
            self._run_alone(template, call, message, begin_s)
            return
        if self._intake.has_admission:
            self._intake.admit(self._method, bundle.lease.served, bundle.kind.example_count, begin_s)
        bundle.calls.append(call)
        bundle.messages.append(message)
        bundle.begins_s.append(begin_s)
        deadline_s = call.deadline_s
        if deadline_s is not None and deadline_s < bundle.deadline_s:
            bundle.deadline_s = deadline_s

    def _begin(self, template: RequestTemplate) -> _Bundle | None:
        # Before the lease: a switch between them is one too many, never one that is missed.
        switch_number = self._intake.switch_number()
        lease = self._intake.open_bundle(template.target)
        if lease is None:
            return None
        kind = template.kind_of(lease.served)
        if kind is None or kind.key is None or self._engine.is_draining:
            lease.release()
            return None
        if not self._open:
            self._engine.gather(self._run_all)
        bundle = self._open[template] = _Bundle(lease, kind, switch_number)
        return bundle

    def _run_all(self) -> None:
        opened, self._open = self._open, {}
        for template, bundle in opened.items():
            try:
                if len(opened) == 1 or len(bundle.calls) >= _LEAST_BESIDE:
                    self._run(template, bundle)
            except Exception:
                _log.exception("a bundle of requests could not be run; each is run for itself")
            finally:
                bundle.lease.release()
            rest = slice(bundle.answered_count, None)
            for each in zip(bundle.calls[rest], bundle.messages[rest], bundle.begins_s[rest], strict=True):
                with answering(each[0]):
                    self._run_alone(template, *each)

    def _run(self, template: RequestTemplate, bundle: _Bundle) -> None:
        """Runs as many as should run at once, and so on; ends at the first part that is to be run otherwise."""
        kind, total = bundle.kind, len(bundle.calls)
        if template.kind_of(bundle.lease.served) is not kind:
            # Since it was opened the version has stopped joining requests.
            return
        if self._intake.switch_number() != bundle.switch_number:
            # Those that came last may have come after another worker answered with the next version.
            return
        rows = total * kind.example_count
        count = self._engine.rows_at_once(bundle.lease.served, kind, rows) // kind.example_count
        if not count or _is_near(bundle, rows):
            return
        for begin in range(0, total, count):
            part = slice(begin, begin + count)
            if not self._is_run(template, bundle, bundle.calls[part], bundle.messages[part], bundle.begins_s[part]):
                return
            bundle.answered_count = min(begin + count, total)

    def _is_run(
        self,
        template: RequestTemplate,
        bundle: _Bundle,
        calls: Sequence[UnaryCall],
        messages: Sequence[bytes],
        begins_s: Sequence[float],
    ) -> bool:
        count, served = len(calls), bundle.lease.served
        started_s = time.monotonic()
        names, examples, key, elements, size_bytes = bundle.kind
        kind = Kind(names, count * examples, key, elements, count * size_bytes)
        job = Job(bundle.lease, Prepared(template.join(messages), kind), None, Priority.PREDICT, _never)
        decoded_s = time.monotonic()
        run = self._engine.run_at_once(job, [started_s - begin_s for begin_s in begins_s])
        if run is None or isinstance(outputs := run.answers[0], Exception):
            return False
        ran_s = time.monotonic()
        answers = template.encode_all(served, outputs, count)
        if answers is None:
            return False
        encoded_s = time.monotonic()
        # Before the answers: whoever has one finds it counted.
        self._engine.count(run)
        elapsed_s = [encoded_s - begin_s for begin_s in begins_s]
        self._intake.observer.on_bundle(self._method, served, elapsed_s, decoded_s - started_s, encoded_s - ran_s)
        timings = timing_metadata(decoded_s - started_s, run.queue_s, ran_s - decoded_s, encoded_s - ran_s)
        for call, answer, timing in zip(calls, answers, timings, strict=True):
            try:
                call.reply(answer, timing)
            except Exception:
                # One request's answer must not cost its neighbours theirs.
                _log.exception("an answer could not be handed over")
        return True

    def _run_alone(self, template: RequestTemplate, call: UnaryCall, message: bytes, begin_s: float) -> None:
        prepare, budget = partial(template.prepare, message), Budget(begin_s)
        order = order_of(call, self._method, template.target, prepare, template.encode, budget)
        call.on_cancel(self._intake.run(order))


def _is_near(bundle: _Bundle, rows: int) -> bool:
    if bundle.deadline_s == _NEVER:
        return False
    expected_s = bundle.lease.served.costs.floor_s(rows, bundle.kind.row_elements)
    return bundle.deadline_s < time.monotonic() + _ROOM * expected_s


def _never(_: Job, __: object) -> None:
    raise AssertionError("a job that stands for a bundle is not queued")
