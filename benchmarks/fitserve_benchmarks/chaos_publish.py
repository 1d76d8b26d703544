"""Publishing under faults: killed at every system call, without room on the disk, and many at once.

A version is whole or not there: whatever happens to the publisher, readers find the old versions or the new one, each
with checksums that hold, and what is left over can be told from a version and removed.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fitserve_benchmarks.chaos_publisher import BEGIN_MARK, END_MARK, left_behind
from fitserve_contract.repository import MODEL_FILE, verify_checksums, version_path, versions

_PUBLISHER: Final = (sys.executable, "-E", "-B", "-m", "fitserve_benchmarks.chaos_publisher")
_MODEL: Final = "killed"
_CALL: Final = re.compile(r"\d+ +([a-z_0-9]+)\(")
_OWN_MOUNTS: Final = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
_MOUNT: Final = 'mount -t tmpfs -o size=256k,nr_inodes=64 tmpfs "$1" && shift && exec "$@"'
"""In a namespace of its own, that nobody else sees and that needs no rights: a file system for one process."""

_KILLED: Final = (-signal.SIGKILL, 128 + signal.SIGKILL)


class PublishError(RuntimeError):
    """A publish that was torn, lost or doubled; the text says which and when."""


@dataclass(frozen=True, slots=True)
class PublishKills:
    """What `kill -9` at each system call of a publish came to.

    Args:
        call_count: System calls of the publish, each of which was a moment of death.
        old_count: Deaths after which the repository was as before.
        new_count: Deaths after which the new version was there, whole.
        leftover_count: Deaths that left a folder aside, which was removed.
    """

    call_count: int
    old_count: int
    new_count: int
    leftover_count: int


def kill_at_every_call(work: Path, progress: Callable[[str], None], *, every: int = 1) -> PublishKills:
    """Kills a publisher on entry to each system call between its marks, one process per call.

    Args:
        work: Empty folder.
        progress: Takes a line now and then.
        every: Only each so many calls.

    Raises:
        PublishError: the repository was torn, or a publisher did not die where it was to.
        FileNotFoundError: there is no strace.
    """
    if shutil.which("strace") is None:
        raise FileNotFoundError("chaos: expected the program strace on PATH, found none")
    root, prepared = work / "repository", _prepared(work / "prepared")
    _published(root, prepared)
    calls = _calls(root, prepared, work / "trace")[::every]
    old = new = left = 0
    for index, (name, occurrence) in enumerate(calls):
        before = versions(root, _MODEL)
        _kill_at(root, prepared, name, occurrence)
        left += left_behind(root, time.time() + 1) > 0
        after = versions(root, _MODEL)
        _check_whole(root, prepared, before, after, f"killed at {name} number {occurrence}")
        new += after != before
        old += after == before
        if index % 25 == 24:
            progress(f"publish: killed at {index + 1} of {len(calls)} system calls")
    _published(root, prepared)
    return PublishKills(len(calls), old, new, left)


def publish_without_room(work: Path) -> int:
    """Publishes where a file may have 0, 1, 2, 4, … bytes; gives how many publishes failed, each leaving nothing.

    Raises:
        PublishError: a publish that failed left something, or none failed or all did.
    """
    root, prepared = work / "repository", _prepared(work / "prepared")
    size_bytes = (prepared / MODEL_FILE).stat().st_size
    limits = [0, *(1 << bits for bits in range(size_bytes.bit_length() + 1))]
    failed = 0
    for limit_bytes in limits:
        before = versions(root, _MODEL)
        done = subprocess.run(
            [*_PUBLISHER, "once", str(root), _MODEL, str(prepared), str(limit_bytes)], capture_output=True, check=False
        )
        after = versions(root, _MODEL)
        failed += done.returncode != 0
        if (done.returncode == 0) != (len(after) == len(before) + 1) or left_behind(root, time.time() + 1):
            raise PublishError(f"publish with room for {limit_bytes} bytes: exit {done.returncode}, versions {after}")
        _check_whole(root, prepared, before, after, f"room for {limit_bytes} bytes")
    if not 0 < failed < len(limits):
        raise PublishError(f"publish without room: expected some of {len(limits)} to fail, {failed} did")
    return failed


def publish_on_full_disk(work: Path) -> int | None:
    """Publishes on a small file system of its own that fills up, in bytes and in inodes.

    Returns:
        How many publishes failed, each leaving nothing; None where this user may not mount one.

    Raises:
        PublishError: a publish that failed left something, or failed otherwise.
    """
    root, prepared = work / "repository", _prepared(work / "prepared")
    root.mkdir(parents=True)
    if subprocess.run([*_OWN_MOUNTS, _MOUNT, "sh", str(root), "true"], capture_output=True, check=False).returncode:
        return None
    publisher = [*_PUBLISHER, "full", str(root), _MODEL, str(prepared)]
    done = subprocess.run(
        [*_OWN_MOUNTS, _MOUNT, "sh", str(root), *publisher], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PublishError(f"publish on a full disk: {done.stderr[-2000:]}")
    return int(done.stdout)


def race(work: Path, publishers: int, rounds: int) -> int:
    """Races publishers for numbers; gives how many versions were published, all distinct and whole.

    Raises:
        PublishError: a number was given twice, lost, or is not whole.
    """
    work.mkdir(parents=True, exist_ok=True)
    command = [*_PUBLISHER, "race", str(work), str(publishers), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PublishError(f"race of {publishers} publishers: {done.stderr[-2000:]}")
    return int(done.stdout)


def _prepared(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(bytes(range(256)) * 64)
    (folder / "manifest.json").write_bytes(b"{}" * 100)
    return folder


def _published(root: Path, prepared: Path) -> None:
    subprocess.run([*_PUBLISHER, "once", str(root), _MODEL, str(prepared)], check=True, stdout=subprocess.DEVNULL)


def _calls(root: Path, prepared: Path, trace: Path) -> list[tuple[str, int]]:
    """Lists the system calls of a publish: name, and its how-manieth call of that name since the process began."""
    command = [*_PUBLISHER, "once", str(root), _MODEL, str(prepared)]
    subprocess.run(["strace", "-f", "-o", str(trace), *command], check=True, stdout=subprocess.DEVNULL)
    seen: Counter[str] = Counter()
    calls: list[tuple[str, int]] = []
    is_inside = False
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        seen[match[1]] += 1
        if END_MARK in line:
            return calls
        if is_inside:
            calls.append((match[1], seen[match[1]]))
        is_inside = is_inside or BEGIN_MARK in line
    raise PublishError("publish: expected both marks in the trace of its system calls, found none")


def _kill_at(root: Path, prepared: Path, name: str, occurrence: int) -> None:
    injection = f"inject={name}:signal=SIGKILL:when={occurrence}"
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", injection]
    done = subprocess.run(
        [*command, *_PUBLISHER, "once", str(root), _MODEL, str(prepared)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in _KILLED:
        raise PublishError(f"publish: expected to die at {name} number {occurrence}, ended with {done.returncode}")


def _check_whole(root: Path, prepared: Path, before: list[int], after: list[int], when: str) -> None:
    if after != before and after != [*before, max(before, default=0) + 1]:
        raise PublishError(f"publish, {when}: versions {before} became {after}")
    for number in after[-1:]:
        folder = version_path(root, _MODEL, number).folder
        try:
            verify_checksums(folder)
        except (OSError, ValueError) as error:
            raise PublishError(f"publish, {when}: version {number} is torn: {error}") from error
        if (folder / MODEL_FILE).read_bytes() != (prepared / MODEL_FILE).read_bytes():
            raise PublishError(f"publish, {when}: version {number} is not what was published")
