"""What a server is made of, by its settings: the one place that knows all parts and how they are tied together."""

from __future__ import annotations

import os
from concurrent.futures import Future
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Final

from fitserve_service import session
from fitserve_service.access.private_files import PrivateFileError
from fitserve_service.access.refusal_metrics import RefusalCollector
from fitserve_service.access.tls_files import TlsWatcher
from fitserve_service.allocator import IdleReturn
from fitserve_service.calls import Loop, MethodTable, StreamMethod, UnaryMethod
from fitserve_service.canary_trials import Canaries, Terms
from fitserve_service.engine import Engine
from fitserve_service.entrance import Entrance, EntranceError, check_entrance, tls_files
from fitserve_service.guarded_loads import RecordedLoader, TriedLoader
from fitserve_service.intake import Intake
from fitserve_service.loader import Loader
from fitserve_service.loading.coupled_contents import CoupledContents
from fitserve_service.memory_metrics import MemoryCollector
from fitserve_service.pages import Pages
from fitserve_service.pages_activity import Activity
from fitserve_service.pages_status import StatusReport
from fitserve_service.peers import Peers, VersionEditor
from fitserve_service.process_memory import read_memory
from fitserve_service.readiness import Readiness
from fitserve_service.reconciler import Reconciler
from fitserve_service.registry import Registry
from fitserve_service.requests.codec_thread import CodecThread
from fitserve_service.runtime.run_limit import DEFAULT_RUN_LIMIT_S
from fitserve_service.served_version import ServedVersion, VersionLoader
from fitserve_service.servicers.control import ControlServicer
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
from fitserve_service.transport import TransportOptions
from fitserve_service.transport_choice import choose

_LOOP_ANSWER_S: Final = 1.0
"""How long a scrape waits for the loop; a loop that is slower than this has other news to tell."""


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


class Assembly:
    """The parts of one server, tied together and not yet running. Closed once only, after the loop has ended.

    Attributes:
        registry: Its models.
        readiness: Whether it takes calls.
        transport: Its loop and its port.
        engine: Joins requests and runs them.
        reconciler: Loads what the repository has.
        activity: What was done lately.
        idle_return: Gives memory back that nobody needs any more.
        pages: What the metrics port answers.
    """

    def __init__(self, settings: ServerSettings, peers: Peers | None) -> None:
        """Makes the parts.

        Args:
            settings: What the server is told.
            peers: Where it is one of several workers, the others.

        Raises:
            StartError: the settings cannot be served here.
        """
        _check_can_start(settings)
        self._settings = settings
        self._peers = peers
        self.registry = Registry()
        self._coupled = CoupledContents(peers.coupled if peers else None)
        self.readiness = Readiness()
        self._tls = _tls_watcher(settings)
        self.transport = choose(settings.transport, self._transport_options())
        self._telemetry = Telemetry(self.registry, self._queued_examples, _build_facts(settings))
        room = settings.max_queued_bytes
        self.engine = Engine(
            self.transport,
            self._telemetry,
            runner_count=settings.runner_count,
            max_queued_bytes=room,
            on_coupled=self._tell_coupled,
        )
        self._codec = CodecThread(self.transport.post)
        self.idle_return = IdleReturn(self.transport, lambda: self.engine.submitted_count)
        self._canaries = _new_canaries(settings)
        self.reconciler = self._new_reconciler()
        self._editor: VersionEditor = peers.share(self.reconciler) if peers else self.reconciler
        self._tracer = _tracer(settings)
        self._entrance = _entrance(settings, self.transport, peers)
        self._telemetry.add(MemoryCollector(peers.number if peers else 0, read_memory))
        self._telemetry.add(RefusalCollector(self._entrance.refusals))
        self.activity = Activity(self._telemetry.counts)
        self.pages = self._new_pages()

    def stop_joining(self, digest: str, problem: str) -> None:
        """Has requests to versions of these files run alone, on the loop thread: their rows were found mixed."""
        self._coupled.add(digest, problem)
        for known in self.registry.snapshot():
            for each in known.versions:
                if each.served is not None and each.served.content_digest == digest:
                    self.engine.stop_joining(each.served, problem)

    def methods(self) -> MethodTable:
        """Makes the methods that the transport serves; once only."""
        draw = Draw()
        shadow = Shadow(self.registry, self.engine, self.transport, draw)
        self._telemetry.add(ShadowCollector(shadow.counts))
        admit = self._entrance.admit
        intake = Intake(
            self.registry,
            self.engine,
            self._telemetry,
            shadow,
            draw,
            tracer=self._tracer,
            admit=admit,
            codec=self._codec,
            keep=self._entrance.keep,
        )
        max_elements = self._settings.max_elements
        health = HealthServicer(self.registry, self.readiness, self.transport)
        infer = OipInferServicer(intake, max_elements)
        models = OipModelsServicer(
            self.registry, self.readiness, self._editor, self.transport, package_version("fitserve")
        )
        control = ControlServicer(self.registry, self._editor, self.transport)
        repository = self._settings.repository_root
        labels = LabelServicer(repository, self.registry, self._editor, self.transport, shadow.counts)
        unary: dict[str, UnaryMethod] = {}
        for servicer in (InferenceServicer(intake, max_elements), control, labels, infer, models, health):
            unary |= servicer.unary()
        stream: dict[str, StreamMethod] = {**infer.stream(), **health.stream()}
        services = {name.split("/")[1] for name in (*unary, *stream)}
        return self._entrance.wrap(MethodTable(unary, {**stream, **ReflectionServicer(services).stream()}))

    def reload(self) -> None:
        """Reads certificates and the access file anew, from any thread but the loop's."""
        if self._tls is not None:
            self._tls.reload()
        self.transport.post(self._entrance.reload)

    def close(self) -> None:
        """Ends threads and processes, and writes what is still to be written."""
        self.engine.close()
        self._codec.close()
        if self._canaries is not None:
            self._canaries.close()
        self.reconciler.stop()
        if self._tracer is not None:
            self._tracer.close()
        self._entrance.close()

    def _tell_coupled(self, served: ServedVersion, problem: str) -> None:
        self.stop_joining(served.content_digest, problem)
        if self._peers is not None:
            self._peers.tell_coupled(served.content_digest, problem)

    def _new_reconciler(self) -> Reconciler:
        settings, peers = self._settings, self._peers
        return Reconciler(
            RepositorySource(settings.repository_root),
            self._new_loader(),
            self.registry,
            poll_interval_s=settings.poll_interval_s,
            loader_count=settings.loader_count,
            unloaded=peers.unloaded if peers else (),
            set_aside=peers.set_aside if peers else (),
        )

    def _new_loader(self) -> VersionLoader:
        settings = self._settings
        loader = Loader(
            settings.device,
            is_proof_required=settings.require_proof,
            process_count=max(settings.workers, 1),
            variant=settings.variant,
            p99_target_ms=settings.p99_target_ms,
            device_memory_limit_bytes=settings.device_memory_limit_bytes,
            max_queue_ms=settings.max_queue_ms,
            spot_check_share=settings.spot_check_share,
            max_answer_bytes=settings.max_answer_bytes,
            max_elements=settings.max_elements,
            coupled=self._coupled,
            # Twice the trial's: the server has callers beside it.
            run_limit_s=2 * settings.canary_limit_s if settings.canary_limit_s else DEFAULT_RUN_LIMIT_S,
            weights=SharedWeights(self._peers.weights) if self._peers and self._peers.weights else None,
        )
        recorded = RecordedLoader(loader)
        if self._canaries is None:
            return recorded
        folder = self._peers.weights if self._peers else None
        return TriedLoader(recorded, SharedTrials(self._canaries, folder) if folder else self._canaries)

    def _new_pages(self) -> Pages:
        repository = self._settings.repository_root
        status = StatusReport(
            repository,
            self.registry,
            self.activity,
            self._queued_examples,
            lambda: self.readiness.is_ready,
            _build_facts(self._settings),
            self._peers.number if self._peers else 0,
        )
        return Pages(repository, self.registry, self._telemetry.exposition, status, self._settings.metrics_host)

    def _transport_options(self) -> TransportOptions:
        settings, peers = self._settings, self._peers
        return TransportOptions(
            settings.host,
            settings.port,
            settings.max_message_bytes,
            is_shared=peers is not None and not peers.is_alone,
            max_unread_bytes=settings.max_unread_bytes,
            connection_age_s=settings.connection_age_s if settings.workers > 1 else 0.0,
            tls=self._tls,
        )

    def _queued_examples(self) -> dict[ServedVersion, int]:
        """Asks the loop, from a scrape's thread."""
        answer: Future[dict[ServedVersion, int]] = Future()
        self.transport.post(lambda: answer.set_result(self.engine.queued_examples()))
        try:
            return answer.result(_LOOP_ANSWER_S)
        except TimeoutError:
            return {}


def _check_repository(root: Path) -> None:
    try:
        is_folder = root.is_dir()
        if is_folder:
            # The dot cannot be reached where the folder may be listed but not entered.
            os.scandir(os.path.join(root, ".")).close()
    except OSError as error:
        cure = f"let user {os.geteuid()} list and enter it: chmod u+rx '{root}', and x for the folders above"
        raise StartError(f"--repository '{root}': cannot be read: {error.strerror}; {cure}") from None
    if not is_folder:
        hint = f"create it (mkdir -p '{root}') or export a model into it with fitserve-export"
        raise StartError(f"--repository '{root}': expected a directory, found none; {hint}")


def _check_can_start(settings: ServerSettings) -> None:
    """Holds the settings against this machine before anything is opened.

    Raises:
        StartError: no repository, a runtime that is unsafe or lacks the device, or an address open to others.
    """
    _check_repository(settings.repository)
    if settings.follow_links is not None and not settings.follow_links.is_dir():
        hint = "name the folder that the repository's links lead to, or leave the option out"
        raise StartError(f"--follow-links '{settings.follow_links}': expected a directory, found none; {hint}")
    try:
        check_entrance(settings)
        session.check_runtime()
    except (EntranceError, session.SessionError) as error:
        raise StartError(str(error)) from None
    problem = session.cuda_problem() if settings.device.startswith("cuda") else None
    if problem:
        raise StartError(f"--device {settings.device}: {problem}")


def _entrance(settings: ServerSettings, loop: Loop, peers: Peers | None) -> Entrance:
    try:
        return Entrance(settings, loop, peers.quotas if peers else None)
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
    return Canaries(
        settings.repository_root,
        limit_s=settings.canary_limit_s,
        is_final=is_final,
        memory_bytes=settings.canary_memory_bytes,
        terms=terms,
    )


def _tls_watcher(settings: ServerSettings) -> TlsWatcher | None:
    files = tls_files(settings)
    try:
        return TlsWatcher(files) if files is not None else None
    except PrivateFileError as error:
        raise StartError(str(error)) from None


def _build_facts(settings: ServerSettings) -> dict[str, str]:
    return {
        "version": package_version("fitserve"),
        "onnxruntime": session.runtime_version(),
        "device": settings.device,
    }
