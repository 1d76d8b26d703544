"""A command under a limit of memory, and how much it took (Linux).

The limit is a control group's, version 1 or 2, below this process's own, where such a group can be made: it counts
anonymous memory and the page cache alike. Otherwise it is RLIMIT_DATA, which counts anonymous memory alone. Mapped
files are page cache: the kernel takes them back when memory is short, so that anonymous memory is what has to fit.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fitserve_benchmarks.processes import children

_EVERY_S: Final = 0.05


@dataclass(frozen=True)
class Limited:
    """What a command did.

    Args:
        exit_code: Its own.
        lines: Its output, each with the seconds from its start.
        anonymous_bytes: Peak of anonymous memory of its processes.
        group_bytes: Peak of the control group, page cache included; None without one.
        limit: What limited it.
    """

    exit_code: int
    lines: tuple[tuple[float, str], ...]
    anonymous_bytes: int
    group_bytes: int | None
    limit: str

    def seconds_to(self, beginning: str) -> float:
        """Gives when a line with this beginning came.

        Raises:
            RuntimeError: none came.
        """
        for seconds, line in self.lines:
            if line.startswith(beginning):
                return seconds
        raise RuntimeError(f"expected a line {beginning!r}, got exit code {self.exit_code} and {self.tail()}")

    def tail(self) -> str:
        """Gives the last lines of the output."""
        return " | ".join(line for _, line in self.lines[-4:])


def run_limited(command: Sequence[str], environment: Mapping[str, str], limit_bytes: int | None) -> Limited:
    """Runs a command to its end; `limit_bytes` None is no limit."""
    with _group(limit_bytes) as group:

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            elif limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=enter,
        )
        watch = _Watch(process.pid)
        assert process.stdout is not None
        with process.stdout as output:
            lines = tuple((time.monotonic() - started, line.rstrip("\n")) for line in output)
        code = process.wait()
        peak = watch.peak_bytes()
        kind = "none" if limit_bytes is None else "RLIMIT_DATA" if group is None else "control group"
        return Limited(code, lines, peak, None if group is None else _group_peak(group), kind)


class _Watch:
    """Looks at the anonymous memory of a process and its children until it ends."""

    def __init__(self, process_id: int) -> None:
        self._process_id, self._peak, self._is_over = process_id, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            found = sum(_anonymous_bytes(each) for each in (self._process_id, *children(self._process_id)))
            self._peak = max(self._peak, found)

    def peak_bytes(self) -> int:
        """Ends the watch; gives the most that was found."""
        self._is_over.set()
        self._thread.join()
        return self._peak


def _anonymous_bytes(process_id: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _group(limit_bytes: int | None) -> Iterator[Path | None]:
    """Makes a control group of its own with a limit, below this process's; None where that is not allowed."""
    folder = None if limit_bytes is None else _make_group(limit_bytes)
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def _make_group(limit_bytes: int) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder = Path("/sys/fs/cgroup", controllers, own.lstrip("/"), f"fitserve-drill-{os.getpid()}")
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(limit_bytes))
        except OSError:
            folder.rmdir()
            continue
        return folder
    return None


def _group_peak(group: Path) -> int | None:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        with suppress(OSError):
            return int((group / name).read_text(encoding="ascii"))
    return None
