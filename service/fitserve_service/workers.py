"""The parent of several workers: one port, one metrics port, one word on what is ready, and nobody stays dead.

It holds neither grpc nor ONNX Runtime, so it may start processes at any time and takes little memory. All decisions are
made on the thread that calls `run`; links, signals and the metrics port hand it callbacks. It never waits for a worker:
one that hangs costs the others nothing.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from typing import Final

from fitserve_service.listening import ListenError, PortClaim, is_unix
from fitserve_service.metrics_port import MetricsPort
from fitserve_service.pages_http import Request
from fitserve_service.settings import ServerSettings
from fitserve_service.unix_socket import SocketClaim
from fitserve_service.worker_agreement import Exposition, grown, merge_expositions, parent_exposition, read_exposition
from fitserve_service.worker_crashes import WorkerCrashes
from fitserve_service.worker_errands import Errands
from fitserve_service.worker_link import Message
from fitserve_service.worker_pages import WorkerPages, read_content
from fitserve_service.worker_process import BackOff, WorkerProcess, end_text, start_worker
from fitserve_service.worker_settings import settings_fields
from fitserve_service.worker_shared import NOTHING_SHARED, WorkerShared
from fitserve_service.worker_switches import WorkerSwitches
from fitserve_service.worker_watch import LOOK_S, find_hung, how_it_hangs, is_late

_CATCH_UP_S: Final = 10.0
"""How long the first workers wait for each other where they have not loaded the same versions."""

_MOST_PAGES: Final = 64
"""Pages that a worker may have been asked for and not have sent."""

_METRICS: Final = Request("/metrics")

_log = logging.getLogger(__name__)


class WorkersError(Exception):
    """The workers cannot start; the message says why."""


class Workers:
    """Starts workers, restarts them, and ends them. `run` once; `stop` and `pages` from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._live: set[WorkerProcess] = set()
        self._back_offs = [BackOff() for _ in range(settings.workers)]
        self._switches = WorkerSwitches(self._live, settings.workers, settings.poll_interval_s, self._commit)
        self._errands = Errands(self._switches.after)
        self._unloaded: set[str] = set()
        self._crashes = WorkerCrashes(settings, self._live)
        self._coupled: dict[str, str] = {}
        self._restart_count = 0
        self._lost: Exposition = {}
        self._shared: WorkerShared | None = None
        self._is_settled = False
        self._text = ""
        self._has_said = False
        self._is_stopping = False
        self._refusal = ""
        self._say: Callable[[str], None] = lambda _: None

    def run(self, say: Callable[[str], None]) -> None:
        """Serves until `stop`, or until the first workers refuse to start.

        Args:
            say: Takes the line that tells that all is ready.

        Raises:
            WorkersError: a port cannot be had, or the first workers cannot start.
        """
        self._say = say
        claim, metrics = self._take_ports()
        self._settings = replace(
            self._settings,
            port=claim.port if isinstance(claim, PortClaim) else self._settings.port,
            metrics_port=metrics.port if metrics else None,
        )
        try:
            self._shared = _open_shared(self._settings.workers) if self._settings.workers > 1 else None
            for number in range(self._settings.workers):
                self._start(number)
            self._look()
            while self._live or not self._is_stopping:
                self._turn()
        finally:
            claim.close()
            if metrics is not None:
                metrics.close()
            if self._shared is not None:
                self._shared.close()
        if self._refusal:
            raise WorkersError(self._refusal)

    def stop(self) -> None:
        """Has all workers drain and end."""
        self._events.put(self._stop)

    def reload(self) -> None:
        """Has all workers read certificates and the access file anew."""
        self._events.put(self._reload)

    def ask_pages(self, request: Request, *, is_for_all: bool) -> Future[list[Future[Message]]]:
        """Asks workers that listen for a page, all of them or one; from any thread."""
        asked: Future[list[Future[Message]]] = Future()
        self._events.put(lambda: asked.set_result(self._ask_pages(request, is_for_all=is_for_all)))
        return asked

    def is_ready(self) -> bool:
        """Tells, from any thread, whether calls are taken, and all workers answer alike."""
        is_settled = self._is_settled and any(worker.is_settled for worker in tuple(self._live))
        return is_settled and not self._is_stopping and not self.disagreement()

    def disagreement(self) -> str:
        """Says, from any thread, what the workers lastingly differ in; empty where they do not."""
        return "; ".join(self._switches.lasting().values())

    def metrics(self) -> Exposition:
        """Gives, from any thread, the metrics of all workers as last asked for, those that ended included."""
        disagreeing = tuple(self._switches.lasting())
        own = parent_exposition(self._restart_count, self._crashes.totals(), tuple(self._crashes.aside), disagreeing)
        return merge_expositions([*(worker.exposition for worker in tuple(self._live)), self._lost, own])

    def _take_ports(self) -> tuple[PortClaim | SocketClaim, MetricsPort | None]:
        settings = self._settings
        claim: PortClaim | SocketClaim
        try:
            if is_unix(settings.host):
                claim = SocketClaim(settings.host)
            else:
                claim = PortClaim(settings.host, settings.port, is_shared=settings.workers > 1)
        except ListenError as error:
            raise WorkersError(str(error)) from None
        if settings.metrics_port is None:
            return claim, None
        pages = WorkerPages(self)
        try:
            return claim, MetricsPort(settings.metrics_host, settings.metrics_port, pages.answer, tick=self._refresh)
        except ListenError as error:
            claim.close()
            raise WorkersError(f"--metrics-port: {error}") from None

    def _refresh(self) -> None:
        """Keeps the metrics that outlive a worker from being older than a tick."""

        def refresh() -> None:
            self._ask_pages(_METRICS, is_for_all=True)

        self._events.put(refresh)

    def _turn(self) -> None:
        now_s = time.monotonic()
        if self._timers and self._timers[0][0] <= now_s:
            return self._call(heapq.heappop(self._timers)[2])
        try:
            event = self._events.get(timeout=self._timers[0][0] - now_s if self._timers else None)
        except queue.Empty:
            return None
        return self._call(event)

    def _call(self, event: Callable[[], None]) -> None:
        try:
            event()
        except Exception:
            # One message's trouble must not end the workers.
            _log.exception("workers: an event failed")

    def _start(self, number: int) -> None:
        if self._is_stopping:
            return
        try:
            shared = self._shared.descriptors if self._shared is not None else ()
            worker = start_worker(number, time.monotonic(), shared)
        except OSError as error:
            if not self._has_said:
                return self._refuse(f"worker {number} cannot be started: {error.strerror}")
            # Memory or processes have run out, which may pass; those that live go on.
            wait_s = self._back_offs[number].after(0.0)
            _log.error("worker %d could not be started (%s); trying again in %g s", number, error.strerror, wait_s)
            return self._after(wait_s, partial(self._start, number))
        self._live.add(worker)
        worker.tell(
            "begin",
            number=number,
            settings=settings_fields(self._settings),
            unloaded=sorted(self._unloaded),
            set_aside=self._crashes.fields(),
            coupled=self._coupled,
            **(self._shared.fields() if self._shared is not None else NOTHING_SHARED),
        )
        threading.Thread(target=self._listen, args=(worker,), name=f"worker-{number}", daemon=True).start()

    def _listen(self, worker: WorkerProcess) -> None:
        try:
            while (message := worker.link.receive()) is not None:
                self._events.put(partial(getattr(self, f"_on_{message['kind']}"), worker, message))
        except Exception:
            # Whatever has overwritten its memory, it is no worker any more; another takes its place.
            _log.exception("worker %d says what nobody understands; it is ended", worker.number)
            worker.process.kill()
        worker.process.wait()
        self._events.put(partial(self._ended, worker))

    def _ended(self, worker: WorkerProcess) -> None:
        self._live.discard(worker)
        worker.link.close()
        running = self._crashes.note(worker, is_starting=not self._has_said)
        self._switches.bar(self._crashes.aside)
        worker.record.close()
        if self._shared is not None:
            self._shared.give_back(worker.number)
        for page in worker.pages.values():
            page.cancel()
        self._lost = merge_expositions([self._lost, grown(worker.exposition)])
        self._switches.leave(worker)
        self._errands.leave(worker)
        if self._is_stopping:
            return
        why = worker.refusal or end_text(worker.process.returncode)
        # Before the first READY only a model's crash is worth another try: it is set aside in the end.
        if not self._has_said and (worker.refusal or not running or not self._settings.crash_limit):
            return self._refuse(worker.refusal or f"worker {worker.number} ended before it was ready ({why})")
        self._restart_count += 1
        wait_s = self._back_offs[worker.number].after(time.monotonic() - worker.began_s)
        _log.error("worker %d ended (%s); starting another in %g s", worker.number, why, wait_s)
        self._after(wait_s, partial(self._start, worker.number))

    def _refuse(self, sentence: str) -> None:
        """Ends the server, which nobody has called yet: `run` raises the sentence."""
        self._refusal, self._is_stopping = self._refusal or sentence, True
        for worker in self._live:
            worker.process.kill()

    def _after(self, wait_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + wait_s, next(self._numbers), callback))

    def _stop(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            _log.info("stopping %d workers", len(self._live))
            for worker in self._live:
                worker.tell("drain")

    def _reload(self) -> None:
        for worker in self._live:
            worker.tell("reload")

    def _look(self) -> None:
        """Ends workers that hang, and names what workers lastingly differ in; now and then."""
        self._after(LOOK_S, self._look)
        if self._is_stopping:
            return
        for worker in find_hung(self._live):
            limit_s = worker.unanswered_looks * LOOK_S
            text = f"worker {worker.number} has not answered for {limit_s:g} s: {how_it_hangs(worker)}"
            if self._has_said:
                _log.error("%s; ending it", text)
            else:
                worker.refusal = text
            worker.process.kill()
        if self._switches.look():
            self._tell_settled()

    def _tell_settled(self) -> None:
        if self._is_settled:
            is_agreed = not self._switches.lasting()
            for worker in self._live:
                if worker.is_listening:
                    worker.tell("settle", is_agreed=is_agreed)

    def _commit(self, number: int) -> None:
        if self._shared is not None:
            self._shared.switch(number)

    def _ask_pages(self, request: Request, *, is_for_all: bool) -> list[Future[Message]]:
        # Before the first listens, one that still loads tells how far it is.
        listening = [w for w in self._live if w.is_listening] or [w for w in self._live if w.has_spoken]
        asked = []
        # One that has stopped answering is not asked for ever: what it was sent and is to send would pile up.
        able = [worker for worker in listening if len(worker.pages) < _MOST_PAGES and not is_late(worker)]
        for worker in able if is_for_all else able[:1]:
            number, page = next(self._numbers), Future[Message]()
            if request.path == _METRICS.path:
                page.add_done_callback(partial(_keep_exposition, worker))
            worker.pages[number] = page
            worker.tell("page", id=number, **asdict(request))
            asked.append(page)
        return asked

    def _on_pong(self, worker: WorkerProcess, _: Message) -> None:
        worker.unanswered_looks = 0

    def _on_waiting(self, worker: WorkerProcess, _: Message) -> None:
        worker.is_waiting = True
        if self._shared is None:
            return worker.tell("go_on")
        self._switches.admit(is_due=self._has_said)
        return self._after(_CATCH_UP_S, partial(self._switches.admit, is_due=True))

    def _on_listening(self, worker: WorkerProcess, message: Message) -> None:
        worker.is_listening = True
        _log.info("worker %d takes calls", worker.number)
        self._text = message["text"]
        if sum(other.is_listening for other in self._live) == self._settings.workers:
            self._is_settled = True
        self._tell_settled()

    def _on_settled(self, worker: WorkerProcess, _: Message) -> None:
        """Says that all is ready once every worker says so itself: whoever reads it may ask at once."""
        worker.is_settled = True
        if not self._has_said and sum(other.is_settled for other in self._live) == self._settings.workers:
            self._has_said = True
            self._say(self._text)

    def _on_refused(self, worker: WorkerProcess, message: Message) -> None:
        worker.refusal = message["text"]

    def _on_has(self, worker: WorkerProcess, message: Message) -> None:
        if not worker.has_spoken:
            worker.has_spoken, worker.unanswered_looks = True, 0
        if message["model"] is not None:
            self._switches.report(worker, message)

    def _on_prepared(self, worker: WorkerProcess, message: Message) -> None:
        self._switches.accept(worker, message)

    def _on_ask(self, worker: WorkerProcess, message: Message) -> None:
        action, model = message["action"], message["model"]
        if action == "load":
            self._unloaded.discard(model)
            self._crashes.forgive(model)
            self._switches.bar(self._crashes.aside)
        elif action == "unload" and message["is_known"]:
            self._unloaded.add(model)
        self._errands.begin(worker, message["id"], action, model, self._live)

    def _on_carried_out(self, worker: WorkerProcess, message: Message) -> None:
        self._errands.carried_out(message["id"], worker, message["error"])

    def _on_coupled(self, worker: WorkerProcess, message: Message) -> None:
        digest, problem = message["digest"], message["problem"]
        self._coupled[digest] = problem
        for other in self._live - {worker}:
            other.tell("stop_joining", digest=digest, problem=problem)

    def _on_page(self, worker: WorkerProcess, message: Message) -> None:
        page = worker.pages.pop(message["id"])
        if not page.cancelled():
            page.set_result(message)


def _open_shared(worker_count: int) -> WorkerShared:
    try:
        return WorkerShared(worker_count)
    except OSError as error:
        text = f"expected a folder for temporary files that takes some, got {error.strerror}: '{error.filename}'"
        raise WorkersError(f"TMPDIR: {text}; make room there, or set TMPDIR to another folder") from None


def _keep_exposition(worker: WorkerProcess, page: Future[Message]) -> None:
    if not page.cancelled():
        worker.exposition = read_exposition(read_content(page.result()).decode())
