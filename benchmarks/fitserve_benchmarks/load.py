"""Closed-loop load: so many calls in flight at any time, each followed by the next as soon as it is answered.

It runs in a process of its own (`load_in_process`), so that it takes no interpreter lock from whoever started it.
Shapes: N calls answered.
"""

from __future__ import annotations

import base64
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from subprocess import PIPE
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.http2 import Answer, frame_message
from fitserve_benchmarks.http2_lines import Http2Lines, LoadFailedError
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.statistics import Times

SAMPLE_EVERY: Final = 97
"""One answer in so many is kept to be checked; prime, so that it goes through all requests."""

_MAX_SAMPLES: Final = 200
_DRAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One turn of load.

    Args:
        host: Server's name or address.
        port: Its port.
        method: `/package.Service/Method`.
        in_flight: Calls in flight at any time, >= 1.
        connections: TCP connections they are spread over, 1..in_flight.
        duration_s: Time that counts.
        warm_up_s: Time before it that does not.
    """

    host: str
    port: int
    method: str
    in_flight: int
    connections: int
    duration_s: float
    warm_up_s: float = 0.3


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a turn gave.

    Args:
        duration_s: Time that counted, as measured.
        latencies_s: (N) from writing a request to the end of its answer.
        failed_count: Calls answered without a message, warm-up included.
        samples: Request number and answer, of some of the calls.
        cpu_s: Processor time that the load itself took, warm-up included.
        ends_s: (N) when each answer came, on this machine's monotonic clock.
    """

    duration_s: float
    latencies_s: Times
    failed_count: int
    samples: tuple[tuple[int, bytes], ...]
    cpu_s: float
    ends_s: Times


def load_in_process(plan: LoadPlan, requests: Sequence[bytes]) -> LoadResult:
    """Puts one turn of load on a server, from a child process.

    Args:
        plan: How much.
        requests: Serialized requests, sent in rotation.

    Raises:
        LoadFailedError: the server cannot be reached, went away, or takes fewer calls on a connection than planned.
    """
    work = {"plan": asdict(plan), "requests": [base64.b64encode(request).decode() for request in requests]}
    command = [sys.executable, "-m", "fitserve_benchmarks.load"]
    exit_code, output = run_child(command, message=json.dumps(work).encode(), stdout=PIPE)
    if exit_code != 0:
        raise LoadFailedError(f"load process: expected exit code 0, got {exit_code}")
    answer = json.loads(output)
    if error := answer.get("error"):
        raise LoadFailedError(error)
    return LoadResult(
        duration_s=answer["duration_s"],
        latencies_s=np.frombuffer(base64.b64decode(answer["latencies_s"]), np.float32).astype(np.float64),
        failed_count=answer["failed_count"],
        samples=tuple((index, base64.b64decode(content)) for index, content in answer["samples"]),
        cpu_s=answer["cpu_s"],
        ends_s=np.frombuffer(base64.b64decode(answer["ends_s"]), np.float64),
    )


def put_load(plan: LoadPlan, requests: Sequence[bytes]) -> LoadResult:
    """Puts one turn of load on a server, from this process.

    Raises:
        OSError: the server cannot be reached, or ended a connection.
        LoadFailedError: it takes fewer calls on a connection than planned.
    """
    lines = Http2Lines(plan.host, plan.port, plan.method, plan.connections)
    try:
        _check_room(plan, lines)
        return _Turn(plan, [frame_message(request) for request in requests], lines).run()
    finally:
        lines.close()


def _check_room(plan: LoadPlan, lines: Http2Lines) -> None:
    share = -(-plan.in_flight // plan.connections)
    room = min(connection.max_streams for connection in lines.connections)
    if room < share:
        least = -(-plan.in_flight // max(1, room))
        raise LoadFailedError(
            f"in flight: expected at most {room} on a connection, got {share}; "
            f"{plan.in_flight} need --connections {least}"
        )


class _Turn:
    """What is on its way, and what has come back."""

    def __init__(self, plan: LoadPlan, framed_requests: Sequence[bytes], lines: Http2Lines) -> None:
        self._plan = plan
        self._framed = framed_requests
        self._lines = lines
        self._rotation = cycle(range(len(framed_requests)))
        self._started: list[dict[int, tuple[float, int]]] = [{} for _ in lines.connections]
        self._latencies_s: list[float] = []
        self._ends_s: list[float] = []
        self._samples: list[tuple[int, bytes]] = []
        self._answered_count = 0
        self._failed_count = 0

    def run(self) -> LoadResult:
        now_s = time.perf_counter()
        for slot in range(self._plan.in_flight):
            self._send(slot % self._plan.connections, now_s)
        began_s = self._run_until(time.perf_counter() + self._plan.warm_up_s)
        self._latencies_s.clear()
        self._ends_s.clear()
        ended_s = self._run_until(began_s + self._plan.duration_s)
        latencies_s, ends_s = np.array(self._latencies_s), np.array(self._ends_s)
        self._drain(ended_s + _DRAIN_S)
        counts = (self._failed_count, tuple(self._samples), time.process_time())
        return LoadResult(ended_s - began_s, latencies_s, *counts, ends_s)

    def _run_until(self, end_s: float) -> float:
        """Goes on until a time; gives the time at which it saw that it was over."""
        while (now_s := time.perf_counter()) < end_s:
            for index in self._lines.wait_until(end_s):
                answers = self._lines.receive(index)
                now_s = time.perf_counter()
                for answer in answers:
                    self._take(index, answer, now_s)
                    self._send(index, now_s)
        return now_s

    def _drain(self, end_s: float) -> None:
        """Waits for what is in flight, so that closing the connections cancels nothing on the server."""
        while any(self._started) and time.perf_counter() < end_s:
            for index in self._lines.wait_until(end_s):
                for answer in self._lines.receive(index):
                    self._started[index].pop(answer.stream, None)

    def _send(self, index: int, now_s: float) -> None:
        request = next(self._rotation)
        stream = self._lines.send(index, self._framed[request])
        self._started[index][stream] = (now_s, request)

    def _take(self, index: int, answer: Answer, now_s: float) -> None:
        started_s, request = self._started[index].pop(answer.stream)
        self._answered_count += 1
        if answer.message is None:
            self._failed_count += 1
            return
        self._latencies_s.append(now_s - started_s)
        self._ends_s.append(now_s)
        if self._answered_count % SAMPLE_EVERY == 1 and len(self._samples) < _MAX_SAMPLES:
            self._samples.append((request, answer.message))


def main() -> int:
    """The child: plan and requests as JSON on stdin, the result as JSON on stdout."""
    work: dict[str, Any] = json.load(sys.stdin)
    plan = LoadPlan(**work["plan"])
    gc.disable()  # nothing here is part of a cycle, and a collection would make every call on its way late
    try:
        result = put_load(plan, [base64.b64decode(request) for request in work["requests"]])
    except (OSError, LoadFailedError) as error:
        json.dump({"error": f"{plan.host}:{plan.port}: {error}"}, sys.stdout)
        return 0
    latencies, ends = (
        base64.b64encode(times_s.tobytes()).decode() for times_s in (result.latencies_s.astype("f4"), result.ends_s)
    )
    samples = [(index, base64.b64encode(content).decode()) for index, content in result.samples]
    json.dump({**asdict(result), "latencies_s": latencies, "ends_s": ends, "samples": samples}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
