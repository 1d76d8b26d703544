"""Child processes that cannot outlive their parent, whatever ends it.

Each child leads a process group of its own; leaving the context ends the whole group. Where the parent is killed
without a chance to clean up, the kernel sends the child SIGTERM (Linux).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Final

_GRACE_S: Final = 10.0

_LEASH: Final = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, 15)\n"  # PR_SET_PDEATHSIG, SIGTERM; survives exec
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


@contextmanager
def child_process(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
    grace_s: float = _GRACE_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command; on exit it and everything it started are over.

    Args:
        command: Program and arguments; the program is looked up on PATH.
        environment: Variables set beside those of this process.
        stdin: As subprocess.Popen has it; nothing by default.
        stdout: As subprocess.Popen has it.
        stderr: As subprocess.Popen has it.
        grace_s: Seconds between SIGTERM and SIGKILL.

    Yields:
        The running child.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _LEASH, *command],
        env={**os.environ, **(environment or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
    )
    try:
        yield process
    finally:
        _end(process, grace_s)


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    message: bytes = b"",
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
) -> tuple[int, bytes]:
    """Runs a command to its end.

    Args:
        command: Program and arguments.
        environment: Variables set beside those of this process.
        message: What it reads on stdin.
        stdout: As subprocess.Popen has it; PIPE gathers it.
        stderr: As subprocess.Popen has it, but for PIPE; STDOUT joins it to stdout.

    Returns:
        Exit code (negative: the signal that ended it) and what PIPE gathered.
    """
    with child_process(
        command, environment=environment, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr
    ) as process:
        output, _ = process.communicate(message)
    return process.returncode, output or b""


def children(process_id: int) -> list[int]:
    """Lists the process ids of a process's children, ascending; none where it is gone."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{process_id}/task").iterdir():
            found += [int(text) for text in (task / "children").read_text().split()]
    return sorted(found)


@contextmanager
def orderly_ending() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end this process like Ctrl-C does: through every `finally`. Main thread only."""
    before = {number: signal.signal(number, _raise_exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    # A shell starts background jobs with SIGINT ignored; a demo that cannot be interrupted would be worse.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _raise_exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ends the group: SIGTERM and time for the leader, then SIGKILL for all that is left."""
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
