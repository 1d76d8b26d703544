"""Tells whether a version's files are all there: whether they hold what its checksums say, or have come to rest.

Whoever copies a version writes for as long as it takes, and nothing tells the end of it. With `SHA256SUMS` a version is
whole once it holds. Without, it is taken for whole once no file of it has moved between two looks; a file with holes,
as whoever reserves room for it leaves it, has to rest longer. The clock is the caller's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from fitserve_contract.printable import printable
from fitserve_contract.repository import CHECKSUMS_FILE, VersionPath, read_checksums
from fitserve_service.loading.version_files import SeenFiles, Stamp

REST_S: Final = 0.9
"""Looks that agree are at least so far apart: a little less than the usual time between two, so that two are enough."""

SPARSE_REST_S: Final = 10.0
"""How long a file with holes rests before it is taken for whole: it may be a copy whose room was reserved first."""

_COARSE_REST_S: Final = 2.1
"""How long files rest whose file system counts whole seconds, or two: what is written in one of them has one stamp."""

_LEAST_SPARSE_BYTES: Final = 4096

Name: TypeAlias = tuple[str, int]
"""A model and the number of a version."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a version's files found.

    Args:
        stamp: Of the files.
        awaited: What is to come before they are worth loading; empty: nothing.
        is_at_rest: They have not moved since an earlier look.
        refusal: Why they are not worth loading until they change; empty: they may be.
    """

    stamp: Stamp
    awaited: str
    is_at_rest: bool
    refusal: str = ""


@dataclass(slots=True)
class _Seen:
    files: SeenFiles
    since_s: float
    is_moving: bool
    """They were others at the look before."""
    is_tried: bool = False
    hole: str | None = None
    """The first file with a hole; empty: none has; None: not looked for yet."""


class RestingFiles:
    """Remembers what the files of versions were at the last look. Used on one thread.

    Args:
        see: Looks at the files of a version.
        path: Names the folder of a version.
        rest_s: How long the files of a version without checksums must have rested, seconds; 0: not at all.
        clock: Monotonic seconds.
        wall_ns: Nanoseconds since the epoch, by the clock that stamps files.
    """

    def __init__(
        self,
        see: Callable[[str, int], SeenFiles],
        path: Callable[[str, int], VersionPath],
        *,
        rest_s: float = REST_S,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._see = see
        self._path = path
        self._rest_s = rest_s
        self._clock = clock
        self._wall_ns = wall_ns
        self._seen: dict[Name, _Seen] = {}

    def look(self, name: Name) -> Look:
        """Looks at a version's files."""
        files, now_s = self._see(*name), self._clock()
        last = self._seen.get(name)
        if last is None or last.files.stamp != files.stamp or last.files.problem != files.problem:
            last = self._seen[name] = _Seen(files, now_s, last is not None)
        if files.problem:
            refusal = files.problem if files.is_refused else ""
            return Look(files.stamp, files.problem, is_at_rest=False, refusal=refusal)
        rested_s = now_s - last.since_s
        wanted_s = max(self._rest_s, _COARSE_REST_S) if self._rest_s and files.is_coarse else self._rest_s
        if rested_s < wanted_s:
            return Look(files.stamp, self._awaited(name, last), is_at_rest=False)
        if rested_s < SPARSE_REST_S and (hole := self._new_hole(name, last)):
            why = "as a copy that has only begun: it is loaded once it has rested longer"
            text = f"file '{printable(hole)}' has holes, {why}"
            return Look(files.stamp, text, is_at_rest=False)
        return Look(files.stamp, "", is_at_rest=True)

    def is_moving(self, name: Name) -> bool:
        """Tells whether a version's files were seen to move, or are known to have to rest longer than usual."""
        seen = self._seen.get(name)
        return seen is not None and (seen.is_moving or bool(seen.hole) or bool(seen.files.problem))

    def keep(self, names: set[Name]) -> None:
        """Forgets all other versions."""
        for gone in self._seen.keys() - names:
            del self._seen[gone]

    def _awaited(self, name: Name, seen: _Seen) -> str:
        if seen.is_moving:
            return "its files still change"
        if not seen.is_tried and not seen.files.is_coarse and self._has_all_summed(name, seen.files):
            # Most often it was published whole. Where it was not, it is not hashed anew at each look.
            seen.is_tried = True
            return ""
        return "its files are seen for the first time"

    def _has_all_summed(self, name: Name, files: SeenFiles) -> bool:
        """Tells whether every file that the checksums name is there: then it is worth trying whether they hold."""
        if files.size(CHECKSUMS_FILE) is None:
            return False
        try:
            with self._path(*name).view() as folder:
                expected = read_checksums(folder)
        except (OSError, ValueError):
            return False
        return bool(expected) and expected.keys() <= {entry.name for entry in files.entries}

    def _new_hole(self, name: Name, seen: _Seen) -> str:
        """Names a file with a hole that changed only lately; empty where there is none, or checksums tell of it."""
        if seen.files.size(CHECKSUMS_FILE) is not None or not self._rest_s:
            return ""
        if seen.hole is None:
            since_ns = self._wall_ns() - int(SPARSE_REST_S * 1e9)
            new = [each for each in seen.files.entries if each.marks.changed_ns > since_ns]
            large = (each.name for each in new if each.marks.size >= _LEAST_SPARSE_BYTES)
            path = self._path(*name)
            seen.hole = next((each for each in large if _has_hole(path, each)), "")
        return seen.hole


def _has_hole(path: VersionPath, name: str) -> bool:
    """Tells whether a part of a file was never written. A file system that does not know says no."""
    try:
        with path.view() as folder, folder.open(name) as descriptor:
            return os.lseek(descriptor, 0, os.SEEK_HOLE) < os.fstat(descriptor).st_size
    except (OSError, ValueError):
        return False
