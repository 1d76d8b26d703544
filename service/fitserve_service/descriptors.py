"""How many files a process may have open: a connection is one of them, and the usual limit is a thousand."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

_MOST: Final = 1 << 20
"""Beyond, a limit costs those who close everything that may be open."""


def raise_limit() -> int:
    """Raises this process's limit of open files as far as it may; its children inherit it.

    Returns:
        The limit that holds now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
