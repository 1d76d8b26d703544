"""The life of a server: it starts, is ready, drains and ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fitserve_service.assembly import Assembly, StartError
from fitserve_service.crashes import SetAside
from fitserve_service.listening import ListenError, address_text, check_listenable, is_unix
from fitserve_service.metrics_port import MetricsPort
from fitserve_service.pages_http import Request, Response
from fitserve_service.peers import Peers
from fitserve_service.rehearsal import rehearse
from fitserve_service.retiring import retire_port
from fitserve_service.settings import ServerSettings
from fitserve_service.unix_socket import SocketClaim

_SETTLE_POLL_S: Final = 0.01
_SAMPLE_S: Final = 2.0
"""How often a worker samples its activity; where there is a metrics port of its own, that does."""

_log = logging.getLogger(__name__)


class Server:
    """One server. `run` owns the thread that calls it; `stop` may be called from any thread, or a signal's.

    Attributes:
        settings: What it was told.
        registry: Its models.
        port: gRPC port, once `run` has called `on_ready`.
        metrics_port: Prometheus port; None where there are no metrics.
    """

    def __init__(self, settings: ServerSettings, peers: Peers | None = None) -> None:
        """Makes a server that does not run yet.

        Args:
            settings: What it is told.
            peers: Where it is one of several workers, the others: it shares its port, has no metrics port of its own,
                loads before it listens, answers by what they agree on, and is ready once `agree` says so.

        Raises:
            StartError: the settings cannot be served here.
        """
        self.settings = settings
        self.port = 0
        self._peers = peers
        self._parts = Assembly(settings, peers)
        self.registry = self._parts.registry
        if peers is not None and peers.counter is not None:
            self.registry.share(peers.counter)
        self._metrics: MetricsPort | None = None
        self._claim: SocketClaim | None = None
        self._is_stopping = False
        self._is_begun = False
        self._on_ready: Callable[[], None] = lambda: None

    @property
    def metrics_port(self) -> int | None:
        """Prometheus port; None where there are no metrics."""
        return self._metrics.port if self._metrics else None

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serves on this thread until `stop` has ended; once only.

        Args:
            on_ready: Called on the loop thread once the first look at the repository is settled.

        Raises:
            StartError: a port cannot be had.
        """
        self._on_ready = on_ready
        try:
            if self._peers is None:
                self._claim_path()
                check_listenable(self.settings.host, self.settings.port)
                self._open_metrics()
            self._load_first()
            self._parts.transport.run(self._parts.methods(), self._begin)
        except ListenError as error:
            raise StartError(str(error)) from None
        finally:
            self._parts.close()
            if self._metrics is not None:
                self._metrics.close()
            if self._claim is not None:
                self._claim.close()

    def stop(self) -> None:
        """Is not ready from now on, takes calls for the drain delay, answers them within the grace time, ends `run`."""
        self._is_stopping = True
        self._parts.transport.post(self._begin_drain)

    def reload(self) -> None:
        """Reads certificates and the access file anew, from any thread."""
        self._parts.reload()

    def agree(self, *, is_agreed: bool) -> None:
        """Tells, from any thread, that all workers have listened, and whether they answer alike: else none is ready."""
        readiness = self._parts.readiness

        def settle() -> None:
            readiness.agree(is_agreed=is_agreed)
            if not readiness.has_been_ready:
                readiness.settle()

        self._parts.transport.post(settle)

    def answer_alive(self, answer: Callable[[], None]) -> None:
        """Has the loop answer that it is alive, from any thread; before it runs, the thread that asks does."""
        if self._is_begun:
            self._parts.transport.post(answer)
        else:
            answer()

    def on_settled(self, callback: Callable[[], object]) -> None:
        """Registers, before `run`, what to do on the loop thread once requests are taken; perhaps more than once."""
        readiness = self._parts.readiness

        def tell() -> None:
            if readiness.is_ready:
                callback()

        readiness.on_change(tell)

    def set_aside(self, version: SetAside) -> None:
        """Unloads, from any thread, a version that crashes workers; it stays FAILED until somebody wants it again."""
        self._parts.reconciler.set_aside(version)

    def stop_joining(self, digest: str, problem: str) -> None:
        """Has requests to versions of these files run alone, from any thread: another worker found them mixed."""
        self._parts.transport.post(lambda: self._parts.stop_joining(digest, problem))

    def answer_page(self, request: Request) -> Response:
        """Answers a request to the metrics port, from any thread.

        Raises:
            RequestError: there is no such page, or it is not for this caller.
        """
        return self._parts.pages.answer(request)

    def _begin(self, port: int) -> None:
        self.port, self._is_begun = port, True
        _log.info("listening on %s", address_text(self.settings.host, port))
        if self._peers is not None:
            self._sample()
        self._parts.idle_return.start()
        self._await_settled()

    def _load_first(self) -> None:
        """Holds the port back until there is something to answer with: proxies that ask for no health send at once."""
        self._parts.reconciler.start()
        while not self._parts.reconciler.wait_until_settled(_SETTLE_POLL_S):
            if self._is_stopping:
                return
        if self._peers is not None:
            self._peers.await_turn(lambda: self._is_stopping)

    def _sample(self) -> None:
        self._parts.activity.sample()
        self._parts.transport.call_later(_SAMPLE_S, self._sample)

    def _await_settled(self) -> None:
        if self._parts.reconciler.wait_until_settled(0):
            # On the thread that is to serve, before anybody is told that the server is ready.
            self._parts.engine.prepare()
            rehearse(self.registry.snapshot())
            if self._peers is None:
                self._parts.readiness.settle()
            self._on_ready()
        elif not self._parts.readiness.is_draining:
            self._parts.transport.call_later(_SETTLE_POLL_S, self._await_settled)

    def _begin_drain(self) -> None:
        readiness = self._parts.readiness
        if readiness.is_draining:
            return
        # Nobody sends calls to a server that has never been ready.
        delay_s = self.settings.drain_wait_s if readiness.has_been_ready else 0.0
        readiness.drain()
        if not delay_s:
            return self._close()
        _log.info("draining: not ready any more, calls are taken for another %g s", delay_s)
        self._parts.transport.call_later(delay_s, self._retire)

    def _retire(self) -> None:
        post = self._parts.transport.post
        if is_unix(self.settings.host):
            self._close()
        else:
            retire_port(self.port, lambda: post(self._close))

    def _close(self) -> None:
        grace_s = self.settings.grace_s
        _log.info("stopping: requests in flight have %g s", grace_s)
        self._parts.transport.stop(grace_s)
        # Not before: a call that was taken may still be on its way to the engine.
        self._parts.transport.call_later(grace_s, self._parts.engine.begin_drain)
        self._await_idle()

    def _await_idle(self) -> None:
        if self._parts.engine.is_idle():
            self._parts.readiness.end()
        else:
            self._parts.transport.call_later(_SETTLE_POLL_S, self._await_idle)

    def _claim_path(self) -> None:
        if is_unix(self.settings.host):
            self._claim = SocketClaim(self.settings.host)

    def _open_metrics(self) -> None:
        if self.settings.metrics_port is None:
            return
        host, port = self.settings.metrics_host, self.settings.metrics_port
        try:
            self._metrics = MetricsPort(host, port, self._parts.pages.answer, tick=self._parts.activity.sample)
        except ListenError as error:
            raise ListenError(f"--metrics-port: {error}") from None


@contextmanager
def running_server(settings: ServerSettings) -> Iterator[Server]:
    """Runs a server on a thread of its own until the block ends; inside the block it is ready.

    Raises:
        StartError: it cannot start.
    """
    server = Server(settings)
    is_ready = threading.Event()
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            server.run(is_ready.set)
        except BaseException as error:
            failure.append(error)
        finally:
            is_ready.set()

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    is_ready.wait()
    try:
        if failure:
            raise failure[0]
        yield server
    finally:
        server.stop()
        thread.join()
