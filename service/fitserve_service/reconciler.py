"""Brings what the server holds to what is wanted, step by step of the policy; explicit loads and unloads pass here too.

One thread decides, a few load. Everything that decides is in `reconcile_once`, which a test calls without a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

from fitserve_contract.repository import VersionPath, version_path
from fitserve_service.aspirations import Aspirations, Grounds
from fitserve_service.crashes import SetAside
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.known_model import unknown_model
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.loading.replaced_files import ReplacedFiles
from fitserve_service.model_edits import ModelEdit, ModelEdits, OnDone
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion, VersionLoader
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import Action, State, Step, next_steps

_log = logging.getLogger(__name__)

_UNSETTLED = (State.PENDING, State.LOADING, State.UNLOADING)


class Reconciler:
    """Keeps a registry in step with a repository.

    Args:
        source: The repository; used on the reconciler's thread alone.
        loader: Makes served versions.
        registry: Where they are kept.
        poll_interval_s: How often the repository is looked at.
        loader_count: How many versions load at once.
        unloaded: Models not to be loaded until a call of `load`.
        set_aside: Versions not to be loaded until their files change or a call of `load`.
        loaders: What carries out loads instead of threads of its own.
    """

    def __init__(
        self,
        source: RepositorySource,
        loader: VersionLoader,
        registry: Registry,
        *,
        poll_interval_s: float = 1.0,
        loader_count: int = 2,
        unloaded: Iterable[str] = (),
        set_aside: Iterable[SetAside] = (),
        loaders: Executor | None = None,
    ) -> None:
        self._source = source
        self._loader = loader
        self._registry = registry
        self._poll_interval_s = poll_interval_s
        self._pool = loaders or ThreadPoolExecutor(loader_count, thread_name_prefix="loader")
        self._wake = threading.Event()
        self._is_stopping = False
        self._lock = threading.Lock()
        self._commands: list[Callable[[], None]] = []
        self._waiting: list[tuple[str, OnDone]] = []
        self._aspirations = Aspirations(source, registry, unloaded=unloaded, set_aside=set_aside)
        self._edits = ModelEdits(registry, self._aspirations, self._show_edited)
        self._attempts: dict[str, dict[int, Grounds]] = {}
        self._files = ReplacedFiles(source)
        self._renewals: dict[tuple[str, int], str | None] = {}
        """Versions that are loaded anew beside those that serve, and why that failed; None: under way."""
        self._moved: deque[str] = deque()
        self._unsettled: set[str] | None = None
        self._is_settled = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reconciler", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for loads under way; what is loaded stays loaded."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def wait_until_settled(self, timeout_s: float | None = None) -> bool:
        """Waits until the first look at the repository has been carried out: each aspired version READY or FAILED."""
        return self._is_settled.wait(timeout_s)

    def load(self, model: str, on_done: OnDone) -> None:
        """Makes a model aspired again, and its failed versions tried again.

        Args:
            model: Model name.
            on_done: Called on the reconciler's thread once each aspired version is READY or FAILED: None, or
                MODEL_NOT_FOUND, or LOAD_FAILED where no aspired version is READY.
        """
        self._command(lambda: self._begin_load(model, on_done))

    def unload(self, model: str, on_done: OnDone) -> None:
        """Unloads all versions of a model, until `load`; `on_done` is called once the last is gone."""
        self._command(lambda: self._begin_unload(model, on_done))

    def edit(self, model: str, apply: Callable[[], None], on_done: OnDone, *, version: int = 0) -> None:
        """Changes something in a model's folder, on the reconciler's thread, and shows it before `on_done` is called.

        Args:
            model: Model name.
            apply: Makes the change; raises ServiceError where it cannot, and then has changed nothing.
            on_done: Called on the reconciler's thread: None, or what `apply` raised, or MODEL_NOT_FOUND.
            version: A version that must be READY before, and is loaded for it; 0: none. Or VERSION_NOT_FOUND, or
                MODEL_FAILED. For a model that was unloaded by `unload` nothing is loaded.
        """
        self._command(lambda: self._edits.add(ModelEdit(model, apply, on_done, version)))

    def set_aside(self, entry: SetAside) -> None:
        """Unloads a version that crashes its process; it stays FAILED until its files change or a call of `load`."""
        self._command(lambda: self._aspirations.set_aside(entry))

    def reconcile_once(self) -> None:
        """Looks at the repository and starts all that is to be done now."""
        self._run_commands()
        self._aspirations.look()
        if self._unsettled is None:
            self._unsettled = set(self._aspirations.found())
        self._moved.clear()
        for model in self._aspirations.found():
            self._renew_replaced(model)
        self._reconcile(sorted(self._models()))

    def _reconcile(self, models: Iterable[str]) -> None:
        for model in models:
            self._show(model)
            self._retire_aside(model)
            self._retry_changed(model)
            aspired = self._aspired(model)
            self._rest(model, aspired)
            for step in next_steps(self._registry.states(model), aspired):
                self._take(model, step)
        self._answer_waiting()
        self._edits.make_due()
        self._settle()

    def _settle(self) -> None:
        unsettled = self._unsettled
        while unsettled and not self._is_unsettled(model := next(iter(unsettled))):
            unsettled.remove(model)
        if unsettled is not None and not unsettled:
            self._is_settled.set()

    def _work(self) -> None:
        self._source.remove_leftovers()
        look_s = 0.0
        while not self._is_stopping:
            try:
                if self._commands or time.monotonic() >= look_s:
                    look_s = time.monotonic() + self._poll_interval_s
                    self.reconcile_once()
                else:
                    self._reconcile_moved()
            except Exception:
                _log.exception("reconciling failed; trying again in %g s", self._poll_interval_s)
            self._wake.wait(max(look_s - time.monotonic(), 0.0))
            self._wake.clear()

    def _reconcile_moved(self) -> None:
        """Goes on where loads and leases ended: a look at a thousand models for each would be a million looks."""
        moved = set()
        while self._moved:
            moved.add(self._moved.popleft())
        self._reconcile(moved)

    def _has_moved(self, model: str) -> None:
        """Told, on any thread, that a model's version was loaded or let go."""
        self._moved.append(model)
        self._wake.set()

    def _models(self) -> set[str]:
        return {*self._aspirations.found(), *self._registry.names()}

    def _aspired(self, model: str, *, has_stand_ins: bool = True) -> list[int]:
        return self._aspirations.versions(model, pinned=self._edits.versions(model), has_stand_ins=has_stand_ins)

    def _retire_aside(self, model: str) -> None:
        """Takes versions out of service that were set aside."""
        for entry in self._aspirations.aside(model):
            if self._registry.states(model).get(entry.version) is State.READY:
                _log.error("%s version %d: %s", model, entry.version, entry.reason)
                self._registry.retire(model, entry.version, partial(self._has_moved, model))

    def _retry_changed(self, model: str) -> None:
        """Makes failed versions PENDING whose files or settings changed since: copied to the end, or put right."""
        attempts = self._attempts.pop(model, {})
        states = self._registry.states(model)
        for version, grounds in attempts.items():
            if states.get(version) is State.FAILED and grounds != self._aspirations.grounds(model, version):
                self._registry.set_state(model, version, State.PENDING)
        tried = (State.LOADING, State.FAILED)
        if kept := {version: grounds for version, grounds in attempts.items() if states.get(version) in tried}:
            self._attempts[model] = kept

    def _rest(self, model: str, aspired: list[int]) -> None:
        """Makes versions UNLOADED that nobody aspires to: PENDING says that a load is to come."""
        for version, state in self._registry.states(model).items():
            if state is State.PENDING and version not in aspired:
                self._registry.set_state(model, version, State.UNLOADED)

    def _take(self, model: str, step: Step) -> None:
        if step.action is Action.UNLOAD:
            _log.info("unloading %s version %d", model, step.version)
            self._registry.retire(model, step.version, partial(self._has_moved, model))
            return
        self._attempts.setdefault(model, {})[step.version] = self._aspirations.grounds(model, step.version)
        if problem := self._aspirations.problem(model, step.version):
            self._registry.set_state(model, step.version, State.FAILED, reason=problem)
            return
        self._registry.set_state(model, step.version, State.LOADING)
        self._renewals.pop((model, step.version), None)
        self._submit(model, step.version, self._loaded)

    def _submit(
        self, model: str, version: int, loaded: Callable[[VersionPath, tuple[int, ...], Future[ServedVersion]], None]
    ) -> None:
        """Has a version loaded; `loaded` runs on a loader thread, or at once where the pool is shut down."""
        path, stamp = version_path(self._source.root, model, version), self._source.version_stamp(model, version)
        future = self._pool.submit(self._loader.load, path, self._aspirations.source(model).overrides)
        future.add_done_callback(partial(loaded, path, stamp))

    def _loaded(self, path: VersionPath, stamp: tuple[int, ...], future: Future[ServedVersion]) -> None:
        if future.cancelled():
            return
        if reason := _failure(path, future):
            self._registry.set_state(path.model, path.version, State.FAILED, reason=reason)
        else:
            self._registry.set_ready(future.result())
            self._note_ready(future.result(), stamp)
        self._has_moved(path.model)

    def _note_ready(self, served: ServedVersion, stamp: tuple[int, ...]) -> None:
        text = "ready: %s version %d on %s in %.0f ms, %s"
        _log.info(text, served.model, served.version, served.provider, served.load_ms, _proof_text(served))
        self._files.remember(served, stamp)

    def _renew_replaced(self, model: str, *, is_asked: bool = False) -> None:
        """Loads versions anew in whose folders other files lie; what serves goes on until they are READY."""
        if self._aspirations.source(model).problem or self._aspirations.is_unloaded(model):
            return
        states = self._registry.states(model)
        for version, served in self._registry.served(model).items():
            name = (model, version)
            is_under_way = self._renewals.get(name, "") is None
            if states.get(version) is not State.READY or is_under_way:
                continue
            if self._files.is_replaced(served, is_asked=is_asked):
                _log.info("%s version %d: other files are in its folder; loading them", model, version)
                self._renewals[name] = None
                self._submit(model, version, partial(self._renewed, served))

    def _renewed(
        self, old: ServedVersion, path: VersionPath, stamp: tuple[int, ...], future: Future[ServedVersion]
    ) -> None:
        if future.cancelled():
            return
        name = (path.model, path.version)
        if reason := _failure(path, future):
            self._renewals[name] = reason
        else:
            self._renewals.pop(name, None)
            if self._registry.renew(old, future.result()):
                self._note_ready(future.result(), stamp)
        self._has_moved(path.model)

    def _command(self, command: Callable[[], None]) -> None:
        with self._lock:
            self._commands.append(command)
        self._wake.set()

    def _run_commands(self) -> None:
        with self._lock:
            commands, self._commands = self._commands, []
        for command in commands:
            command()

    def _begin_load(self, model: str, on_done: OnDone) -> None:
        self._aspirations.look()
        self._aspirations.want(model)
        self._renew_replaced(model, is_asked=True)
        for version, state in self._registry.states(model).items():
            if state is State.FAILED:
                self._registry.set_state(model, version, State.PENDING)
        if model not in self._aspirations.found():
            on_done(unknown_model(model))
        else:
            self._waiting.append((model, on_done))

    def _begin_unload(self, model: str, on_done: OnDone) -> None:
        if model in self._models():
            self._aspirations.unload(model)
            self._waiting.append((model, on_done))
        else:
            on_done(None)

    def _show(self, model: str) -> None:
        source = self._aspirations.source(model)
        self._registry.set_present(model, list(source.versions), source.labels, source.traffic)

    def _show_edited(self, model: str) -> None:
        self._aspirations.look()
        self._show(model)
        self._has_moved(model)

    def _is_unsettled(self, model: str) -> bool:
        aspired = set(self._aspired(model))
        states = self._registry.states(model)
        is_moving = any(
            states.get(version, State.PENDING) in _UNSETTLED or self._renewals.get((model, version), "") is None
            for version in aspired
        )
        return is_moving or (
            self._aspirations.is_unloaded(model)
            and any(state in (State.LOADING, State.READY, State.UNLOADING) for state in states.values())
        )

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for model, on_done in waiting:
            if self._is_unsettled(model):
                self._waiting.append((model, on_done))
            else:
                on_done(self._outcome(model))

    def _outcome(self, model: str) -> ServiceError | None:
        aspired = self._aspired(model, has_stand_ins=False)
        states = self._registry.states(model)
        # What serves goes on where the files that were put in the place of its own do not load: that is told too.
        stale = {v: why for v in aspired if states.get(v) is State.READY and (why := self._renewals.get((model, v)))}
        if not stale and (not aspired or any(states.get(version) is State.READY for version in aspired)):
            return None
        failed = {entry.version: entry.reason for entry in self._registry.model(model).versions}
        told = stale or {version: failed.get(version, "") for version in aspired}
        reasons = "; ".join(f"version {version}: {reason}" for version, reason in told.items())
        return ServiceError(Reason.LOAD_FAILED, f"model '{model}' could not be loaded: {reasons}", model=model)


def _failure(path: VersionPath, future: Future[ServedVersion]) -> str:
    """Returns why a load failed, fit for a caller, and logs it; empty where it did not."""
    error = future.exception()
    if error is None:
        return ""
    reason = str(error) if isinstance(error, LoadError) else "internal error while loading; the log has it"
    known = error if not isinstance(error, LoadError) else None
    _log.error("failed: %s version %d: %s", path.model, path.version, reason, exc_info=known)
    return reason


def _proof_text(served: ServedVersion) -> str:
    if served.replay is None:
        return "unverified: no manifest with checksums and a probe beside it"
    text = f"its probe gave torch's answers within the tolerance, replayed in {served.replay.replay_ms:.1f} ms"
    return f"verified: checksums hold, {text}" if served.is_verified else f"unverified: no checksums, but {text}"
