"""Watches a model repository: which models and versions are there, their labels and overrides.

Polling, not file-system events: it works on every file system, network mounts included, and has no queue to overflow.
A model's folder is read again only when its time stamps moved, so that a thousand idle models cost a thousand `stat`s.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fitserve_contract import repository
from fitserve_contract.labels import read_labels
from fitserve_contract.repository_view import Root, root_of
from fitserve_service.loading.misplaced_files import misplaced_in_model, misplaced_in_root
from fitserve_service.loading.repository_presence import RootId
from fitserve_service.loading.version_files import Marks, SeenFiles, Stamp, marks_of, see_files
from fitserve_service.loading.version_reader import holds
from fitserve_service.model_config import Overrides, read_overrides
from fitserve_service.traffic import NO_TRAFFIC, TRAFFIC_FILE, Traffic, read_traffic

_BESIDE_VERSIONS = (repository.LABELS_FILE, repository.OVERRIDES_FILE, TRAFFIC_FILE)

_SETTLED_S = 2.5
"""A folder that was seen to change within this time is read again: its file system's clock may tick only every 2 s."""

_ABANDONED_S = 10.0
"""A folder that nobody holds and that is older was left by a publisher that died."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What the repository says of one model.

    Args:
        versions: Ascending.
        labels: Label to version.
        overrides: From model.toml.
        traffic: From traffic.json.
        problem: Why the folder, labels, overrides or traffic cannot be read; empty where they can. Then the last ones
            that could be read hold: a typing error must not unload what serves.
        is_away: Another folder, without a version, is in the place of the model's.
    """

    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=lambda: Overrides({}))
    traffic: Traffic = NO_TRAFFIC
    problem: str = ""
    is_away: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a model.

    Args:
        marks: Of its folder and the files beside its versions, at that time.
        source: What they say.
        notes: What is the matter with them.
        since_s: When the marks were seen first. Our own clock: that of the file system may be another machine's.
    """

    marks: tuple[Marks, ...]
    source: ModelSource
    notes: tuple[str, ...]
    since_s: float


class RepositorySource:
    """A repository on disk. Not thread-safe.

    Args:
        root: Where it is.
        clock: Monotonic seconds.

    Attributes:
        repository: Where it is, and where its links may lead.
        root: Its path.
        notes: What the last look found in the wrong place or could not read, for people, with the cure.
    """

    def __init__(self, root: Root, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.repository = root_of(root)
        self.root = self.repository.path
        self.notes: tuple[str, ...] = ()
        self._known: dict[str, _Known] = {}

    def remove_leftovers(self) -> None:
        """Removes what publishers that died left in the repository; one that cannot be written to keeps it."""
        try:
            for path in repository.remove_leftovers(self.root, older_than_s=_ABANDONED_S, now_s=time.time()):
                _log.info("removed %s/%s: left by a publisher that died", path.parent.name, path.name)
        except OSError as error:
            _log.warning("leftovers of publishers could not be looked for: %s", error.strerror)

    def scan(self) -> Mapping[str, ModelSource]:
        """Reads what changed since the last call and gives all models; names what it finds in the wrong place.

        Raises:
            OSError: the repository itself cannot be read.
        """
        names = repository.models(self.repository)
        for gone in self._known.keys() - set(names):
            del self._known[gone]
        for name in names:
            marks = self._marks(name)
            known = self._known.get(name)
            is_new = known is None or known.marks != marks or self._clock() - known.since_s < _SETTLED_S
            # What could not be read for want of descriptors, or of a server, can be later, and no stamp moves.
            if is_new or (known is not None and (known.source.problem or not known.source.versions)):
                self._known[name] = self._read(name, marks, known)
        self._tell([*misplaced_in_root(self.root), *(note for known in self._known.values() for note in known.notes)])
        return {name: known.source for name, known in self._known.items() if known.source.versions}

    def _tell(self, notes: list[str]) -> None:
        for note in notes:
            if note not in self.notes:
                _log.warning("%s", note)
        self.notes = tuple(notes)

    def _marks(self, model: str) -> tuple[Marks, ...]:
        # Strings, not paths: this is done for every model at every look.
        folder = f"{self.root}/{model}"
        return (marks_of(folder), *(marks_of(f"{folder}/{name}") for name in _BESIDE_VERSIONS))

    def root_id(self) -> RootId:
        """Tells the root from another folder in its place. OSError: it is not there."""
        found = os.stat(self.root)
        return (found.st_dev, found.st_ino)

    def path(self, model: str, version: int) -> repository.VersionPath:
        """Names a version's folder, whether it is there or not."""
        return repository.version_path(self.repository, model, version)

    def see(self, model: str, version: int) -> SeenFiles:
        """Looks at all files of a version."""
        return see_files(self.path(model, version))

    def version_stamp(self, model: str, version: int) -> Stamp:
        """Gives what changes when a version's files do; see `version_stamp`."""
        return self.see(model, version).stamp

    def holds(self, model: str, version: int, sums: Mapping[str, str]) -> bool:
        """Reads a version's files and tells whether they are what was read before; False where they cannot be read."""
        try:
            with self.path(model, version).view() as folder:
                return holds(folder, sums)
        except (OSError, ValueError):
            return False

    def _read(self, model: str, marks: tuple[Marks, ...], known: _Known | None) -> _Known:
        last = replace(known.source, is_away=False) if known else ModelSource()
        notes: list[str] = []
        try:
            versions = tuple(repository.versions(self.repository, model))
            notes += misplaced_in_model(self.root, model, versions)
            if known is not None and last.versions and not versions and known.marks[0][:2] != marks[0][:2]:
                text = f"model '{model}': another folder, without a version, is in its place: what is loaded goes on"
                return replace(known, source=replace(last, problem=text, is_away=True), notes=(*notes, text))
            last = replace(last, versions=versions)
            labels = read_labels(self.repository, model)
            overrides, traffic = read_overrides(self.repository, model), read_traffic(self.repository, model)
            last = ModelSource(last.versions, labels, overrides, traffic)
        except (ValueError, RecursionError) as error:
            last = replace(last, problem=str(error))
        except OSError as error:
            cure = f"; let user {os.geteuid()} read it (chmod u+rX)" if isinstance(error, PermissionError) else ""
            name = Path(str(error.filename or "")).name
            what = f"'{model}/{name}'" if name in _BESIDE_VERSIONS else "its folder"
            last = replace(last, problem=f"model '{model}': {what} cannot be read: {error.strerror}{cure}")
        if last.problem:
            notes.append(last.problem)
        since_s = known.since_s if known is not None and known.marks == marks else self._clock()
        return _Known(marks, last, tuple(notes), since_s)


def version_stamp(root: Root, model: str, version: int) -> Stamp:
    """Returns what changes when any file of a version does: a version that failed is worth another try then.

    Sizes and times of modification may be those of the files before; inode and time of change are not.
    """
    return see_files(repository.version_path(root, model, version)).stamp
