"""Why a process of the server cannot start, in a sentence."""

from __future__ import annotations

import errno


def import_sentence(error: ImportError) -> str:
    """Says what an import wanted and what to do."""
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and name:
        text = f"expected the package '{name}' in this Python's environment, found none"
    else:
        text = f"expected to import {name or 'a package'}, got {type(error).__name__}: {error}"
    return f"{text}; install fitserve anew with its dependencies (pip install --force-reinstall fitserve)"


def failure_sentence(error: BaseException) -> str:
    """Says which error nobody expected, and what to do about it."""
    if isinstance(error, MemoryError):
        return "expected memory to start with, found too little; stop other programs, or raise this one's limit"
    if isinstance(error, RuntimeError) and "new thread" in str(error):
        return "expected to start a thread, got none; raise the limit of threads (ulimit -u, pids.max) or of memory"
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "expected to open another file, got none; raise the limit of open files (ulimit -n)"
    return f"expected to start, got {type(error).__name__}: {error}; please report it with the settings that lead to it"
