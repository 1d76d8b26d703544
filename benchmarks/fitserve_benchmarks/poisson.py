"""Open-loop load: requests leave at the times of a Poisson process, whether earlier ones were answered or not.

A latency counts from the moment at which the request was due, so that a server (or this client) that is late is not
spared the queue it caused. Waiting is done by asking again and again: a sleep is a millisecond too coarse.
Shapes: N calls answered.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from subprocess import PIPE
from typing import Final

import numpy as np

from fitserve_benchmarks.http2 import Http2Connection, frame_message
from fitserve_benchmarks.load import LoadFailedError
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.statistics import Times

_DRAIN_S: Final = 5.0
_SETTINGS_S: Final = 5.0


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
        late_s: 99th percentile of how late requests left: beyond a small part of the latency it is the client's.
        failed_count: Calls that were answered with an error, or not at all within 5 s of the end.
    """

    latencies_s: Times
    late_s: float
    failed_count: int


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
    latencies_s = np.array(answer["latencies_s"], np.float64)
    return PoissonResult(latencies_s, answer["late_s"], answer["failed_count"])


class _OpenLoop:
    """The connections and what is on its way."""

    def __init__(self, plan: PoissonPlan, messages: Sequence[bytes]) -> None:
        self._framed = [frame_message(message) for message in messages]
        self._connections = [Http2Connection("127.0.0.1", plan.port, plan.method) for _ in range(plan.connections)]
        self._counts = [0] * plan.connections
        self._due_s: dict[tuple[int, int], float] = {}
        self._waiting: deque[float] = deque()
        self.latencies_s: list[float] = []
        self.lateness_s: list[float] = []
        self.failed_count = 0
        self._greet()

    def run(self, times_s: Times) -> None:
        begin_s = time.perf_counter()
        due = self._waiting = deque((begin_s + times_s).tolist())
        sent = 0
        while due:
            while due and due[0] <= time.perf_counter() and (index := self._free()) is not None:
                self._send(index, sent, due.popleft())
                sent += 1
            self._receive()
        end_s = time.perf_counter() + _DRAIN_S
        while self._due_s and time.perf_counter() < end_s:
            self._receive()
        self.failed_count += len(self._due_s) + len(self._waiting)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _greet(self) -> None:
        end_s = time.perf_counter() + _SETTINGS_S
        while not all(connection.has_settings for connection in self._connections):
            self._receive()
            if time.perf_counter() > end_s:
                raise LoadFailedError("connection: expected an HTTP/2 server's SETTINGS, got none within 5 s")

    def _free(self) -> int | None:
        """Gives the connection with the fewest calls, None where each has as many as its server takes."""
        index = min(range(len(self._connections)), key=self._counts.__getitem__)
        return index if self._counts[index] < self._connections[index].max_streams else None

    def _send(self, index: int, number: int, due_s: float) -> None:
        self._counts[index] += 1
        stream = self._connections[index].send(self._framed[number % len(self._framed)])
        self._connections[index].flush()
        self._due_s[index, stream] = due_s
        self.lateness_s.append(time.perf_counter() - due_s)

    def _receive(self) -> None:
        for index, connection in enumerate(self._connections):
            for answer in connection.receive():
                due_s = self._due_s.pop((index, answer.stream))
                self._counts[index] -= 1
                if answer.is_refused:
                    # It leaves again, and counts from when it was due; after the last has left it counts as failed.
                    self._waiting.appendleft(due_s)
                elif answer.message is None:
                    self.failed_count += 1
                else:
                    self.latencies_s.append(time.perf_counter() - due_s)
            if connection.wants_to_write:
                connection.flush()


def put_poisson(plan: PoissonPlan, messages: Sequence[bytes]) -> PoissonResult:
    """Puts a turn on a server, from this process.

    Raises:
        OSError: the server cannot be reached, or ended a connection.
        LoadFailedError: it is no HTTP/2 server.
    """
    loop = _OpenLoop(plan, messages)
    try:
        loop.run(arrival_times_s(plan.rate, plan.duration_s, plan.seed))
    finally:
        loop.close()
    late_s = float(np.quantile(loop.lateness_s, 0.99)) if loop.lateness_s else 0.0
    return PoissonResult(np.array(loop.latencies_s), late_s, loop.failed_count)


def main() -> int:
    """The child: plan and messages as JSON on stdin, the result as JSON on stdout."""
    work = json.load(sys.stdin)
    try:
        plan = PoissonPlan(**work["plan"])
        result = put_poisson(plan, [base64.b64decode(message) for message in work["messages"]])
    except (OSError, LoadFailedError) as error:
        json.dump({"error": f"Poisson load: {error}"}, sys.stdout)
        return 0
    json.dump({**asdict(result), "latencies_s": result.latencies_s.tolist()}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
