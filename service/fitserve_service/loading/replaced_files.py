"""Tells whether other files lie in the folder of a version than those that it was loaded from.

A version's folder may be deleted and made anew, or swapped with another, between two looks at the repository: its name
and number are the same. What changes cheaply tells that a second look is due; only other content is another version, so
that a new owner, mode or inode number alone reloads nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from fitserve_service.served_version import ServedVersion


class VersionFiles(Protocol):
    """The files of versions; see `source.RepositorySource`."""

    def version_stamp(self, model: str, version: int) -> tuple[int, ...]:
        """Returns what changes when a version's files do."""
        ...

    def version_sums(self, model: str, version: int) -> str:
        """Returns the checksums of a version's files. Raises OSError or ValueError where they cannot be read."""
        ...


@dataclass(slots=True)
class _Known:
    """What is known of the files of one loaded instance.

    Args:
        digest: Of the content that it was loaded from; empty: files changed while it was loaded.
        stamp: Of the files whose content was compared last.
        seen: Stamp at the last look.
        is_replaced: The content compared last was another.
    """

    digest: str
    stamp: tuple[int, ...]
    seen: tuple[int, ...]
    is_replaced: bool = False


class ReplacedFiles:
    """Remembers what loaded versions were loaded from. It keeps none of them loaded.

    Args:
        files: The repository.
    """

    def __init__(self, files: VersionFiles) -> None:
        self._files = files
        self._known: WeakKeyDictionary[ServedVersion, _Known] = WeakKeyDictionary()

    def remember(self, served: ServedVersion, stamp: tuple[int, ...]) -> None:
        """Notes what a version was loaded from; reads its files. On any thread.

        Args:
            served: The version.
            stamp: Of its files, taken before they were loaded.
        """
        digest = self._digest(served)
        is_unchanged = stamp == self._files.version_stamp(served.model, served.version)
        self._known[served] = _Known(digest if is_unchanged else "", stamp, stamp)

    def is_replaced(self, served: ServedVersion, *, is_asked: bool = False) -> bool:
        """Looks whether other files are there now; on the reconciler's thread.

        Args:
            served: A version that serves.
            is_asked: A caller wants the version loaded: files that moved since the last look are compared at once, and
                those that did not load before are tried again. Else they may still be being copied.
        """
        known = self._known.get(served)
        if known is None:
            return False
        stamp = self._files.version_stamp(served.model, served.version)
        if stamp == known.stamp:
            return is_asked and known.is_replaced
        is_still, known.seen = stamp == known.seen, stamp
        if not (is_still or is_asked):
            return False
        known.stamp = stamp
        digest = self._digest(served)
        known.is_replaced = bool(digest) and digest != known.digest
        return known.is_replaced

    def _digest(self, served: ServedVersion) -> str:
        try:
            sums = self._files.version_sums(served.model, served.version)
        except (OSError, ValueError):
            # Files that are gone, or cannot be read, are no other version.
            return ""
        return hashlib.sha256(sums.encode(errors="surrogateescape")).hexdigest()
