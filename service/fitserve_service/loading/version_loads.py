"""Loads versions once their files are there, anew where these change, and again where circumstances failed them.

Decisions are made on the reconciler's thread; loads end on their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from fitserve_contract.repository import VersionPath
from fitserve_service.loading.load_attempts import LoadAttempts
from fitserve_service.loading.load_errors import (
    THREADS,
    IncompleteError,
    LoadEndedError,
    LoadError,
    ShortageError,
    as_shortage,
    shortage_kind_of_text,
)
from fitserve_service.loading.replaced_files import ReplacedFiles
from fitserve_service.loading.resting_files import REST_S, Look, Name, RestingFiles
from fitserve_service.loading.version_files import Stamp
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion, VersionLoader
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import State

_LEAST_LOOK_S: Final = 0.05

_MODELS_IN_TURN: Final = 256
"""Of more models, so many are looked at each time for changed files: a look must not keep callers waiting."""

_log = logging.getLogger(__name__)


class LoadInputs(Protocol):
    """What loads depend on besides files; see `aspirations.Aspirations`."""

    @property
    def absence(self) -> str:
        """Says why the repository is taken to be away; empty where it is there."""
        ...

    def overrides(self, model: str) -> Overrides:
        """Gives what a model's `model.toml` says."""
        ...

    def problem(self, model: str, version: int) -> str:
        """Says why a version cannot be loaded now; empty where nothing stands against it."""
        ...

    def grounds(self, model: str, stamp: Stamp) -> object:
        """Gives all that the outcome of a load depends on."""
        ...


@dataclass(frozen=True, slots=True)
class _Begun:
    """A load that was begun: of what, by which settings, and what its files were."""

    path: VersionPath
    overrides: Overrides
    look: Look

    @property
    def name(self) -> Name:
        return (self.path.model, self.path.version)


class VersionLoads:
    """The loads of one server. Used on the reconciler's thread alone.

    Args:
        source: The repository.
        loader: Makes served versions.
        registry: Where they are kept.
        pool: Carries loads out.
        inputs: What they depend on besides files.
        has_moved: Told, on any thread, the name of a model whose version has come or failed.
        rest_s: See `RestingFiles`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: RepositorySource,
        loader: VersionLoader,
        registry: Registry,
        pool: Executor,
        inputs: LoadInputs,
        has_moved: Callable[[str], None],
        *,
        rest_s: float = REST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._loader = loader
        self._registry = registry
        self._pool = pool
        self._inputs = inputs
        self._has_moved = has_moved
        self._look_s = max(rest_s, _LEAST_LOOK_S)
        self._clock = clock
        self._resting = RestingFiles(source.see, source.path, rest_s=rest_s, clock=clock)
        self._attempts = LoadAttempts(clock=clock)
        self._replaced = ReplacedFiles()
        self._awaited: dict[Name, str] = {}
        """Versions whose files are not all there yet, and what is awaited."""
        self._asked: set[Name] = set()
        """Versions that serve, and whose files a caller wants read again."""
        self._turn = 0
        self._renewing: set[Name] = set()
        """Versions that are read again, and perhaps loaded anew, beside those that serve."""

    def take(self, model: str, version: int) -> None:
        """Has a version loaded that is wanted, or leaves it PENDING where its files are not all there."""
        name = (model, version)
        look = self._resting.look(name)
        if problem := self._inputs.problem(model, version):
            self._attempts.begin(name, self._inputs.grounds(model, look.stamp))
            self._registry.set_state(model, version, State.FAILED, reason=problem)
        elif look.refusal and not self._inputs.absence:
            self._begin(name, look)
            self._awaited.pop(name, None)
            reason = self._attempts.fail(name, LoadError(look.refusal))
            self._registry.set_state(model, version, State.FAILED, reason=reason)
        elif awaited := self._inputs.absence or look.awaited:
            self._await(name, awaited)
        else:
            self._awaited.pop(name, None)
            self._registry.set_state(model, version, State.LOADING)
            begun = self._begin(name, look)
            self._submit(begun, partial(self._loader.load, begun.path, begun.overrides), self._loaded)

    def retry(self, model: str) -> None:
        """Makes failed versions PENDING that are worth another try: files or settings changed, or the time has come."""
        for version, state in self._registry.states(model).items():
            name = (model, version)
            if state is not State.FAILED or self._inputs.absence:
                continue
            look = self._resting.look(name)
            if self._attempts.is_worth_another(name, self._inputs.grounds(model, look.stamp)):
                self._registry.set_state(model, version, State.PENDING)

    def in_turn(self, models: Iterable[str]) -> list[str]:
        """Returns the models whose files are looked at now: whose turn it is, that move, or that are asked for."""
        names = sorted(models)
        if len(names) <= _MODELS_IN_TURN:
            return names
        first = self._turn % len(names)
        self._turn = first + _MODELS_IN_TURN
        watched = {model for model, _ in (*self._asked, *self._awaited)} & set(names)
        return [*{*(names + names)[first : first + _MODELS_IN_TURN], *watched}]

    def renew(self, model: str) -> None:
        """Looks at the files of versions that serve; those that changed or that a caller asks for are read again."""
        if self._inputs.absence:
            return
        states = self._registry.states(model)
        for version, served in self._registry.served(model).items():
            name = (model, version)
            if states.get(version) is not State.READY:
                self._asked.discard(name)
            elif name not in self._renewing:
                self._renew(name, served)

    def ask(self, model: str) -> None:
        """Has everything of a model read again, and what failed tried again: a caller wants it loaded."""
        for version, state in self._registry.states(model).items():
            if state is State.READY:
                self._asked.add((model, version))
            elif state is State.FAILED:
                self._attempts.forget((model, version))
                self._registry.set_state(model, version, State.PENDING)

    def is_under_way(self, name: Name) -> bool:
        """Tells whether a version that serves is to be read again, or is."""
        return name in self._renewing or (name in self._asked and not self._inputs.absence)

    def awaited(self, name: Name) -> str:
        """Says which files of a version are awaited; empty where none are, or it was not looked at often enough."""
        is_known = self._resting.is_moving(name) or self._inputs.absence
        return self._awaited.get(name, "") if is_known else ""

    def late(self, model: str) -> list[int]:
        """Gives the versions of a model that are not loaded because their files were seen to move."""
        states = self._registry.states(model)
        return [number for number, state in states.items() if state is State.PENDING and self.awaited((model, number))]

    def failure(self, name: Name) -> str:
        """Says why what lies in the folder of a version that serves could not take its place; empty: it could."""
        return self._attempts.reason(name)

    def next_look_s(self) -> float | None:
        """Returns when, by the monotonic clock, a look is due before the usual time; None: none is."""
        due = [self._clock() + self._look_s] if self._awaited or self._asked else []
        if (next_s := self._attempts.next_due_s()) is not None:
            due.append(max(next_s, self._clock() + _LEAST_LOOK_S))
        return min(due, default=None)

    def forget_gone(self) -> None:
        """Forgets versions that the registry does not know any more."""
        known = {(model, version) for model in self._registry.names() for version in self._registry.states(model)}
        self._resting.keep(known)
        self._attempts.keep(known)
        self._asked &= known
        self._awaited = {name: text for name, text in self._awaited.items() if name in known}

    def _await(self, name: Name, awaited: str) -> None:
        is_told = self._awaited.get(name) == awaited
        self._awaited[name] = awaited
        if not is_told or self._registry.states(name[0]).get(name[1]) is not State.PENDING:
            self._registry.set_state(*name, State.PENDING, reason=awaited)
        if not is_told and self.awaited(name) and not self._inputs.absence:
            _log.info("waiting: %s version %d: %s", *name, awaited)

    def _renew(self, name: Name, served: ServedVersion) -> None:
        look, overrides = self._resting.look(name), self._inputs.overrides(name[0])
        has_moved, is_asked = self._replaced.has_moved(served, look.stamp), name in self._asked
        has_other_settings = self._replaced.has_other_settings(served, overrides)
        if has_moved and look.awaited:
            self._awaited[name] = look.awaited
            return
        self._awaited.pop(name, None)
        if not (has_moved or has_other_settings or is_asked):
            return
        grounds = self._inputs.grounds(name[0], look.stamp)
        if not any(look.stamp) or not (is_asked or self._attempts.is_worth_another(name, grounds)):
            # Files that are gone are no other version.
            self._asked.discard(name)
            return
        self._asked.discard(name)
        self._renewing.add(name)
        begun = self._begin(name, look)
        work = partial(self._read_again, begun, served, must=has_other_settings)
        self._submit(begun, work, partial(self._renewed, served))

    def _begin(self, name: Name, look: Look) -> _Begun:
        self._attempts.begin(name, self._inputs.grounds(name[0], look.stamp))
        return _Begun(self._source.path(*name), self._inputs.overrides(name[0]), look)

    def _submit(
        self,
        begun: _Begun,
        work: Callable[[], ServedVersion],
        ended: Callable[[_Begun, Future[ServedVersion]], None],
    ) -> None:
        """Has a version loaded; `ended` runs on a loader thread, or at once where the pool is shut down."""
        try:
            future = self._pool.submit(work)
        except RuntimeError as error:
            if shortage_kind_of_text(str(error)) != THREADS:
                raise
            future = Future()
            future.set_exception(ShortageError("no thread could be started to load it", THREADS))
        future.add_done_callback(partial(ended, begun))

    def _read_again(self, begun: _Begun, served: ServedVersion, *, must: bool) -> ServedVersion:
        """Loads a version anew where its files hold something else; gives the old one back where they do not."""
        if not must and self._source.holds(*begun.name, served.file_sums):
            return served
        what = "its model.toml says something else" if must else "other files are in its folder"
        _log.info("%s version %d has changed: %s; loading it anew", *begun.name, what)
        return self._loader.load(begun.path, begun.overrides)

    def _loaded(self, begun: _Begun, future: Future[ServedVersion]) -> None:
        if _was_ended(future):
            return
        error = _error(future)
        if self._is_of_other_files(begun, error):
            self._attempts.forget(begun.name)
            self._registry.set_state(*begun.name, State.PENDING, reason="its files still change")
        elif error is not None:
            reason = self._attempts.fail(begun.name, error)
            self._registry.set_state(*begun.name, State.FAILED, reason=reason)
        else:
            served = future.result()
            self._attempts.forget(begun.name)
            self._replaced.remember(served, begun.look.stamp, begun.overrides)
            self._registry.set_ready(served)
            _log_ready(served)
        self._has_moved(begun.path.model)

    def _renewed(self, old: ServedVersion, begun: _Begun, future: Future[ServedVersion]) -> None:
        if _was_ended(future):
            return
        error = _error(future)
        if self._is_of_other_files(begun, error):
            # Whoever asked is answered by what is there when it has come to rest.
            self._attempts.forget(begun.name)
            self._asked.add(begun.name)
        elif error is not None:
            reason = self._attempts.fail(begun.name, error, "not taken over, what was loaded goes on")
            text = f"what lies in its folder is not what serves, and does not load: {reason}"
            self._registry.set_note(*begun.name, text)
        else:
            new = future.result()
            self._attempts.forget(begun.name)
            self._replaced.remember(new, begun.look.stamp, begun.overrides)
            if new is old:
                self._registry.set_note(*begun.name, "")
            elif self._registry.renew(old, new):
                _log_ready(new)
        self._renewing.discard(begun.name)
        self._has_moved(begun.path.model)

    def _is_of_other_files(self, begun: _Begun, error: BaseException | None) -> bool:
        """Tells whether a load says nothing of what lies there: files moved meanwhile, or had not come to rest."""
        if isinstance(error, ShortageError):
            return False
        is_early = isinstance(error, IncompleteError) and not begun.look.is_at_rest
        return is_early or self._source.version_stamp(*begun.name) != begun.look.stamp


def _was_ended(future: Future[ServedVersion]) -> bool:
    """Tells whether the server ended a load because it ends itself: then nobody asks what came of it."""
    return future.cancelled() or isinstance(future.exception(), LoadEndedError)


def _error(future: Future[ServedVersion]) -> BaseException | None:
    error = future.exception()
    return as_shortage(error) if error is not None else None


def _log_ready(served: ServedVersion) -> None:
    text = "ready: %s version %d on %s in %.0f ms, %s"
    _log.info(text, served.model, served.version, served.provider, served.load_ms, _proof_text(served))


def _proof_text(served: ServedVersion) -> str:
    if served.replay is None:
        return "unverified: no manifest with checksums and a probe beside it"
    text = f"its probe gave torch's answers within the tolerance, replayed in {served.replay.replay_ms:.1f} ms"
    return f"verified: checksums hold, {text}" if served.is_verified else f"unverified: no checksums, but {text}"
