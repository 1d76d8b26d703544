"""A private folder of copies of models that several processes map, so that their weights are in memory once.

The parent of the workers makes the folder and removes it; one whose owner was killed goes when the next one is made. A
copy is made by whoever needs it first, kept as long as any process has a lease of it, and removed with the last lease.
Leases are locks of the kernel's, so that a killed process holds none.

    fitserve-weights-xxxxxxxx/   0700, of the server's user
        owner                    locked as long as the parent lives
        <key>.make  <key>.use    locked by whoever makes the copy; shared by all that use it
        <key>/                   the copy; complete, or not there
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PREFIX: Final = "fitserve-weights-"
_OWNER: Final = "owner"
_LEAST_BYTES: Final = 1 << 12
"""Room that the folder must have at the start."""

_MAKE, _USE, _UNFINISHED = ".make", ".use", ".new"


class OwnedFolder:
    """A folder for copies, from its making to `close`. Thread-safe.

    Attributes:
        path: The folder.
    """

    def __init__(self, base: Path | None = None) -> None:
        """Makes it, and removes those whose owners are gone.

        Args:
            base: Where; None: where temporary files go.

        Raises:
            OSError: it cannot be made.
        """
        base = base or _temporary_folder()
        _remove_orphans(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        unnamed = self.path / f"{_OWNER}{_UNFINISHED}"
        self._lock = _open_lock(unnamed)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # A full disk may take a folder and no content.
            os.pwrite(self._lock, bytes(_LEAST_BYTES), 0)
            # Named once it is locked: a folder without an owner's file is one that is being made.
            unnamed.rename(self.path / _OWNER)
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, str(base)) from None

    def close(self) -> None:
        """Removes it with all that is in it; what is mapped stays readable to those that map it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _temporary_folder() -> Path:
    """Returns where temporary files go: where the environment says, and nowhere else where it does."""
    # `tempfile` would take another folder in silence where this one takes no files.
    for name in ("TMPDIR", "TEMP", "TMP"):
        if folder := os.environ.get(name):
            return Path(folder)
    return Path(tempfile.gettempdir())


class CopyLease:
    """Keeps a copy until `release`. Thread-safe.

    Attributes:
        folder: The copy.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def release(self) -> None:
        """Gives it back, once only; the last one out removes it, on a thread of its own: large files go slowly."""
        os.close(self._lock)
        name = f"remove-{self.folder.name[:8]}"
        threading.Thread(target=remove_unused, args=(self.folder,), name=name, daemon=True).start()


def lease_copy(root: Path, key: str, make: Callable[[Path], None]) -> CopyLease:
    """Gives a copy, made now where there is none yet; waits where another process makes it.

    Args:
        root: The folder of copies.
        key: Says what is in it: same key, same content. Fit for a file name.
        make: Fills a new folder; what it raises is raised here, and nothing is left.

    Raises:
        OSError: the folder is not this user's alone, or cannot be written.
    """
    check_private(root)
    folder, use = root / key, _open_lock(root / f"{key}{_USE}")
    try:
        fcntl.flock(use, fcntl.LOCK_SH)
        if not folder.exists():
            _make(root, key, make)
    except BaseException:
        os.close(use)
        raise
    return CopyLease(folder, use)


def remove_unused(folder: Path) -> None:
    """Removes a copy that nobody uses any more; does nothing where somebody does."""
    with contextlib.suppress(OSError):
        use = os.open(folder.with_name(f"{folder.name}{_USE}"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(use)


def check_private(root: Path) -> None:
    """Holds a folder of copies against what it must be: what lies there is mapped and run from without a look.

    Raises:
        PermissionError: it belongs to another user, or others may enter it.
    """
    found = root.lstat()
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_own or stat.S_IMODE(found.st_mode) & 0o077:
        expected = f"expected a folder of user {os.geteuid()} alone"
        text = f"folder '{root}': {expected}, got mode {stat.filemode(found.st_mode)} of user {found.st_uid}"
        raise PermissionError(text)


def _make(root: Path, key: str, make: Callable[[Path], None]) -> None:
    with open(_open_lock(root / f"{key}{_MAKE}"), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / key).exists():
            return
        unfinished = root / f"{key}{_UNFINISHED}"
        # Left by a process that was killed over it.
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        try:
            make(unfinished)
            unfinished.rename(root / key)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _remove_orphans(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        # Another user's, or one that goes at this moment.
        with contextlib.suppress(OSError):
            check_private(folder)
            owner = os.open(folder / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(owner)
