"""Sees every file of a version at one moment: the one place that walks a version's folder to tell whether it changed.

Nothing is read here but names and marks, so that thousands of versions can be looked at every second. Where a name is a
link, the marks are of what it leads to, and a folder behind it is visited where it may be read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from fitserve_contract.folder_view import OWN_PREFIX
from fitserve_contract.printable import printable
from fitserve_contract.repository import VersionPath

MAX_ENTRIES: Final = 4_096
"""A folder with more names in it is no version: each look at it would take as long as a look at a thousand others."""

Stamp: TypeAlias = tuple[int, ...]
"""What changes when any file of a version does; equal stamps of two processes are of the same files."""


class Marks(NamedTuple):
    """What a file's status tells of its content: whoever replaces or writes it may keep some of these, but not all.

    Times are nanoseconds since the epoch, by the clock of the file system. All are 0 of a file that is not there.
    """

    device: int = 0
    inode: int = 0
    size: int = 0
    modified_ns: int = 0
    changed_ns: int = 0


NO_MARKS: Final = Marks()


@dataclass(frozen=True, slots=True)
class SeenFile:
    """One name in a version's folder, a file or a folder.

    Args:
        name: Path below the version's folder, with `/`.
        marks: What was there.
    """

    name: str
    marks: Marks


@dataclass(frozen=True, slots=True)
class SeenFiles:
    """What a version's folder held at one look.

    Args:
        folder: The folder itself; its times move when a name in it comes or goes.
        entries: All below it, by name; a version that is not there has none.
        problem: Why not all could be seen; empty where all were that this process may see.
        is_refused: Another look will not see them all either: only other files do.
    """

    folder: Marks
    entries: tuple[SeenFile, ...] = ()
    problem: str = ""
    is_refused: bool = False

    @property
    def stamp(self) -> Stamp:
        """Gives what changes when any of the files does. Names are not in it: a rename moves its folder's times."""
        return tuple(mark for marks in (self.folder, *(entry.marks for entry in self.entries)) for mark in marks)

    @property
    def is_coarse(self) -> bool:
        """Tells whether the file system stamps changes with whole seconds."""
        return bool(self.entries) and all(entry.marks.changed_ns % 1_000_000_000 == 0 for entry in self.entries)

    def size(self, name: str) -> int | None:
        """Returns a file's size in bytes; None where it was not seen."""
        return next((entry.marks.size for entry in self.entries if entry.name == name), None)


def see_files(path: VersionPath) -> SeenFiles:
    """Looks at all files of a version, links followed; what a link outside of the repository holds is not looked at."""
    own = marks_of(str(path.folder))
    is_link = os.path.islink(path.folder)
    if own == NO_MARKS or (is_link and not (path.root.holds(path.folder) and path.folder.is_dir())):
        # What is wrong with a link is told by whoever loads it.
        return SeenFiles(own)
    found: list[SeenFile] = []
    waiting = [_Folder("", frozenset({own[:2]}))]
    try:
        while waiting:
            _see_folder(path, waiting.pop(), found, waiting)
            if len(found) > MAX_ENTRIES:
                problem = f"expected at most {MAX_ENTRIES} files in a version, found more"
                return SeenFiles(own, tuple(sorted(found, key=_name)), problem, is_refused=True)
    except OSError as error:
        # A name that went between the listing and the look, or a file system that is away: seen in part.
        problem = f"'{printable(Path(error.filename or '').name)}' cannot be looked at: {error.strerror}"
        return SeenFiles(own, tuple(sorted(found, key=_name)), problem)
    return SeenFiles(own, tuple(sorted(found, key=_name)))


class _Folder(NamedTuple):
    """A folder to be listed: its path below the version's, and the device and inode of those above it and its own."""

    below: str
    above: frozenset[tuple[int, ...]]


def _see_folder(path: VersionPath, folder: _Folder, found: list[SeenFile], waiting: list[_Folder]) -> None:
    with contextlib.suppress(PermissionError), os.scandir(f"{path.folder}/{folder.below}") as entries:
        # `lost+found` is for root alone, and need not be read. What has to be is told by whoever loads it.
        for entry in entries:
            if entry.name.startswith(OWN_PREFIX):
                continue
            status = _status(entry)
            seen = SeenFile(f"{folder.below}{entry.name}", _marks(status))
            found.append(seen)
            is_new_folder = stat.S_ISDIR(status.st_mode) and seen.marks[:2] not in folder.above
            if is_new_folder and (not entry.is_symlink() or path.root.holds(Path(entry.path))):
                waiting.append(_Folder(f"{seen.name}/", folder.above | {seen.marks[:2]}))
            if len(found) > MAX_ENTRIES:
                return


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:
        # A link to nothing, or in a circle: its own status changes when it is put right.
        return entry.stat(follow_symlinks=False)


def marks_of(path: str) -> Marks:
    """Returns the marks of what a path leads to; all 0 where there is nothing."""
    try:
        return _marks(os.stat(path))
    except OSError:
        return NO_MARKS


def _marks(found: os.stat_result) -> Marks:
    return Marks(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _name(entry: SeenFile) -> str:
    return entry.name
