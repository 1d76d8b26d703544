"""Watches a model repository: which models and versions are there, their labels and overrides.

Polling, not file-system events: it works on every file system, network mounts included, and has no queue to overflow.
A model's folder is read again only when its time stamps moved, so that a thousand idle models cost a thousand `stat`s.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

from fitserve_contract import repository
from fitserve_contract.files import read_beneath
from fitserve_contract.labels import read_labels
from fitserve_service.model_config import Overrides, read_overrides
from fitserve_service.traffic import NO_TRAFFIC, TRAFFIC_FILE, Traffic, read_traffic

_SETTLED_NS = 2_000_000_000
"""A folder that changed within this time is read again: its file system's clock may tick more coarsely than we look."""

_ABANDONED_S = 10.0
"""A folder that nobody holds and that is older was left by a publisher that died."""

Marks: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, time of modification and of change of a file: whoever replaces it may keep some, but not all."""

_MODIFIED_NS: Final = 3

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
    """

    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=lambda: Overrides({}))
    traffic: Traffic = NO_TRAFFIC
    problem: str = ""


class RepositorySource:
    """A repository on disk. Not thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[tuple[Marks, ...], ModelSource]] = {}

    def remove_leftovers(self) -> None:
        """Removes what publishers that died left in the repository; one that cannot be written to keeps it."""
        try:
            for path in repository.remove_leftovers(self.root, older_than_s=_ABANDONED_S, now_s=time.time()):
                _log.info("removed %s/%s: left by a publisher that died", path.parent.name, path.name)
        except OSError as error:
            _log.warning("leftovers of publishers could not be looked for: %s", error.strerror)

    def scan(self) -> Mapping[str, ModelSource]:
        """Reads what changed since the last call and gives all models.

        Raises:
            OSError: the repository itself cannot be read.
        """
        names = repository.models(self.root)
        for gone in self._known.keys() - set(names):
            del self._known[gone]
        for name in names:
            marks = self._marks(name)
            newest_ns = max(each[_MODIFIED_NS] for each in marks)
            known = self._known.get(name)
            if known is None or known[0] != marks or time.time_ns() - newest_ns < _SETTLED_NS:
                self._known[name] = (marks, self._read(name, known[1] if known else ModelSource()))
        return {name: source for name, (_, source) in self._known.items() if source.versions}

    def _marks(self, model: str) -> tuple[Marks, ...]:
        # Strings, not paths: this is done for every model at every look.
        folder = f"{self.root}/{model}"
        names = (repository.LABELS_FILE, repository.OVERRIDES_FILE, TRAFFIC_FILE)
        return (_marks(folder), *(_marks(f"{folder}/{name}") for name in names))

    def version_stamp(self, model: str, version: int) -> tuple[int, ...]:
        """Gives what changes when a version's files do; see `version_stamp`."""
        return version_stamp(self.root, model, version)

    def version_sums(self, model: str, version: int) -> str:
        """Returns the checksums of a version's files: those that it was published with, else of what lies there.

        Raises:
            OSError: a file cannot be read.
            ValueError: the folder holds what is no plain file of its own.
        """
        folder = self.root / model / str(version)
        try:
            return read_beneath(folder, repository.CHECKSUMS_FILE, max_bytes=repository.MAX_TEXT_BYTES).decode(
                "latin-1"
            )
        except FileNotFoundError:
            if not (folder / repository.MODEL_FILE).is_file():
                raise
            return repository.checksum_text(repository.checksums(folder))

    def _read(self, model: str, last: ModelSource) -> ModelSource:
        try:
            last = replace(last, versions=tuple(repository.versions(self.root, model)))
            labels = read_labels(self.root, model)
            overrides, traffic = read_overrides(self.root, model), read_traffic(self.root, model)
            return ModelSource(last.versions, labels, overrides, traffic)
        except (ValueError, RecursionError) as error:
            return replace(last, problem=str(error))
        except OSError as error:
            return replace(last, problem=f"model '{model}': its folder cannot be read: {error.strerror}")


def version_stamp(root: Path, model: str, version: int) -> tuple[int, ...]:
    """Returns what changes when a version's files do: a version that failed is worth another try then.

    Sizes and times of modification may be those of the files before; inode and time of change are not.
    """
    folder = f"{root}/{model}/{version}"
    return (*_marks(folder), *_marks(f"{folder}/{repository.MODEL_FILE}"))


def _marks(path: str) -> Marks:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0, 0, 0)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
