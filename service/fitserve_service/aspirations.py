"""What is wanted of each model: what the repository last showed, less what calls unloaded and crashes set aside.

It only answers; the reconciler acts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeAlias

from fitserve_contract.printable import printable
from fitserve_service.crashes import SetAside
from fitserve_service.errors import ServiceError
from fitserve_service.known_model import unknown_model
from fitserve_service.loading.repository_presence import CURE, RootId, absence
from fitserve_service.loading.version_files import Stamp
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.repository_state import RepositoryState
from fitserve_service.source import ModelSource, RepositorySource
from fitserve_service.version_policy import State, aspired_versions

Grounds: TypeAlias = tuple[object, ...]
"""All that the outcome of a load depends on; equal where another try would end alike."""

_NOTHING = ModelSource()

_TRIES: Final = 4

_log = logging.getLogger(__name__)


class Aspirations:
    """What is wanted of every model. Used on the reconciler's thread alone.

    Args:
        source: The repository.
        registry: What the server holds.
        unloaded: Models that nothing is wanted of until `want`.
        set_aside: Versions that are not to be loaded until their files change, or `want`.

    Attributes:
        absence: Why the repository is taken to be away, for people; empty where it is there.
        absence_count: How often it went away.
    """

    def __init__(
        self,
        source: RepositorySource,
        registry: Registry,
        *,
        unloaded: Iterable[str] = (),
        set_aside: Iterable[SetAside] = (),
    ) -> None:
        self._source = source
        self._registry = registry
        self._unloaded = set(unloaded)
        self._aside = {(entry.model, entry.version): entry for entry in set_aside}
        self._found: Mapping[str, ModelSource] = {}
        self._root: RootId | None = None
        self.absence = ""
        self.absence_count = 0

    def look(self) -> None:
        """Looks at the repository; where it cannot be read or is suddenly empty, what the last look found holds."""
        try:
            found, root = self._scan()
            why = absence(self._found, found, self._root, root)
            why = f"is away, {why}" if why else ""
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        else:
            if not why:
                self._found, self._root = found, root
        self._note_absence(why)

    def _scan(self) -> tuple[Mapping[str, ModelSource], RootId]:
        """Looks at one root: one that is replaced meanwhile shows a part of its models, or of two roots'."""
        for _ in range(_TRIES - 1):
            root, found = self._source.root_id(), dict(self._source.scan())
            if self._source.root_id() == root:
                return found, root
        return dict(self._source.scan()), self._source.root_id()

    def _note_absence(self, why: str) -> None:
        where = f"repository '{printable(str(self._source.root))}'"
        if why and not self.absence:
            self.absence_count += 1
            _log.error("%s %s: what is loaded goes on; %s", where, why, CURE)
        elif self.absence and not why:
            _log.info("%s can be read again", where)
        self.absence = f"the repository {why}: what was loaded goes on; {CURE}" if why else ""

    def state(self) -> RepositoryState:
        """Gives what the last look has to say beside models."""
        return RepositoryState(self.absence, self.absence_count, self._source.notes)

    def absence_of(self, model: str) -> str:
        """Says why the repository, or a model's folder, is taken to be away; empty where both are there."""
        source = self.source(model)
        return self.absence or (source.problem if source.is_away else "")

    def found(self) -> Mapping[str, ModelSource]:
        """Gives the models that the last look found, and what the repository says of each."""
        return self._found

    def source(self, model: str) -> ModelSource:
        """Gives what the repository says of a model; nothing of one that the last look did not find."""
        return self._found.get(model, _NOTHING)

    def versions(
        self, model: str, *, pinned: Iterable[int] = (), late: Iterable[int] = (), has_stand_ins: bool = True
    ) -> list[int]:
        """Gives the versions of a model that are to be loaded, ascending.

        Args:
            model: Model name.
            pinned: Versions that something waits for.
            late: Versions whose files are still to come.
            has_stand_ins: Where a version failed or is late, the one below it is wanted in its place.
        """
        source = self._found.get(model)
        if source is None or model in self._unloaded:
            return []
        values = source.overrides.values
        states = self._registry.states(model) if has_stand_ins else {}
        return aspired_versions(
            source.versions,
            keep=values.get("keep_versions", 1),
            exactly=values.get("versions", ()),
            labelled=[*source.labels.values(), *self._registry.labels(model).values(), *pinned],
            failed=[*late, *(version for version, state in states.items() if state is State.FAILED)],
        )

    def unknown(self, model: str) -> ServiceError:
        """Says that the repository has no such model; why it may have it all the same, where that is known."""
        error = unknown_model(model)
        notes = [note for note in self._source.notes if f"'{model}/" in note or f"model '{model}'" in note]
        # A caller learns what is amiss with what he asked for, and nothing of other models.
        told = "; ".join(filter(None, [self.absence, *notes]))
        return ServiceError(error.reason, f"{error.message}; {told}", **error.metadata) if told else error

    def is_unloaded(self, model: str) -> bool:
        """Tells whether a call unloaded a model."""
        return model in self._unloaded

    def unload(self, model: str) -> None:
        """Wants nothing of a model until `want`."""
        self._unloaded.add(model)

    def want(self, model: str) -> None:
        """Wants a model again, and those of its versions that were set aside."""
        self._unloaded.discard(model)
        self._aside = {name: entry for name, entry in self._aside.items() if entry.model != model}

    def set_aside(self, entry: SetAside) -> None:
        """Wants a version no more, until its files change, or `want`."""
        self._aside[entry.model, entry.version] = entry

    def aside(self, model: str) -> Collection[SetAside]:
        """Gives the versions of a model that are set aside; one whose files changed since is like any other."""
        entries = [entry for entry in self._aside.values() if entry.model == model]
        for entry in [entry for entry in entries if self._has_changed(entry)]:
            entries.remove(entry)
            del self._aside[model, entry.version]
        return entries

    def problem(self, model: str, version: int) -> str:
        """Says why a version that is wanted cannot be loaded now; empty where nothing stands against it."""
        aside = self._aside.get((model, version))
        return aside.reason if aside else self.source(model).problem

    def overrides(self, model: str) -> Overrides:
        """Gives what a model's `model.toml` says; where it cannot be read, what it said last."""
        return self.source(model).overrides

    def grounds(self, model: str, stamp: Stamp) -> Grounds:
        """Gives what a load of a version depends on: files, settings, and whether its folder can be read.

        Args:
            model: Model name.
            stamp: Of the version's files.
        """
        source = self.source(model)
        return (source.problem, source.overrides, stamp)

    def _has_changed(self, entry: SetAside) -> bool:
        seen = self._source.see(entry.model, entry.version)
        return not seen.problem and seen.stamp != entry.stamp and not self.absence
