"""Closed-loop load: so many calls in flight at any time, each followed by the next as soon as it is answered.

It runs in a process of its own (`load_in_process`), so that it takes no interpreter lock from whoever started it.
Shapes: N calls answered.
"""

from __future__ import annotations

import base64
import json
import selectors
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from subprocess import PIPE
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.http2 import Answer, Http2Connection, frame_message
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.statistics import Times

SAMPLE_EVERY: Final = 97
"""One answer in so many is kept to be checked; prime, so that it goes through all requests."""

_MAX_SAMPLES: Final = 200
_SETTINGS_WAIT_S: Final = 5.0
_DRAIN_S: Final = 5.0


class LoadFailedError(RuntimeError):
    """The load could not be put on the server, or not to its end."""


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
    """

    duration_s: float
    latencies_s: Times
    failed_count: int
    samples: tuple[tuple[int, bytes], ...]
    cpu_s: float


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
    )


def put_load(plan: LoadPlan, requests: Sequence[bytes]) -> LoadResult:
    """Puts one turn of load on a server, from this process.

    Raises:
        OSError: the server cannot be reached, or ended a connection.
        LoadFailedError: it takes fewer calls on a connection than planned.
    """
    turn = _Turn(plan, [frame_message(request) for request in requests])
    try:
        return turn.run()
    finally:
        turn.close()


@dataclass
class _Turn:
    """The connections and what has come back on them."""

    plan: LoadPlan
    framed_requests: list[bytes]
    connections: list[Http2Connection] = field(default_factory=list)
    started: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    samples: list[tuple[int, bytes]] = field(default_factory=list)
    answered_count: int = 0
    failed_count: int = 0

    def run(self) -> LoadResult:
        self._connect()
        self._rotation = cycle(range(len(self.framed_requests)))
        self._selector = selectors.DefaultSelector()
        for index, connection in enumerate(self.connections):
            self._selector.register(connection, selectors.EVENT_READ, index)
        for slot in range(self.plan.in_flight):
            self._send(slot % len(self.connections))
        began_s = self._run_until(time.perf_counter() + self.plan.warm_up_s)
        self.latencies_s.clear()
        ended_s = self._run_until(began_s + self.plan.duration_s)
        counted = np.array(self.latencies_s)
        self._drain(ended_s + _DRAIN_S)
        return LoadResult(ended_s - began_s, counted, self.failed_count, tuple(self.samples), time.process_time())

    def close(self) -> None:
        for connection in self.connections:
            connection.close()

    def _connect(self) -> None:
        plan = self.plan
        for _ in range(plan.connections):
            self.connections.append(Http2Connection(plan.host, plan.port, plan.method))
        share = -(-plan.in_flight // plan.connections)
        for connection in self.connections:
            _await_settings(connection)
            if connection.max_streams < share:
                least = -(-plan.in_flight // max(1, connection.max_streams))
                raise LoadFailedError(
                    f"in flight: expected at most {connection.max_streams} on a connection, got {share}; "
                    f"{plan.in_flight} need --connections {least}"
                )

    def _run_until(self, end_s: float) -> float:
        clock = time.perf_counter
        while (now_s := clock()) < end_s:
            for key, _ in self._selector.select(end_s - now_s):
                for answer in self.connections[key.data].receive():
                    self._take(key.data, answer, clock())
                    self._send(key.data)
            self._flush()
        return now_s

    def _drain(self, end_s: float) -> None:
        """Waits for what is in flight, so that closing the connections cancels nothing on the server."""
        while self.started and (now_s := time.perf_counter()) < end_s:
            for key, _ in self._selector.select(end_s - now_s):
                for answer in self.connections[key.data].receive():
                    self.started.pop((key.data, answer.stream), None)
            self._flush()

    def _send(self, index: int) -> None:
        request = next(self._rotation)
        stream = self.connections[index].send(self.framed_requests[request])
        self.started[index, stream] = (time.perf_counter(), request)

    def _take(self, index: int, answer: Answer, now_s: float) -> None:
        started_s, request = self.started.pop((index, answer.stream))
        self.answered_count += 1
        if answer.message is None:
            self.failed_count += 1
            return
        self.latencies_s.append(now_s - started_s)
        if self.answered_count % SAMPLE_EVERY == 1 and len(self.samples) < _MAX_SAMPLES:
            self.samples.append((request, answer.message))

    def _flush(self) -> None:
        for connection in self.connections:
            wanted_before = connection.wants_to_write
            if not wanted_before:
                continue
            connection.flush()
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_to_write else 0)
            if self._selector.get_key(connection).events != events:
                self._selector.modify(connection, events, self._selector.get_key(connection).data)


def _await_settings(connection: Http2Connection) -> None:
    """Waits until the server has said how many calls it takes on the connection."""
    connection.flush()
    end_s = time.perf_counter() + _SETTINGS_WAIT_S
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while not connection.has_settings and (now_s := time.perf_counter()) < end_s:
            selector.select(end_s - now_s)
            connection.receive()
    if not connection.has_settings:
        raise LoadFailedError("connection: expected an HTTP/2 server's SETTINGS, got none within 5 s")


def main() -> int:
    """The child: plan and requests as JSON on stdin, the result as JSON on stdout."""
    work: dict[str, Any] = json.load(sys.stdin)
    plan = LoadPlan(**work["plan"])
    try:
        result = put_load(plan, [base64.b64decode(request) for request in work["requests"]])
    except (OSError, LoadFailedError) as error:
        json.dump({"error": f"{plan.host}:{plan.port}: {error}"}, sys.stdout)
        return 0
    latencies = base64.b64encode(result.latencies_s.astype(np.float32).tobytes()).decode()
    samples = [(index, base64.b64encode(content).decode()) for index, content in result.samples]
    json.dump({**asdict(result), "latencies_s": latencies, "samples": samples}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
