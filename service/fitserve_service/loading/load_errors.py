"""Why a version cannot be served: its content, which only other files cure, or circumstances, which pass.

What is refused for its content stays refused until a file of it changes. What failed for want of memory, descriptors,
threads or time says nothing about the content, and is tried again.
"""

from __future__ import annotations

import errno
import re
from typing import Final

_OF_CONTENT: Final = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.EFBIG),
    }
)
"""What the files themselves are to blame for; whoever puts them right changes their time stamps."""

_NO_THREADS: Final = re.compile(
    r"can't start new thread|pthread_create|Resource temporarily unavailable", re.IGNORECASE
)
_NO_DESCRIPTORS: Final = re.compile(r"too many open files", re.I)

INCOMPLETE: Final = "incomplete"
MEMORY: Final = "memory"
DESCRIPTORS: Final = "descriptors"
THREADS: Final = "threads"
TIME: Final = "time"
STORAGE: Final = "storage"

_KINDS: Final = {
    errno.ENOMEM: MEMORY,
    errno.EMFILE: DESCRIPTORS,
    errno.ENFILE: DESCRIPTORS,
    errno.EAGAIN: THREADS,
}


class LoadError(Exception):
    """A version that cannot be served; the text says why and is fit for a caller.

    Attributes:
        kind: Empty: its content is to blame; else `INCOMPLETE`, or what there was too little of.
    """

    kind = ""


class IncompleteError(LoadError):
    """A version of which files are missing or not what its checksums say: perhaps they are still being copied."""

    kind = INCOMPLETE


class RunLimitError(LoadError):
    """A version one of whose runs took longer than the server allows before it is READY."""


class ShortageError(LoadError):
    """A version that could not be loaded now, whatever its files: it is worth another try without a change of them.

    Attributes:
        kind: What there was too little of: `MEMORY`, `DESCRIPTORS`, `THREADS`, `TIME` or `STORAGE`.
    """

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class LoadEndedError(Exception):
    """A load that the server ended because it ends itself: it says nothing of the version."""


def load_error(text: str, kind: str) -> LoadError:
    """Makes the error of a kind; see `LoadError.kind`."""
    if not kind:
        return LoadError(text)
    return IncompleteError(text) if kind == INCOMPLETE else ShortageError(text, kind)


def as_shortage(error: BaseException) -> BaseException:
    """Returns an error of anything that a load does as a ShortageError where it is one; else as it is."""
    if isinstance(error, LoadError):
        return error
    if isinstance(error, MemoryError):
        return ShortageError("out of memory while loading", MEMORY)
    kind = _KINDS.get(error.errno or 0, "") if isinstance(error, OSError) else ""
    kind = kind or (shortage_kind_of_text(str(error)) if isinstance(error, RuntimeError) else "")
    return ShortageError(f"short of {kind} while loading: {error}", kind) if kind else error


def shortage_kind(error: OSError) -> str:
    """Names what there was too little of; empty where the files are to blame."""
    return "" if error.errno in _OF_CONTENT else _KINDS.get(error.errno or 0, STORAGE)


def shortage_kind_of_text(text: str) -> str:
    """Names what there was too little of by the words of whoever failed for it; empty where they do not say so.

    Memory is not among it: what the runtime says of that is known to `run_errors.has_no_memory`.
    """
    if _NO_THREADS.search(text):
        return THREADS
    return DESCRIPTORS if _NO_DESCRIPTORS.search(text) else ""
