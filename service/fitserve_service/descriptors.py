"""What a process has open from its start, and how many files it may: a connection is one of them."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
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


def open_standard() -> None:
    """Opens the null device in place of stdin, stdout or stderr where the process was started without; inherited.

    The next file or connection would else get their numbers, and what a library writes to stderr would go there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one: those below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
