"""Open-loop load: requests leave at the times of a Poisson process, whether earlier ones were answered or not.

A latency counts from the moment at which the request was due, so that a server (or this client) that is late is not
spared the queue it caused. Waiting is done by asking again and again: a sleep is a millisecond too coarse.
Shapes: N calls answered.
"""

from __future__ import annotations

import base64
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from subprocess import PIPE
from typing import Final

import numpy as np

from fitserve_benchmarks.http2 import frame_message
from fitserve_benchmarks.http2_lines import Http2Lines, LoadFailedError, wake_promptly
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.statistics import Times

_DRAIN_S: Final = 5.0
_LONGEST_WAIT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class PoissonPlan:
    """One turn.

    Args:
        port: TCP port of this machine.
        method: `/package.Service/Method`.
        rate: Requests a second, on average.
        connections: TCP connections; a request that is due waits where each has as many calls as its server takes.
        duration_s: Time that requests leave in.
        seed: Of the arrival times.
    """

    port: int
    method: str
    rate: float
    connections: int
    duration_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PoissonResult:
    """What it gave.

    Args:
        latencies_s: (N) from when a request was due to the end of its answer.
        lateness_s: (M) how late each left; a part of its latency that is the client's. Those that waited because the
            server took no further call are not among them.
        failed_count: Calls that were answered with an error, or not at all within 5 s of the end.
        held_count: Calls that waited because the server took no further one on any connection.
        cpu_s: Processor time of the client.
    """

    latencies_s: Times
    lateness_s: Times
    failed_count: int
    held_count: int
    cpu_s: float


def arrival_times_s(rate: float, duration_s: float, seed: int) -> Times:
    """Draws the times of a Poisson process, in order, within [0, duration_s); the same seed gives the same."""
    generator = np.random.default_rng(seed)
    count = int(rate * duration_s * 1.5) + 64
    times_s = np.cumsum(generator.exponential(1 / rate, count))
    while times_s[-1] < duration_s:
        times_s = np.concatenate((times_s, times_s[-1] + np.cumsum(generator.exponential(1 / rate, count))))
    return times_s[times_s < duration_s]


def poisson_in_process(plan: PoissonPlan, messages: Sequence[bytes]) -> PoissonResult:
    """Puts a turn on a server, from a child process.

    Raises:
        LoadFailedError: it could not be put on, or not to its end.
    """
    work = {"plan": asdict(plan), "messages": [base64.b64encode(message).decode() for message in messages]}
    command = [sys.executable, "-m", "fitserve_benchmarks.poisson"]
    exit_code, output = run_child(command, message=json.dumps(work).encode(), stdout=PIPE)
    if exit_code != 0:
        raise LoadFailedError(f"Poisson load: expected exit code 0, got {exit_code}")
    answer = json.loads(output)
    if "error" in answer:
        raise LoadFailedError(answer["error"])
    answer.update({name: np.array(answer[name], np.float64) for name in ("latencies_s", "lateness_s")})
    return PoissonResult(**answer)


class _OpenLoop:
    """What is due, what is on its way, and what has come back."""

    def __init__(self, lines: Http2Lines, messages: Sequence[bytes], times_s: Times) -> None:
        self._lines = lines
        self._framed = [frame_message(message) for message in messages]
        self._times_s = times_s
        self._pending: list[dict[int, float]] = [{} for _ in lines.connections]
        self._due: deque[float] = deque()
        self._turn = 0
        self._sent_count = 0
        self._is_held = False
        self.latencies_s: list[float] = []
        self.lateness_s: list[float] = []
        self.failed_count = 0
        self.held_count = 0

    def run(self) -> None:
        clock = time.perf_counter
        due = self._due = deque((clock() + self._times_s).tolist())
        while due:
            self._send_due(clock())
            # Where there is no room, only an answer makes some.
            self._receive(clock() + _LONGEST_WAIT_S if self._is_held or not due else due[0])
        end_s = clock() + _DRAIN_S
        while (any(self._pending) or due) and (now_s := clock()) < end_s:
            self._send_due(now_s)
            self._receive(now_s + _LONGEST_WAIT_S)
        self.failed_count += sum(map(len, self._pending)) + len(due)

    def _send_due(self, now_s: float) -> None:
        """Starts all that is due; the next wait writes it, on each connection at once."""
        due = self._due
        while due and due[0] <= now_s:
            index = self._with_room()
            if index is None:
                self._is_held = True
                break
            due_s = due.popleft()
            framed = self._framed[self._sent_count % len(self._framed)]
            self._pending[index][self._lines.send(index, framed)] = due_s
            self._sent_count += 1
            if self._is_held:
                self.held_count += 1
            else:
                self.lateness_s.append(now_s - due_s)
        else:
            self._is_held = False

    def _with_room(self) -> int | None:
        """Gives the next connection in turn that takes another call, None where none does."""
        count = len(self._pending)
        for _ in range(count):
            index = self._turn = (self._turn + 1) % count
            if len(self._pending[index]) < self._lines.connections[index].max_streams:
                return index
        return None

    def _receive(self, end_s: float) -> None:
        for index in self._lines.wait_until(end_s):
            answers = self._lines.receive(index)
            now_s = time.perf_counter()
            for answer in answers:
                due_s = self._pending[index].pop(answer.stream)
                if answer.is_refused:
                    # It leaves again, and counts from when it was due.
                    self._due.appendleft(due_s)
                elif answer.message is None:
                    self.failed_count += 1
                else:
                    self.latencies_s.append(now_s - due_s)


def put_poisson(plan: PoissonPlan, messages: Sequence[bytes]) -> PoissonResult:
    """Puts a turn on a server, from this process.

    Raises:
        OSError: the server cannot be reached, or ended a connection.
        LoadFailedError: it is no HTTP/2 server.
    """
    times_s = arrival_times_s(plan.rate, plan.duration_s, plan.seed)
    lines = Http2Lines("127.0.0.1", plan.port, plan.method, plan.connections)
    try:
        loop = _OpenLoop(lines, messages, times_s)
        before_s = time.process_time()
        loop.run()
        cpu_s = time.process_time() - before_s
    finally:
        lines.close()
    times = np.array(loop.latencies_s), np.array(loop.lateness_s)
    return PoissonResult(*times, loop.failed_count, loop.held_count, cpu_s)


def main() -> int:
    """The child: plan and messages as JSON on stdin, the result as JSON on stdout."""
    work = json.load(sys.stdin)
    gc.disable()  # nothing here is part of a cycle, and a collection would make every call on its way late
    wake_promptly()
    try:
        plan = PoissonPlan(**work["plan"])
        result = put_poisson(plan, [base64.b64decode(message) for message in work["messages"]])
    except (OSError, LoadFailedError) as error:
        json.dump({"error": f"Poisson load: {error}"}, sys.stdout)
        return 0
    times_s = {"latencies_s": result.latencies_s.tolist(), "lateness_s": result.lateness_s.tolist()}
    json.dump({**asdict(result), **times_s}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
