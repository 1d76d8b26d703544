"""How many threads, and which processors: set in one place, for torch and ONNX Runtime alike.

A setting holds for a whole process, because OpenMP and compiled kernels read it once: every setting that is measured
gets a process of its own, started with `environment`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

ALL = "all"


@dataclass(frozen=True, slots=True)
class ThreadSetting:
    """A number of threads and the processors they may run on.

    Args:
        count: Threads that work on one call, >= 1.
        processors: Processor numbers, as many as threads.
    """

    count: int
    processors: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """Gives the environment variables for a process of this setting."""
        count = str(self.count)
        return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}

    def pin(self) -> None:
        """Keeps this process, and every thread it starts from now on, on the setting's processors."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.processors)


def available_processors() -> tuple[int, ...]:
    """Lists the processors that this process may use, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def thread_setting(text: str, processors: tuple[int, ...] | None = None) -> ThreadSetting:
    """Reads a thread count: a positive number, or `all` for one per processor.

    Args:
        text: What the user wrote.
        processors: Processors there are; None asks the system.

    Raises:
        ValueError: neither, or more threads than processors.
    """
    there = available_processors() if processors is None else processors
    if text == ALL:
        return ThreadSetting(len(there), there)
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ValueError(f"threads: expected a positive number or '{ALL}', got '{text[:32]}'")
    if int(text) > len(there):
        raise ValueError(f"threads: expected at most {len(there)}, one per processor here, got {text}")
    return ThreadSetting(int(text), there[: int(text)])


def thread_settings(text: str, processors: tuple[int, ...] | None = None) -> tuple[ThreadSetting, ...]:
    """Reads thread counts separated by commas; where two mean the same, one stays.

    Raises:
        ValueError: as `thread_setting`.
    """
    settings = (thread_setting(part.strip(), processors) for part in text.split(","))
    return tuple(dict.fromkeys(settings))
