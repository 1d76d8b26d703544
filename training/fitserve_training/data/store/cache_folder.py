"""The folder of mapped files: where it is, who writes, what is removed. torch is not needed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from fitserve_training.data.places import Places
from fitserve_training.data.store.array_file import (
    Array,
    ArrayFileWriter,
    ArrayPlan,
    DamagedFileError,
    open_arrays,
)
from fitserve_training.errors import UsageError

LIMIT_VARIABLE: Final = "FITSERVE_CACHE_BYTES"
_MOST_BYTES: Final = 64 << 30
_LOCK_COUNT: Final = 100
"""Keys share locks, so that these do not pile up."""

_SUFFIX, _UNFINISHED = ".rows", ".unfinished-"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Stored = tuple[dict[str, Array], dict[str, Any]]
"""Arrays by name, and facts."""


def find(key: str, *, is_content_checked: bool = True) -> Stored | None:
    """Opens the file of a key; None where there is none that can be read, or where it is damaged, which is removed."""
    # A folder that cannot be written may hold what another user, or another machine, has made.
    for folder in dict.fromkeys((_named_folder(), _folder())):
        if (found := _opened(folder / f"{key}{_SUFFIX}", is_content_checked)) is not None:
            return found
    return None


def _opened(path: Path, is_content_checked: bool) -> Stored | None:
    try:
        found = open_arrays(path, is_content_checked=is_content_checked)
    except DamagedFileError as error:
        print(f"cache file {path}: {error}; it is made anew", file=sys.stderr, flush=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    with suppress(OSError):  # another user's, or another process has just removed it to make room
        os.utime(path)  # the oldest by use goes first
    return found


def make(
    key: str, plans: Mapping[str, ArrayPlan], what: str, fill: Callable[[ArrayFileWriter], Mapping[str, Any]]
) -> Stored:
    """Makes the file of a key, or waits for another process that makes it.

    Args:
        key: Hash of all that the rows depend on.
        plans: Of the arrays, by name.
        what: Of what the rows are, for messages.
        fill: Writes the rows and returns facts; where it raises, nothing is left.

    Raises:
        UsageError: the disk is full.
    """
    folder = _folder()
    need = sum(plan.byte_count for plan in plans.values())
    with _locked(folder, f"{int(key[:8], 16) % _LOCK_COUNT:02}"):
        if (found := find(key)) is not None:
            return found
        with _locked(folder, "folder"):
            _remove_unfinished(folder)
            _make_room(folder, need)
            descriptor, part = tempfile.mkstemp(prefix=_UNFINISHED, dir=folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # tells it from what a process that died has left
        try:
            with room_for(need, what):
                writer = ArrayFileWriter(descriptor, plans)
                writer.finish(fill(writer))
                stored = open_arrays(Path(part), is_content_checked=False)  # its name may soon be gone, to make room
                os.replace(part, folder / f"{key}{_SUFFIX}")
        finally:
            Path(part).unlink(missing_ok=True)
            os.close(descriptor)
    return stored


@contextmanager
def room_for(byte_count: int, what: str) -> Iterator[Path]:
    """Gives the folder; turns the error of a full disk inside into one sentence.

    Raises:
        UsageError: the disk is full.
    """
    folder = _folder()
    try:
        yield folder
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(folder).free
        raise UsageError(
            f"cache folder {folder}: expected room for {byte_count / 1e9:.2f} GB of {what}, found {free / 1e9:.2f} GB "
            f"free ({error.strerror}); make room, or name another disk's folder by XDG_CACHE_HOME"
        ) from None


def _named_folder() -> Path:
    return Places.default().cache_dir / "rows"


def _folder() -> Path:
    return _usable(_named_folder())


@cache
def _usable(folder: Path) -> Path:
    """Returns the folder, made; a temporary one for this process where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno in _FULL:
            return folder  # said once it is known how much is needed
        print(
            f"cache folder {folder}: cannot be written ({error.strerror}); data of this run goes to a temporary file",
            file=sys.stderr,
            flush=True,
        )
        return Path(_temporary().name)


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fitserve-rows-", ignore_cleanup_errors=True)


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Lets one process at a time do what is inside."""
    with (folder / f".lock-{name}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run that writes to {folder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # without locks two processes may do the same work; each renames a whole file
        yield


def _remove_unfinished(folder: Path) -> None:
    """Removes files that a process which died was writing."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            continue  # it is being written, or gone


def _make_room(folder: Path, need: int) -> None:
    """Removes files that were not used for longest until the new one fits into the limit; maps of them go on."""
    found = []
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            status = path.stat()
        except OSError:
            continue  # another process removed it
        found.append((status.st_mtime_ns, status.st_size, path))
    over = sum(size for _, size, _ in found) + need - _limit()
    for _, size, path in sorted(found):
        if over <= 0:
            return
        path.unlink(missing_ok=True)
        over -= size


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text and not (text.isascii() and text.isdigit()):
        raise UsageError(f"environment: {LIMIT_VARIABLE}: expected a number of bytes, got {text!r}")
    return int(text) if text else _MOST_BYTES
