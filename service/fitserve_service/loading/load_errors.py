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
    """A version that cannot be served; the text says why and is fit for a caller."""


class IncompleteError(LoadError):
    """A version of which files are missing or not what its checksums say: perhaps they are still being copied."""


class ShortageError(LoadError):
    """A version that could not be loaded now, whatever its files: it is worth another try without a change of them.

    Attributes:
        kind: What there was too little of: `MEMORY`, `DESCRIPTORS`, `THREADS`, `TIME` or `STORAGE`.
    """

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


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
