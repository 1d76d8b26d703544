"""Brings what the server holds to what is wanted, step by step of the policy; explicit loads and unloads pass here too.

One thread decides, a few load. Everything that decides is in `reconcile_once`, which a test calls without a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from fitserve_service.aspirations import Aspirations
from fitserve_service.crashes import SetAside
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.loading.resting_files import REST_S
from fitserve_service.loading.version_loads import VersionLoads
from fitserve_service.model_edits import ModelEdit, ModelEdits, OnDone
from fitserve_service.registry import Registry
from fitserve_service.served_version import VersionLoader
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import Action, State, Step, next_steps

_log = logging.getLogger(__name__)

_UNSETTLED = (State.PENDING, State.LOADING, State.UNLOADING)

_PATIENCE_S: Final = 30.0
"""How long a call of `load` waits for files that still change."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that waits for a model to settle.

    Args:
        model: Model name.
        on_done: Called then.
        until_s: When it waits no longer for files that still change, monotonic seconds.
    """

    model: str
    on_done: OnDone
    until_s: float


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
        rest_s: How long the files of a version without checksums rest before it is loaded; see `RestingFiles`.
        clock: Monotonic seconds.
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
        rest_s: float = REST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._registry = registry
        self._clock = clock
        self._poll_interval_s = poll_interval_s
        self._pool = loaders or ThreadPoolExecutor(loader_count, thread_name_prefix="loader")
        self._wake = threading.Event()
        self._is_stopping = False
        self._lock = threading.Lock()
        self._commands: list[Callable[[], None]] = []
        self._waiting: list[_Waiting] = []
        self._aspirations = Aspirations(source, registry, unloaded=unloaded, set_aside=set_aside)
        self._edits = ModelEdits(registry, self._aspirations, self._show_edited)
        self._loads = VersionLoads(
            source, loader, registry, self._pool, self._aspirations, self._has_moved, rest_s=rest_s, clock=clock
        )
        self._also: Mapping[str, Collection[int]] = {}
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

    def show(self, model: str, on_done: OnDone) -> None:
        """Looks at a model now; `on_done` is called with None once each aspired version is READY or FAILED."""
        self._command(lambda: self._begin_show(model, on_done))

    def serve_also(self, versions: Mapping[str, Collection[int]]) -> None:
        """Loads these versions too, by model: other workers answer with them. Replaces what was said before."""
        before, self._also = self._also, versions
        for model in {*before, *versions}:
            self._has_moved(model)

    def set_aside(self, entry: SetAside) -> None:
        """Unloads a version that crashes its process; it stays FAILED until its files change or a call of `load`."""
        self._command(lambda: self._aspirations.set_aside(entry))

    def reconcile_once(self) -> None:
        """Looks at the repository and starts all that is to be done now."""
        self._run_commands()
        self._aspirations.look()
        self._registry.repository = self._aspirations.state()
        if self._unsettled is None:
            self._unsettled = set(self._aspirations.found())
        self._moved.clear()
        for model in self._loads.in_turn(self._aspirations.found()):
            if self._is_renewable(model):
                self._loads.renew(model)
        self._reconcile(sorted(self._models()))
        self._loads.forget_gone()

    def _reconcile(self, models: Iterable[str]) -> None:
        for model in models:
            self._show(model)
            self._retire_aside(model)
            self._loads.retry(model)
            aspired = self._aspired(model)
            self._reclaim(model, aspired)
            self._rest(model, aspired)
            for step in next_steps(self._registry.states(model), aspired):
                self._take(model, step)
        self._answer_waiting()
        self._edits.make_due()
        self._settle()

    def _settle(self) -> None:
        unsettled = self._unsettled
        while unsettled and not self._is_unsettled(model := next(iter(unsettled)), is_patient=False):
            unsettled.remove(model)
        if unsettled is not None and not unsettled:
            self._is_settled.set()

    def _work(self) -> None:
        self._source.remove_leftovers()
        look_s = 0.0
        while not self._is_stopping:
            try:
                if self._commands or time.monotonic() >= look_s:
                    # At the same moments in all processes: workers that see the same versions load the same ones.
                    look_s = (time.monotonic() // self._poll_interval_s + 1) * self._poll_interval_s
                    self.reconcile_once()
                else:
                    self._reconcile_moved()
            except Exception:
                _log.exception("reconciling failed; trying again in %g s", self._poll_interval_s)
            if (early_s := self._loads.next_look_s()) is not None:
                look_s = min(look_s, early_s)
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
        pinned = [*self._edits.versions(model), *self._also.get(model, ())]
        late = self._loads.late(model) if has_stand_ins else ()
        return self._aspirations.versions(model, pinned=pinned, late=late, has_stand_ins=has_stand_ins)

    def _retire_aside(self, model: str) -> None:
        """Takes versions out of service that were set aside."""
        for entry in self._aspirations.aside(model):
            if self._registry.states(model).get(entry.version) is State.READY:
                _log.error("%s version %d: %s", model, entry.version, entry.reason)
                self._registry.retire(model, entry.version, partial(self._has_moved, model))

    def _reclaim(self, model: str, aspired: list[int]) -> None:
        """Keeps versions that are wanted again while they still answer, because the other workers answer with them."""
        views = self._registry.views
        if views is None:
            return
        for version in aspired:
            if not self._aspirations.problem(model, version):
                views.reclaim(model, version)

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
        self._loads.take(model, step.version)

    def _is_renewable(self, model: str) -> bool:
        """Tells whether what a model's folder says is what is wanted of it."""
        return not self._aspirations.source(model).problem and not self._aspirations.is_unloaded(model)

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
        if model not in self._aspirations.found():
            on_done(self._aspirations.unknown(model))
            return
        self._loads.ask(model)
        if self._is_renewable(model):
            self._loads.renew(model)
        self._wait_for(model, on_done)

    def _wait_for(self, model: str, on_done: OnDone) -> None:
        self._waiting.append(_Waiting(model, on_done, self._clock() + _PATIENCE_S))

    def _begin_show(self, model: str, on_done: OnDone) -> None:
        self._aspirations.look()
        self._wait_for(model, lambda _: on_done(None))

    def _begin_unload(self, model: str, on_done: OnDone) -> None:
        if model in self._models():
            self._aspirations.unload(model)
            self._wait_for(model, on_done)
        else:
            on_done(None)

    def _show(self, model: str) -> None:
        source = self._aspirations.source(model)
        self._registry.set_present(model, list(source.versions), source.labels, source.traffic)

    def _show_edited(self, model: str) -> None:
        self._aspirations.look()
        self._show(model)
        self._has_moved(model)

    def _is_unsettled(self, model: str, *, is_patient: bool = True) -> bool:
        """Tells whether a model is on its way to what is wanted of it.

        Args:
            model: Model name.
            is_patient: Files that still change count as on their way: they may be there in a moment.
        """
        states = self._registry.states(model)
        for version in self._aspired(model):
            name = (model, version)
            state = states.get(version, State.PENDING)
            is_moving = state in (*_UNSETTLED, State.UNLOADED) or self._loads.is_under_way(name)
            if is_moving and (is_patient or not self._loads.awaited(name)):
                return True
        return self._aspirations.is_unloaded(model) and any(
            state in (State.LOADING, State.READY, State.UNLOADING) for state in states.values()
        )

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if self._is_unsettled(each.model, is_patient=self._clock() < each.until_s):
                self._waiting.append(each)
            else:
                each.on_done(self._outcome(each.model))

    def _outcome(self, model: str) -> ServiceError | None:
        """Tells whether what is wanted of a model serves, and what keeps answering where it does not."""
        if self._aspirations.is_unloaded(model):
            return None
        aspired, states = self._aspired(model, has_stand_ins=False), self._registry.states(model)
        reasons = {version: self._refusal(model, version, states.get(version)) for version in aspired}
        told = "; ".join(f"version {version}: {reason}" for version, reason in reasons.items() if reason)
        told = told or self._aspirations.source(model).problem or self._aspirations.absence
        if not told:
            return None
        text = f"model '{model}' could not be loaded: {told}{self._still_answering(model)}"
        return ServiceError(Reason.LOAD_FAILED, text, model=model)

    def _refusal(self, model: str, version: int, state: State | None) -> str:
        name = (model, version)
        if state is State.READY:
            return self._loads.failure(name) or self._loads.awaited(name)
        known = {entry.version: entry.reason for entry in self._registry.model(model).versions}
        return self._loads.awaited(name) or known.get(version) or f"it is {state or State.PENDING}"

    def _still_answering(self, model: str) -> str:
        ready = [version for version, state in self._registry.states(model).items() if state is State.READY]
        if not ready:
            return ""
        versions = ", ".join(map(str, sorted(ready)))
        return f"; version {versions}, as loaded before, goes on answering"
