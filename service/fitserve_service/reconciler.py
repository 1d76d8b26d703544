"""Brings what the server holds to what the repository and the policy want; explicit loads and unloads pass here too.

One thread decides, a few load. Everything that decides is in `reconcile_once`, which a test calls without a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from fitserve_contract.repository import VersionPath, version_path
from fitserve_service.crashes import SetAside
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.loader import LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry, ServedVersion
from fitserve_service.source import ModelSource, RepositorySource
from fitserve_service.status import incident
from fitserve_service.version_policy import Action, State, Step, aspired_versions, next_steps

OnDone: TypeAlias = Callable[[ServiceError | None], None]

_log = logging.getLogger(__name__)

_UNSETTLED = (State.PENDING, State.LOADING, State.UNLOADING)


class VersionLoader(Protocol):
    """Makes served versions; see `loader.Loader`."""

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:
        """Loads one version; raises LoadError."""
        ...


@dataclass(frozen=True, slots=True)
class _Edit:
    model: str
    apply: Callable[[], None]
    on_done: OnDone
    version: int


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
        self._edits: list[_Edit] = []
        self._unloaded: set[str] = set(unloaded)
        self._aside = {(entry.model, entry.version): entry for entry in set_aside}
        self._sources: Mapping[str, ModelSource] = {}
        self._attempts: dict[tuple[str, int], tuple[object, ...]] = {}
        self._is_readable = True
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
        self._command(lambda: self._edits.append(_Edit(model, apply, on_done, version)))

    def set_aside(self, entry: SetAside) -> None:
        """Unloads a version that crashes its process; it stays FAILED until its files change or a call of `load`."""
        self._command(lambda: self._aside.update({(entry.model, entry.version): entry}))

    def reconcile_once(self) -> None:
        """Looks at the repository and starts all that is to be done now."""
        self._run_commands()
        self._scan()
        if self._unsettled is None:
            self._unsettled = set(self._sources)
        self._moved.clear()
        self._reconcile(sorted(self._models()))

    def _reconcile(self, models: Iterable[str]) -> None:
        for model in models:
            source = self._sources.get(model, ModelSource())
            self._show(model, source)
            self._retire_aside(model)
            self._retry_changed(model, source)
            aspired = self._aspired(model)
            self._rest(model, aspired)
            for step in next_steps(self._registry.states(model), aspired):
                self._take(model, step, source)
        self._answer_waiting()
        self._try_edits()
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

    def _scan(self) -> None:
        try:
            self._sources = dict(self._source.scan())
        except OSError as error:
            if self._is_readable:
                _log.error(
                    "repository '%s' cannot be read (%s): what is loaded goes on", self._source.root, error.strerror
                )
            self._is_readable = False
        else:
            if not self._is_readable:
                _log.info("repository '%s' can be read again", self._source.root)
            self._is_readable = True

    def _models(self) -> set[str]:
        return {*self._sources, *self._registry.names()}

    def _aspired(self, model: str, *, has_stand_ins: bool = True) -> list[int]:
        source = self._sources.get(model)
        if source is None or model in self._unloaded:
            return []
        values = source.overrides.values
        states = self._registry.states(model) if has_stand_ins else {}
        return aspired_versions(
            source.versions,
            keep=values.get("keep_versions", 1),
            exactly=values.get("versions", ()),
            labelled=[
                *source.labels.values(),
                *self._registry.labels(model).values(),
                *(edit.version for edit in self._edits if edit.model == model),
            ],
            failed=[version for version, state in states.items() if state is State.FAILED],
        )

    def _retire_aside(self, model: str) -> None:
        """Takes versions out of service that were set aside; one whose files changed since is like any other."""
        for entry in [entry for entry in self._aside.values() if entry.model == model]:
            if self._source.version_stamp(model, entry.version) != entry.stamp:
                del self._aside[model, entry.version]
            elif self._registry.states(model).get(entry.version) is State.READY:
                _log.error("%s version %d: %s", model, entry.version, entry.reason)
                self._registry.retire(model, entry.version, partial(self._has_moved, model))

    def _retry_changed(self, model: str, source: ModelSource) -> None:
        """Makes failed versions PENDING whose files or settings changed since: copied to the end, or put right."""
        for version, state in self._registry.states(model).items():
            if state is State.FAILED and self._attempts.get((model, version)) != self._attempt(model, version, source):
                self._registry.set_state(model, version, State.PENDING)

    def _rest(self, model: str, aspired: list[int]) -> None:
        """Makes versions UNLOADED that nobody aspires to: PENDING says that a load is to come."""
        for version, state in self._registry.states(model).items():
            if state is State.PENDING and version not in aspired:
                self._registry.set_state(model, version, State.UNLOADED)

    def _attempt(self, model: str, version: int, source: ModelSource) -> tuple[object, ...]:
        return (source.problem, source.overrides, self._source.version_stamp(model, version))

    def _take(self, model: str, step: Step, source: ModelSource) -> None:
        if step.action is Action.UNLOAD:
            _log.info("unloading %s version %d", model, step.version)
            self._registry.retire(model, step.version, partial(self._has_moved, model))
            return
        self._attempts[model, step.version] = self._attempt(model, step.version, source)
        aside = self._aside.get((model, step.version))
        if problem := aside.reason if aside else source.problem:
            self._registry.set_state(model, step.version, State.FAILED, reason=problem)
            return
        self._registry.set_state(model, step.version, State.LOADING)
        path = version_path(self._source.root, model, step.version)
        future = self._pool.submit(self._loader.load, path, source.overrides)
        future.add_done_callback(lambda done: self._loaded(path, done))

    def _loaded(self, path: VersionPath, future: Future[ServedVersion]) -> None:
        """Runs on a loader thread, or at once where the pool is shut down."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            served = future.result()
            self._attempts.pop((path.model, path.version), None)
            self._registry.set_ready(served)
            text = "ready: %s version %d on %s in %.0f ms, %s"
            _log.info(text, path.model, path.version, served.provider, served.load_ms, _proof_text(served))
        else:
            reason = str(error) if isinstance(error, LoadError) else "internal error while loading; the log has it"
            known = error if not isinstance(error, LoadError) else None
            _log.error("failed: %s version %d: %s", path.model, path.version, reason, exc_info=known)
            self._registry.set_state(path.model, path.version, State.FAILED, reason=reason)
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
        self._scan()
        self._unloaded.discard(model)
        self._aside = {name: entry for name, entry in self._aside.items() if entry.model != model}
        for version, state in self._registry.states(model).items():
            if state is State.FAILED:
                self._registry.set_state(model, version, State.PENDING)
        if model not in self._sources:
            on_done(_unknown_model(model))
        else:
            self._waiting.append((model, on_done))

    def _begin_unload(self, model: str, on_done: OnDone) -> None:
        if model in self._models():
            self._unloaded.add(model)
            self._waiting.append((model, on_done))
        else:
            on_done(None)

    def _show(self, model: str, source: ModelSource) -> None:
        self._registry.set_present(model, list(source.versions), source.labels, source.traffic)

    def _try_edits(self) -> None:
        edits, self._edits = self._edits, []
        for edit in edits:
            try:
                is_due = self._is_due(edit)
                if is_due:
                    edit.apply()
            except ServiceError as error:
                edit.on_done(error)
                continue
            except Exception as error:
                edit.on_done(incident(f"an edit of model '{edit.model}'", error))
                continue
            if is_due:
                self._scan()
                self._show(edit.model, self._sources.get(edit.model, ModelSource()))
                edit.on_done(None)
                self._has_moved(edit.model)
            else:
                self._edits.append(edit)

    def _is_due(self, edit: _Edit) -> bool:
        """Tells whether an edit can be made now.

        Raises:
            ServiceError: it never can.
        """
        model, version = edit.model, edit.version
        if model not in self._sources:
            raise _unknown_model(model)
        if version == 0 or model in self._unloaded:
            return True
        found = next((each for each in self._registry.model(model).versions if each.version == version), None)
        if found is None:
            raise ServiceError(Reason.VERSION_NOT_FOUND, f"model '{model}' has no version {version}", model=model)
        if found.state is State.FAILED:
            text = f"model '{model}' version {version} failed to load: {found.reason}"
            raise ServiceError(Reason.MODEL_FAILED, text, model=model)
        return found.state is State.READY

    def _is_unsettled(self, model: str) -> bool:
        aspired = set(self._aspired(model))
        states = self._registry.states(model)
        is_moving = any(states.get(version, State.PENDING) in _UNSETTLED for version in aspired)
        return is_moving or (
            model in self._unloaded and any(s in (State.LOADING, State.READY, State.UNLOADING) for s in states.values())
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
        if not aspired or any(states.get(version) is State.READY for version in aspired):
            return None
        failed = {entry.version: entry.reason for entry in self._registry.model(model).versions}
        reasons = "; ".join(f"version {version}: {failed.get(version, '')}" for version in aspired)
        return ServiceError(Reason.LOAD_FAILED, f"model '{model}' could not be loaded: {reasons}", model=model)


def _unknown_model(model: str) -> ServiceError:
    return ServiceError(Reason.MODEL_NOT_FOUND, f"model '{model[:128]}': not in the repository", model=model[:128])


def _proof_text(served: ServedVersion) -> str:
    if served.replay is None:
        return "unverified: no manifest with checksums and a probe beside it"
    text = f"its probe gave torch's answers within the tolerance, replayed in {served.replay.replay_ms:.1f} ms"
    return f"verified: checksums hold, {text}" if served.is_verified else f"unverified: no checksums, but {text}"
