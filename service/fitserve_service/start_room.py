"""Whether this process's limits leave room for a server: one that has too little fails late, and in words of others."""

from __future__ import annotations

import resource
import threading
from typing import Final

_FILES: Final = 64
"""What a process of the server has open at its start, models and a few connections included."""

_FILES_PER_WORKER: Final = 8
"""What the parent has open for a worker."""

_THREADS: Final = 24
"""Of each process that serves: 17 where nothing is loaded and nobody calls. Measured."""

_THREADS_PER_WORKER: Final = 2
"""Of the parent, for a worker."""

_ADDRESS_BYTES: Final = 1 << 30
"""Of each process: at 500 MiB one ends at its first page or model. Measured."""


def shortage(file_limit: int, workers: int) -> str:
    """Says which limit is too low to serve with, and what to do; empty where none is.

    Args:
        file_limit: Files that a process may have open.
        workers: Worker processes; 0: this process serves.
    """
    files = _FILES + workers * _FILES_PER_WORKER
    if resource.RLIM_INFINITY != file_limit < files:
        cure = f"raise it (ulimit -Hn {files}, or LimitNOFILE={files})"
        return f"expected to be allowed at least {files} open files, got {file_limit}; {cure}"
    address_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if resource.RLIM_INFINITY != address_bytes < _ADDRESS_BYTES:
        text = f"expected an address space of at least {_ADDRESS_BYTES} bytes, got {address_bytes}"
        return f"{text}; raise the limit (ulimit -v {_ADDRESS_BYTES >> 10}, or LimitAS=)"
    threads = _THREADS * max(workers, 1) + _THREADS_PER_WORKER * workers
    if (started := _startable(threads)) < threads:
        text = f"expected room for at least {threads} threads, found it for {started}"
        return f"{text}; raise the limit of processes and threads (ulimit -u, TasksMax=, or pids.max)"
    return ""


def _startable(count: int) -> int:
    """Starts threads that wait for each other, at most so many; returns how many there were room for."""
    is_over = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=is_over.wait, name="probe", daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        # No room for another: that is the answer.
        pass
    is_over.set()
    for thread in started:
        thread.join()
    return len(started)
