"""Puts the server together: registry, engine, reconciler, services, transport and metrics; starts it and stops it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import version as package_version
from typing import Final

from fitserve_service import session
from fitserve_service.access.refusal_metrics import RefusalCollector
from fitserve_service.calls import Loop, MethodTable, StreamMethod, UnaryMethod
from fitserve_service.canary_trials import Canaries, RecordedLoader, Terms, TriedLoader
from fitserve_service.crashes import SetAside
from fitserve_service.engine import Engine
from fitserve_service.entrance import Entrance, EntranceError, check_entrance, tls_files
from fitserve_service.intake import Intake
from fitserve_service.loader import Loader
from fitserve_service.memory_metrics import MemoryCollector
from fitserve_service.metrics_port import MetricsPort
from fitserve_service.pages import Pages
from fitserve_service.pages_activity import Activity
from fitserve_service.pages_http import Request, Response
from fitserve_service.pages_status import StatusReport
from fitserve_service.peers import Peers
from fitserve_service.process_memory import read_memory
from fitserve_service.readiness import Readiness
from fitserve_service.reconciler import Reconciler, VersionLoader
from fitserve_service.registry import Registry
from fitserve_service.rehearsal import rehearse
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers.control import ControlServicer, ModelLoader
from fitserve_service.servicers.health import HealthServicer
from fitserve_service.servicers.inference import InferenceServicer
from fitserve_service.servicers.labels import LabelServicer
from fitserve_service.servicers.oip import OipInferServicer
from fitserve_service.servicers.oip_models import OipModelsServicer
from fitserve_service.servicers.reflection import ReflectionServicer
from fitserve_service.settings import ServerSettings
from fitserve_service.shadow import Shadow
from fitserve_service.shadow_metrics import ShadowCollector
from fitserve_service.shared_trials import SharedTrials
from fitserve_service.shared_weights import SharedWeights
from fitserve_service.source import RepositorySource
from fitserve_service.telemetry import Telemetry
from fitserve_service.tracing import OpenTelemetryTracer, TracingError, open_tracer
from fitserve_service.traffic import Draw
from fitserve_service.transport import ListenError, TransportOptions
from fitserve_service.transport_choice import choose

_SETTLE_POLL_S: Final = 0.01
_SAMPLE_S: Final = 2.0
"""How often a worker samples its activity; where there is a metrics port of its own, that does."""

_LOOP_ANSWER_S = 1.0
"""How long a scrape waits for the loop; a loop that is slower than this has other news to tell."""

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


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
                loads before it listens, and is ready once `agree` says so.

        Raises:
            StartError: the settings cannot be served here.
        """
        check_can_start(settings)
        self.settings = settings
        self.registry = Registry()
        self.port = 0
        self._readiness = Readiness()
        self._peers = peers
        self._transport = choose(settings.transport, _transport_options(settings, peers is not None))
        self._telemetry = Telemetry(self.registry, self._queued_examples, _build_facts(settings))
        room = settings.max_queued_bytes
        self._engine = Engine(
            self._transport, self._telemetry, runner_count=settings.runner_count, max_queued_bytes=room
        )
        self._canaries = _new_canaries(settings)
        self._reconciler = Reconciler(
            RepositorySource(settings.repository),
            self._new_loader(),
            self.registry,
            poll_interval_s=settings.poll_interval_s,
            loader_count=settings.loader_count,
            unloaded=peers.unloaded if peers else (),
            set_aside=peers.set_aside if peers else (),
        )
        self._telemetry.add(MemoryCollector(peers.number if peers else 0, read_memory))
        self._loader: ModelLoader = peers.share(self._reconciler) if peers else self._reconciler
        if peers is not None and not peers.is_alone:
            self.registry.agree(frozenset())
        self._tracer = _tracer(settings)
        self._entrance = _entrance(settings, self._transport)
        self._telemetry.add(RefusalCollector(self._entrance.refusals))
        self._activity = Activity(self._telemetry.counts)
        self._pages = self._new_pages()
        self._metrics: MetricsPort | None = None
        self._is_stopping = False
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
                self._open_metrics()
            elif not self._peers.is_alone:
                self._load_first()
            self._transport.run(self._methods(), self._begin)
        except ListenError as error:
            raise StartError(str(error)) from None
        finally:
            self._engine.close()
            if self._canaries is not None:
                self._canaries.close()
            self._reconciler.stop()
            if self._metrics is not None:
                self._metrics.close()
            if self._tracer is not None:
                self._tracer.close()
            self._entrance.close()

    def stop(self) -> None:
        """Refuses new requests, answers those in flight within the grace time, then ends `run`."""
        self._is_stopping = True
        self._transport.post(self._drain)

    def agree(self, ready: frozenset[tuple[str, int]], *, is_settled: bool) -> None:
        """Tells, from any thread, what all workers can answer, and whether all have listened."""
        if self._peers is not None and not self._peers.is_alone:
            self.registry.agree(ready)
        if is_settled and not self._readiness.is_ready:
            self._transport.post(self._readiness.settle)

    def set_aside(self, version: SetAside) -> None:
        """Unloads, from any thread, a version that crashes workers; it stays FAILED until somebody wants it again."""
        self._reconciler.set_aside(version)

    def answer_page(self, request: Request) -> Response:
        """Answers a request to the metrics port, from any thread.

        Raises:
            RequestError: there is no such page, or it is not for this caller.
        """
        return self._pages.answer(request)

    def _begin(self, port: int) -> None:
        self.port = port
        _log.info("listening on %s:%d", self.settings.host, port)
        if self._peers is None or self._peers.is_alone:
            self._reconciler.start()
        if self._peers is not None:
            self._sample()
        self._await_settled()

    def _load_first(self) -> None:
        """Holds the port back until there is something to answer with: the other workers answer meanwhile."""
        self._reconciler.start()
        assert self._peers is not None
        while not self._reconciler.wait_until_settled(_SETTLE_POLL_S):
            if self._is_stopping:
                return
        self._peers.await_turn(lambda: self._is_stopping)

    def _sample(self) -> None:
        self._activity.sample()
        self._transport.call_later(_SAMPLE_S, self._sample)

    def _await_settled(self) -> None:
        if self._reconciler.wait_until_settled(0):
            # On the thread that is to serve, before anybody is told that the server is ready.
            rehearse(self.registry.snapshot())
            if self._peers is None:
                self._readiness.settle()
            self._on_ready()
        elif not self._readiness.is_draining:
            self._transport.call_later(_SETTLE_POLL_S, self._await_settled)

    def _drain(self) -> None:
        if self._readiness.is_draining:
            return
        _log.info("stopping: requests in flight have %g s", self.settings.grace_s)
        self._readiness.drain()
        self._engine.begin_drain()
        self._transport.stop(self.settings.grace_s)

    def _open_metrics(self) -> None:
        if self.settings.metrics_port is None:
            return
        host, port = self.settings.metrics_host, self.settings.metrics_port
        try:
            self._metrics = MetricsPort(host, port, self._pages.answer, tick=self._activity.sample)
        except ListenError as error:
            raise ListenError(f"--metrics-port: {error}") from None

    def _new_pages(self) -> Pages:
        repository = self.settings.repository
        status = StatusReport(
            repository,
            self.registry,
            self._activity,
            self._queued_examples,
            lambda: self._readiness.is_ready,
            _build_facts(self.settings),
            self._peers.number if self._peers else 0,
        )
        return Pages(repository, self.registry, self._telemetry.exposition, status, self.settings.metrics_host)

    def _new_loader(self) -> VersionLoader:
        settings = self.settings
        loader = Loader(
            settings.device,
            is_proof_required=settings.require_proof,
            process_count=max(settings.workers, 1),
            variant=settings.variant,
            p99_target_ms=settings.p99_target_ms,
            device_memory_limit_bytes=settings.device_memory_limit_bytes,
            max_queue_ms=settings.max_queue_ms,
            weights=SharedWeights(self._peers.weights) if self._peers and self._peers.weights else None,
        )
        recorded = RecordedLoader(loader)
        if self._canaries is None:
            return recorded
        folder = self._peers.weights if self._peers else None
        return TriedLoader(recorded, SharedTrials(self._canaries, folder) if folder else self._canaries)

    def _methods(self) -> MethodTable:
        draw = Draw()
        shadow = Shadow(self.registry, self._engine, self._transport, draw)
        self._telemetry.add(ShadowCollector(shadow.counts))
        admit = self._entrance.admit
        intake = Intake(self.registry, self._engine, self._telemetry, shadow, draw, tracer=self._tracer, admit=admit)
        health = HealthServicer(self.registry, self._readiness, self._transport)
        infer = OipInferServicer(intake)
        models = OipModelsServicer(
            self.registry, self._readiness, self._loader, self._transport, package_version("fitserve")
        )
        control = ControlServicer(self.registry, self._loader, self._transport)
        repository = self.settings.repository
        labels = LabelServicer(repository, self.registry, self._reconciler, self._transport, shadow.counts)
        unary: dict[str, UnaryMethod] = {}
        for servicer in (InferenceServicer(intake), control, labels, infer, models, health):
            unary |= servicer.unary()
        stream: dict[str, StreamMethod] = {**infer.stream(), **health.stream()}
        services = {name.split("/")[1] for name in (*unary, *stream)}
        return self._entrance.wrap(MethodTable(unary, {**stream, **ReflectionServicer(services).stream()}))

    def _queued_examples(self) -> dict[ServedVersion, int]:
        """Asks the loop, from a scrape's thread."""
        answer: Future[dict[ServedVersion, int]] = Future()
        self._transport.post(lambda: answer.set_result(self._engine.queued_examples()))
        try:
            return answer.result(_LOOP_ANSWER_S)
        except TimeoutError:
            return {}


def check_can_start(settings: ServerSettings) -> None:
    """Holds the settings against this machine before anything is opened.

    Raises:
        StartError: no repository, a runtime that is unsafe or lacks the device, or an address open to others.
    """
    if not settings.repository.is_dir():
        hint = f"create it (mkdir -p '{settings.repository}') or export a model into it with fitserve-export"
        raise StartError(f"--repository '{settings.repository}': expected a directory, found none; {hint}")
    try:
        check_entrance(settings)
        session.check_runtime()
    except (EntranceError, session.SessionError) as error:
        raise StartError(str(error)) from None
    problem = session.cuda_problem() if settings.device.startswith("cuda") else None
    if problem:
        raise StartError(f"--device {settings.device}: {problem}")


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


def _entrance(settings: ServerSettings, loop: Loop) -> Entrance:
    try:
        return Entrance(settings, loop)
    except EntranceError as error:
        raise StartError(str(error)) from None


def _tracer(settings: ServerSettings) -> OpenTelemetryTracer | None:
    try:
        return open_tracer(settings.tracing)
    except TracingError as error:
        raise StartError(str(error)) from None


def _new_canaries(settings: ServerSettings) -> Canaries | None:
    if settings.canary == "off":
        return None
    is_final = settings.device == "cpu" or session.cuda_problem() is not None
    terms = Terms(settings.variant, settings.require_proof)
    return Canaries(settings.repository, limit_s=settings.canary_limit_s, is_final=is_final, terms=terms)


def _transport_options(settings: ServerSettings, is_shared: bool) -> TransportOptions:
    return TransportOptions(
        settings.host,
        settings.port,
        settings.max_message_bytes,
        is_shared=is_shared,
        connection_age_s=settings.connection_age_s if settings.workers > 1 else 0.0,
        tls=tls_files(settings),
    )


def _build_facts(settings: ServerSettings) -> dict[str, str]:
    return {
        "version": package_version("fitserve"),
        "onnxruntime": session.runtime_version(),
        "device": settings.device,
    }
