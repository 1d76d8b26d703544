"""Faults by seeded chance while callers hold every answer to what it must be: `fitserve-bench chaos`.

Two servers with workers share a repository; the callers know both. Whatever one fault does, the other server is whole
when it begins, as in a rolling restart: what is then promised is that no call through the client fails and no answer is
wrong.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from fitserve_benchmarks.chaos_clock import SteppingClock
from fitserve_benchmarks.chaos_load import (
    CRASHING,
    MODEL,
    Tally,
    VerifiedLoad,
    crash,
    write_crashing_model,
    write_model,
)
from fitserve_benchmarks.chaos_repository import copy_slowly, empty_mount, flip_link, make_root, replace_root
from fitserve_benchmarks.chaos_servers import ChaosServer, ServerError
from fitserve_contract.repository import (
    CHECKSUMS_FILE,
    MODEL_FILE,
    checksum_text,
    checksums,
    version_path,
    versions,
)

_PUBLISH: Final = (sys.executable, "-m", "fitserve_benchmarks.chaos_publisher", "once")
_LEAST_BYTES: Final = 64
"""Every file of a version is larger."""

_REPLACED_S: Final = 60.0
"""So long a hung worker may stay."""

_CLOCK_STEP: Final = "clock step"
_SERVERS: Final = 2
_WORKERS: Final = 2


@dataclass(frozen=True, slots=True)
class ChaosResult:
    """What a chaos run came to.

    Args:
        seed: What decided the faults.
        elapsed_s: How long it took.
        faults: How many of each.
        tally: What the callers saw.
    """

    seed: int
    elapsed_s: float
    faults: Counter[str]
    tally: Tally

    @property
    def is_right(self) -> bool:
        """No call failed, no answer was wrong, and there were some."""
        return bool(self.tally.answer_count) and not self.tally.failed and not self.tally.wrong


@dataclass(slots=True)
class Chaos:
    """One run: its servers, its callers, its faults."""

    work: Path
    random: Random
    servers: list[ChaosServer]
    load: VerifiedLoad
    clock: SteppingClock | None = None
    """The servers' wall clock; None where there is no compiler to make one."""
    faults: Counter[str] = field(default_factory=Counter)

    model = MODEL
    """Whose versions come and go."""

    @property
    def repository(self) -> Path:
        """What the servers share: a link to the root."""
        return self.work / "repository"

    def next_version(self) -> int:
        """Gives the number that the next version gets."""
        return max(versions(self.repository, MODEL), default=0) + 1

    def prepare(self) -> Path:
        """Writes the next version aside, and lets callers be answered by it."""
        number = self.next_version()
        self.load.known_versions.add(number)
        return write_model(self.work / f"prepared-{number}", number)

    def wait_until_served(self, number: int) -> None:
        """Waits until both servers answer by a version; callers are answered by no older one from then on."""
        for server in self.servers:
            server.wait_until_ready(number)
        self.load.lowest_version = number

    def wait_until_all_serve(self) -> None:
        """Waits until both servers answer."""
        for server in self.servers:
            server.wait_until_ready()


def run_chaos(
    work: Path, seed: int, seconds: float, progress: Callable[[str], None], *, caller_count: int = 4
) -> ChaosResult:
    """Runs faults, one after the other, for so long; each kind once at least.

    Args:
        work: Empty folder for repository, logs and what is prepared.
        seed: Decides which faults, where and when.
        seconds: How long at least.
        progress: Takes a line for each fault.
        caller_count: Callers at once.

    Raises:
        ServerError: a server did not start or end as it must.
        FitserveError: a version that was published did not come to READY.
    """
    random, began_s = Random(seed), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    make_root(work / "repository")
    with ExitStack() as stack:
        clock = _new_clock(work / "clock", progress)
        environment = clock.environment if clock else None
        servers = [
            ChaosServer(work / "repository", work / f"server-{n}.log", _WORKERS, environment=environment)
            for n in range(_SERVERS)
        ]
        publish(work / "repository", write_model(work / "prepared-1", 1))
        publish(work / "repository", write_crashing_model(work / "crashing"), model=CRASHING)
        for server in servers:
            stack.callback(server.close)
            server.start()
        load = VerifiedLoad([server.address for server in servers], caller_count, seed)
        load.known_versions, load.lowest_version = {1}, 1
        chaos = Chaos(work, random, servers, load, clock)
        stack.enter_context(load.running())
        _inflict(chaos, began_s + seconds, progress)
        chaos.wait_until_all_serve()
        stack.close()
    return ChaosResult(seed, time.monotonic() - began_s, chaos.faults, load.tally)


def _new_clock(folder: Path, progress: Callable[[str], None]) -> SteppingClock | None:
    try:
        return SteppingClock(folder)
    except FileNotFoundError as error:
        progress(f"no clock steps: {error}")
        return None


def _faults_of(chaos: Chaos) -> set[str]:
    return set(_FAULTS) if chaos.clock else set(_FAULTS) - {_CLOCK_STEP}


def _inflict(chaos: Chaos, until_s: float, progress: Callable[[str], None]) -> None:
    due: list[str] = []
    is_first_round = True
    while due or is_first_round or time.monotonic() < until_s:
        if not due:
            due = chaos.random.sample(sorted(_faults_of(chaos)), len(_faults_of(chaos)))
        is_first_round = is_first_round and len(due) > 1
        name = due.pop()
        if not is_first_round and time.monotonic() >= until_s:
            due.clear()
        chaos.wait_until_all_serve()
        _FAULTS[name](chaos)
        chaos.faults[name] += 1
        tally = chaos.load.tally
        progress(f"{name}: {tally.answer_count} right, {len(tally.wrong)} wrong, {len(tally.failed)} failed so far")


def publish(repository: Path, prepared: Path, limit_bytes: str = "", *, model: str = MODEL) -> int:
    """Publishes a folder from a process of its own; gives its exit code."""
    command = [*_PUBLISH, str(repository), model, str(prepared), limit_bytes]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def hot_swap(chaos: Chaos) -> None:
    """A new version takes the place of the one that serves."""
    number = chaos.next_version()
    if publish(chaos.repository, chaos.prepare()):
        raise ServerError(f"publish: expected version {number} to be published, it was not")
    chaos.wait_until_served(number)


def publish_corrupt(chaos: Chaos) -> None:
    """A version appears that is not what its publisher wrote; it takes the number, and must never answer."""
    number = chaos.next_version()
    folder = write_model(chaos.work / f"corrupt-{number}", number)
    (folder / CHECKSUMS_FILE).write_text(checksum_text(checksums(folder)))
    model = folder / MODEL_FILE
    content = bytearray(model.read_bytes())
    kind = chaos.random.randrange(4)
    if kind == 0:
        content[chaos.random.randrange(len(content))] ^= 1 << chaos.random.randrange(8)
    elif kind == 1:
        del content[chaos.random.randrange(len(content)) :]
    elif kind == 2:
        content = bytearray(chaos.random.randbytes(len(content)))
    model.write_bytes(content)
    if kind == 3:
        model.unlink()
    elif kind == 2:
        (folder / CHECKSUMS_FILE).write_text(checksum_text(checksums(folder)))
    folder.rename(version_path(chaos.repository, MODEL, number).folder)


def publish_without_room(chaos: Chaos) -> None:
    """The disk is full: the publish fails, and nothing appears."""
    before = versions(chaos.repository, MODEL)
    code = publish(chaos.repository, chaos.prepare(), str(chaos.random.randrange(_LEAST_BYTES)))
    if not code or versions(chaos.repository, MODEL) != before:
        raise ServerError(f"publish without room: expected it to fail without a trace, got exit code {code}")


def _kill_publisher(chaos: Chaos) -> None:
    """A publisher dies at any moment."""
    command = [*_PUBLISH, str(chaos.repository), MODEL, str(chaos.prepare())]
    publisher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        publisher.wait(chaos.random.uniform(0.05, 0.4))
    publisher.kill()
    publisher.wait()


def _kill_worker(chaos: Chaos) -> None:
    """`kill -9` of a worker."""
    if workers := chaos.random.choice(chaos.servers).workers():
        with suppress(ProcessLookupError):
            os.kill(chaos.random.choice(workers), signal.SIGKILL)


def _crash_worker(chaos: Chaos) -> None:
    """A model crashes its worker by a request's value; a server sets it aside when it does so for the third time."""
    crash(chaos.random.choice(chaos.servers).address)


def _stop_worker(chaos: Chaos) -> None:
    """SIGSTOP of a worker, for up to two seconds."""
    if workers := chaos.random.choice(chaos.servers).workers():
        victim = chaos.random.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            time.sleep(chaos.random.uniform(0.1, 2.0))
            os.kill(victim, signal.SIGCONT)


def _hang_worker(chaos: Chaos) -> None:
    """SIGSTOP of a worker for good: its server has to replace it."""
    server = chaos.random.choice(chaos.servers)
    if workers := server.workers():
        victim = chaos.random.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
        until_s = time.monotonic() + _REPLACED_S
        while victim in server.workers():
            if time.monotonic() > until_s:
                os.kill(victim, signal.SIGKILL)
                raise ServerError(f"hung worker: expected it to be replaced within {_REPLACED_S:g} s, it was not")
            time.sleep(0.1)


def _restart(chaos: Chaos) -> None:
    """Every server in turn is ended by SIGTERM and started again."""
    for server in chaos.random.sample(chaos.servers, len(chaos.servers)):
        chaos.wait_until_all_serve()
        server.stop()
        server.start()
        server.wait_until_ready()


def _kill_server(chaos: Chaos) -> None:
    """`kill -9` of a whole server, which is started again."""
    server = chaos.random.choice(chaos.servers)
    server.kill()
    server.start()


def _step_clock(chaos: Chaos) -> None:
    """The wall clock of all servers steps, twice within moments, and may stay where it came to."""
    assert chaos.clock is not None
    for _ in range(2):
        chaos.clock.step_by_chance(chaos.random)
        time.sleep(chaos.random.uniform(0.1, 1.0))
    if chaos.random.random() < 0.5:
        chaos.clock.step(0.0)


_FAULTS: Final[dict[str, Callable[[Chaos], None]]] = {
    _CLOCK_STEP: _step_clock,
    "corrupt publish": publish_corrupt,
    "crash by a request": _crash_worker,
    "disk full": publish_without_room,
    "empty mount": empty_mount,
    "hung worker": _hang_worker,
    "link flip": flip_link,
    "replaced folder": replace_root,
    "slow copy": copy_slowly,
    "hot swap": hot_swap,
    "kill -9 of a publisher": _kill_publisher,
    "kill -9 of a server": _kill_server,
    "kill -9 of a worker": _kill_worker,
    "rolling restart": _restart,
    "SIGSTOP of a worker": _stop_worker,
}
