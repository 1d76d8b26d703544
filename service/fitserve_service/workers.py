"""The parent of several workers: one port, one metrics port, one word on what is ready, and nobody stays dead.

It holds neither grpc nor ONNX Runtime, so it may start processes at any time and takes little memory. All decisions are
made on the thread that calls `run`; links, signals and the metrics port hand it callbacks.
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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from fitserve_service.access.shared_quotas import QuotaMemory
from fitserve_service.crashes import Crashes, SetAside, crash_of
from fitserve_service.listening import ListenError, PortClaim, is_unix
from fitserve_service.metrics_port import MetricsPort
from fitserve_service.pages_http import Request
from fitserve_service.run_record import VersionName
from fitserve_service.settings import ServerSettings
from fitserve_service.source import version_stamp
from fitserve_service.unix_socket import SocketClaim
from fitserve_service.weight_files import OwnedFolder
from fitserve_service.worker_agreement import (
    Exposition,
    common,
    crash_exposition,
    grown,
    merge_expositions,
    read_exposition,
)
from fitserve_service.worker_link import Message
from fitserve_service.worker_pages import WorkerPages, read_content
from fitserve_service.worker_process import BackOff, WorkerProcess, start_worker

_CATCH_UP_S: Final = 10.0
"""How long a worker that has loaded waits for versions that the others have and it has not."""

_MOST_PAGES: Final = 64
"""Pages that a worker may have been asked for and not have sent."""

_METRICS: Final = Request("/metrics")

_log = logging.getLogger(__name__)


class WorkersError(Exception):
    """The workers cannot start; the message says why."""


@dataclass(slots=True, eq=False)
class _Errand:
    """A load or unload that all workers carry out for a caller of one."""

    origin: WorkerProcess
    ask: int
    waiting: set[WorkerProcess]
    error: dict[str, Any] | None = None


class Workers:
    """Starts workers, restarts them, and ends them. `run` once; `stop` and `pages` from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._live: set[WorkerProcess] = set()
        self._back_offs = [BackOff() for _ in range(settings.workers)]
        self._errands: dict[int, _Errand] = {}
        self._unloaded: set[str] = set()
        self._crashes = Crashes(settings.crash_limit, settings.crash_window_s, self._stamp)
        self._aside: dict[VersionName, SetAside] = {}
        self._coupled: dict[str, str] = {}
        self._restart_count = 0
        self._lost: Exposition = {}
        self._weights: OwnedFolder | None = None
        self._quotas: QuotaMemory | None = None
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
        self._weights = _open_weights() if self._settings.workers > 1 else None
        self._quotas = QuotaMemory(self._settings.workers) if self._settings.workers > 1 else None
        try:
            for number in range(self._settings.workers):
                self._start(number)
            while self._live or not self._is_stopping:
                self._turn()
        finally:
            claim.close()
            if metrics is not None:
                metrics.close()
            if self._weights is not None:
                self._weights.close()
            if self._quotas is not None:
                self._quotas.close()
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
        """Tells, from any thread, whether calls are taken."""
        return self._is_settled and not self._is_stopping and any(worker.is_settled for worker in tuple(self._live))

    def metrics(self) -> Exposition:
        """Gives, from any thread, the metrics of all workers as last asked for, those that ended included."""
        own = crash_exposition(self._restart_count, dict(self._crashes.totals), tuple(self._aside))
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
            heapq.heappop(self._timers)[2]()
            return
        try:
            event = self._events.get(timeout=self._timers[0][0] - now_s if self._timers else None)
        except queue.Empty:
            return
        try:
            event()
        except Exception:
            # One message's trouble must not end the workers.
            _log.exception("workers: an event failed")

    def _start(self, number: int) -> None:
        if self._is_stopping:
            return
        try:
            worker = start_worker(number, time.monotonic(), self._shared_descriptors())
        except OSError as error:
            # Memory or processes have run out, which may pass; those that live go on.
            wait_s = self._back_offs[number].after(0.0)
            _log.error("worker %d could not be started (%s); trying again in %g s", number, error.strerror, wait_s)
            self._after(wait_s, partial(self._start, number))
            return
        self._live.add(worker)
        worker.link.send(
            "begin",
            number=number,
            settings=settings_fields(self._settings),
            unloaded=sorted(self._unloaded),
            set_aside=[asdict(entry) for entry in self._aside.values()],
            weights=str(self._weights.path) if self._weights is not None else None,
            coupled=self._coupled,
            quotas=self._quotas.descriptor if self._quotas is not None else None,
        )
        threading.Thread(target=self._listen, args=(worker,), name=f"worker-{number}", daemon=True).start()

    def _shared_descriptors(self) -> tuple[int, ...]:
        return () if self._quotas is None else (self._quotas.descriptor,)

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
        self._note_crash(worker)
        worker.record.close()
        if self._quotas is not None:
            self._quotas.give_back(worker.number)
        for page in worker.pages.values():
            page.cancel()
        self._lost = merge_expositions([self._lost, grown(worker.exposition)])
        for number in list(self._errands):
            self._carried_out(number, worker, None)
        if worker.refusal and not self._is_settled:
            self._refusal = worker.refusal
            self._stop()
        if self._is_stopping:
            return
        self._agree()
        self._restart_count += 1
        wait_s = self._back_offs[worker.number].after(time.monotonic() - worker.began_s)
        why = worker.refusal or f"exit code {worker.process.returncode}"
        _log.error("worker %d ended (%s); starting another in %g s", worker.number, why, wait_s)
        self._after(wait_s, partial(self._start, worker.number))

    def _after(self, wait_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + wait_s, next(self._numbers), callback))

    def _note_crash(self, worker: WorkerProcess) -> None:
        """Counts a crash against what the worker was running, and sets aside what has crashed too often."""
        if not (crash := crash_of(worker.process.returncode, worker.record.fault())):
            return
        running = worker.record.running()
        names = ", ".join(f"{model} version {version}" for model, version in sorted(running)) or "no version"
        _log.error("worker %d crashed (%s) while running %s\n%s", worker.number, crash, names, worker.record.trace())
        for name in self._crashes.add(running, time.monotonic()):
            reason = self._crashes.reason(crash, running - {name})
            self._aside[name] = SetAside(*name, reason, self._stamp(name))
            _log.error("%s version %d: %s", *name, self._aside[name].reason)
            for other in self._live:
                other.link.send("set_aside", version=asdict(self._aside[name]))

    def _stamp(self, name: VersionName) -> tuple[int, ...]:
        return version_stamp(self._settings.repository, *name)

    def _stop(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            _log.info("stopping %d workers", len(self._live))
            for worker in self._live:
                worker.link.send("drain")

    def _reload(self) -> None:
        for worker in self._live:
            worker.link.send("reload")

    def _agree(self) -> None:
        names = sorted(self._agreed())
        for worker in self._live:
            if worker.is_listening:
                worker.link.send("agreed", names=names, is_settled=self._is_settled)

    def _agreed(self) -> frozenset[VersionName]:
        return common(worker.ready for worker in self._live if worker.is_counted)

    def _count_in(self, worker: WorkerProcess, *, is_due: bool = False) -> None:
        """Lets a worker take calls that answers what the others have said they all do: no caller may go back a version.

        One that cannot come to it may after a while: a version may not load there.
        """
        if worker.is_waiting and not worker.is_counted and (is_due or worker.ready >= self._agreed()):
            worker.is_counted = True
            worker.link.send("go_on")
            self._agree()

    def _ask_pages(self, request: Request, *, is_for_all: bool) -> list[Future[Message]]:
        # Before the first listens, one that still loads tells how far it is.
        listening = [w for w in self._live if w.is_listening] or [w for w in self._live if w.has_spoken]
        asked = []
        # One that has stopped answering is not asked for ever: what it was sent and is to send would pile up.
        able = [worker for worker in listening if len(worker.pages) < _MOST_PAGES]
        for worker in able if is_for_all else able[:1]:
            number, page = next(self._numbers), Future[Message]()
            if request.path == _METRICS.path:
                page.add_done_callback(partial(_keep_exposition, worker))
            worker.pages[number] = page
            worker.link.send("page", id=number, **asdict(request))
            asked.append(page)
        return asked

    def _on_waiting(self, worker: WorkerProcess, _: Message) -> None:
        worker.is_waiting = True
        self._count_in(worker)
        self._after(_CATCH_UP_S, partial(self._count_in, worker, is_due=True))

    def _on_listening(self, worker: WorkerProcess, message: Message) -> None:
        worker.is_listening = worker.is_counted = True
        _log.info("worker %d takes calls", worker.number)
        self._text = message["text"]
        if sum(other.is_listening for other in self._live) == self._settings.workers:
            self._is_settled = True
        self._agree()

    def _on_settled(self, worker: WorkerProcess, _: Message) -> None:
        """Says that all is ready once every worker says so itself: whoever reads it may ask at once."""
        worker.is_settled = True
        if not self._has_said and sum(other.is_settled for other in self._live) == self._settings.workers:
            self._has_said = True
            self._say(self._text)

    def _on_refused(self, worker: WorkerProcess, message: Message) -> None:
        worker.refusal = message["text"]

    def _on_ready(self, worker: WorkerProcess, message: Message) -> None:
        worker.has_spoken = True
        worker.ready = frozenset((str(model), int(version)) for model, version in message["names"])
        self._count_in(worker)
        self._agree()

    def _on_ask(self, worker: WorkerProcess, message: Message) -> None:
        number, action, model = next(self._numbers), message["action"], message["model"]
        if action == "load":
            self._unloaded.discard(model)
            self._crashes.forgive(model)
            self._aside = {name: entry for name, entry in self._aside.items() if entry.model != model}
        elif message["is_known"]:
            self._unloaded.add(model)
        self._errands[number] = _Errand(worker, message["id"], set(self._live))
        for other in self._live:
            other.link.send("carry_out", id=number, action=action, model=model)

    def _on_carried_out(self, worker: WorkerProcess, message: Message) -> None:
        self._carried_out(message["id"], worker, message["error"])

    def _carried_out(self, number: int, worker: WorkerProcess, error: dict[str, Any] | None) -> None:
        errand = self._errands[number]
        errand.waiting.discard(worker)
        errand.error = errand.error or error
        if not errand.waiting:
            del self._errands[number]
            errand.origin.link.send("answered", id=errand.ask, error=errand.error)

    def _on_coupled(self, worker: WorkerProcess, message: Message) -> None:
        digest, problem = message["digest"], message["problem"]
        self._coupled[digest] = problem
        for other in self._live - {worker}:
            other.link.send("stop_joining", digest=digest, problem=problem)

    def _on_page(self, worker: WorkerProcess, message: Message) -> None:
        worker.pages.pop(message["id"]).set_result(message)


def settings_fields(settings: ServerSettings) -> dict[str, Any]:
    """Writes settings for the link."""
    return {
        name: {"path": str(value)} if isinstance(value, Path) else value for name, value in asdict(settings).items()
    }


def _open_weights() -> OwnedFolder | None:
    try:
        return OwnedFolder()
    except OSError as error:
        _log.warning("weights are not shared between workers: %s: %s", error.filename, error.strerror)
        return None


def _keep_exposition(worker: WorkerProcess, page: Future[Message]) -> None:
    if not page.cancelled():
        worker.exposition = read_exposition(read_content(page.result()).decode())
