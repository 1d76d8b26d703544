"""Long load with faults inside the process, and what the server then holds: `fitserve-bench soak`.

One server process is called with verified answers, refused requests, cancelled calls and short connections while
versions come, go and fail. Its memory, descriptors and threads are read every second; each must end where it began, but
for what is allowed. A server that leaks on purpose is measured the same way, and must fail.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from fitserve_benchmarks.chaos import Chaos, hot_swap, publish, publish_corrupt, publish_without_room
from fitserve_benchmarks.chaos_load import MODEL, Tally, VerifiedLoad, write_model
from fitserve_benchmarks.chaos_servers import ChaosServer
from fitserve_client import Client, FitserveError
from fitserve_client.retry import RetryPolicy

LEAK: Final = (
    "import os, threading, time\n"
    "kept = []\n"
    "def leak():\n"
    "    while True:\n"
    "        kept.append((bytearray(os.urandom(1 << 20)), os.open('/dev/null', os.O_RDONLY)))\n"
    "        if len(kept) % 8 == 0:\n"
    "            threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "        time.sleep(0.03)\n"
    "from fitserve_service import stopping\n"
    "stopping.block_signals()\n"
    "threading.Thread(target=leak, daemon=True).start()\n"
)
"""Runs before the server's command in the negative control: some 30 MiB, 30 descriptors and 4 threads each second."""

_PERIOD_S: Final = 1.0
_WARM_UP: Final = 1 / 3
"""Part of the run that is left out: caches fill, arenas grow."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server's processes hold at one moment."""

    at_s: float
    memory_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Growth:
    """How one quantity grew over the measured part of a soak.

    Args:
        name: Memory, descriptors or threads.
        per_hour: Slope (Theil and Sen's median of slopes).
        over_run: The same over the measured part.
        allowed: Most that it may grow over the measured part.
    """

    name: str
    per_hour: float
    over_run: float
    allowed: float

    @property
    def is_allowed(self) -> bool:
        """It stayed within what is allowed."""
        return self.over_run <= self.allowed


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What a soak came to."""

    elapsed_s: float
    samples: tuple[Sample, ...]
    growths: tuple[Growth, ...]
    swap_count: int
    tally: Tally

    @property
    def is_right(self) -> bool:
        """Nothing grew, nothing failed, nothing was wrong."""
        is_lossless = self.tally.answer_count and not self.tally.failed and not self.tally.wrong
        return bool(is_lossless) and all(growth.is_allowed for growth in self.growths)


def soak(work: Path, seed: int, seconds: float, progress: Callable[[str], None], *, leak: bool = False) -> SoakResult:
    """Soaks one server.

    Args:
        work: Empty folder.
        seed: Decides what happens when.
        seconds: How long.
        progress: Takes a line now and then.
        leak: The negative control: the server leaks on purpose.

    Raises:
        ServerError: the server did not start or end as it must.
    """
    samples: list[Sample] = []
    with ExitStack() as stack:
        server = ChaosServer(work / "repository", work / "server.log", 1, before=LEAK if leak else "")
        publish(work / "repository", write_model(work / "prepared-1", 1))
        stack.callback(server.close)
        server.start()
        load = VerifiedLoad([server.address], 2, seed)
        load.known_versions, load.lowest_version = {1}, 1
        chaos = Chaos(work, Random(seed), [server], load)
        stack.enter_context(load.running())
        began_s = time.monotonic()
        with _RudeCallers(server.address):
            while (now_s := time.monotonic() - began_s) < seconds:
                samples.append(sample([server.process_id, *server.workers()], now_s))
                _disturb(chaos)
                if len(samples) % 30 == 0:
                    progress(f"{now_s:.0f} s: {load.tally.answer_count} answers, {_sample_text(samples[-1])}")
                time.sleep(max(0.0, began_s + now_s + _PERIOD_S - time.monotonic()))
    elapsed_s, swaps = time.monotonic() - began_s, chaos.faults["hot swap"]
    return SoakResult(elapsed_s, tuple(samples), growths(samples), swaps, load.tally)


def sample(process_ids: Sequence[int], at_s: float) -> Sample:
    """Reads what processes hold together: the worker that serves, and the parent that would start it again."""
    folders = [Path(f"/proc/{process_id}") for process_id in process_ids]
    pages = sum(int((folder / "statm").read_text().split()[1]) for folder in folders)
    descriptors, threads = (sum(len(os.listdir(folder / name)) for folder in folders) for name in ("fd", "task"))
    return Sample(at_s, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, descriptors, threads)


def growths(samples: Sequence[Sample]) -> tuple[Growth, ...]:
    """Judges samples after the warm-up: memory may grow by 16 MiB, descriptors by 16, threads by 4.

    Raises:
        ValueError: fewer than 6 samples.
    """
    if len(samples) < 6:
        raise ValueError(f"soak: expected at least 6 samples, got {len(samples)}: make it longer")
    kept = samples[int(len(samples) * _WARM_UP) :]
    span_s = kept[-1].at_s - kept[0].at_s
    series = {
        "memory, MiB": ([one.memory_mib for one in kept], 16.0),
        "descriptors": ([float(one.descriptors) for one in kept], 16.0),
        "threads": ([float(one.threads) for one in kept], 4.0),
    }
    found = []
    for name, (values, allowed) in series.items():
        slope = _slope([one.at_s for one in kept], values)
        found.append(Growth(name, slope * 3600, slope * span_s, allowed))
    return tuple(found)


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Gives the median of all pairs' slopes, of at most some hundred points spread over the run."""
    step = max(1, len(times) // 300)
    points = list(zip(times, values, strict=True))[::step]
    slopes = [
        (value - earlier) / (at - before)
        for index, (at, value) in enumerate(points)
        for before, earlier in points[:index]
    ]
    return statistics.median(slopes)


def _disturb(chaos: Chaos) -> None:
    """Now and then a version comes, or a corrupt one, or a publish fails for want of room."""
    chance = chaos.random.random()
    if chance < 0.2:
        hot_swap(chaos)
        chaos.faults["hot swap"] += 1
    elif chance < 0.25:
        publish_corrupt(chaos)
    elif chance < 0.3:
        publish_without_room(chaos)


class _RudeCallers:
    """Callers that send nonsense, give up early and never keep a connection."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._call_on)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _call_on(self) -> None:
        while not self._is_over.wait(0.05):
            with Client(self._address, retry=RetryPolicy(max_attempts=1)) as client:
                for rows, timeout_s in ((np.zeros((1, 3), np.float32), 5.0), (np.zeros((1, 2), np.float32), 1e-4)):
                    try:
                        client.predict(MODEL, rows, timeout_s=timeout_s)
                    except FitserveError:
                        # Being refused or too late is what it came for.
                        continue


def _sample_text(one: Sample) -> str:
    return f"{one.memory_mib:.0f} MiB, {one.descriptors} descriptors, {one.threads} threads"


def growth_lines(found: Sequence[Growth]) -> list[str]:
    """Says each slope in words."""
    return [
        f"{growth.name}: {growth.per_hour:+.1f} an hour, {growth.over_run:+.1f} over the measured part "
        f"(at most {growth.allowed:g}): {'kept' if growth.is_allowed else 'GREW'}"
        for growth in found
    ]
