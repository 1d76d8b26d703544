"""Load by phases that notes what became of every request: answered rightly, refused, too late, or nothing.

A phase is open (requests leave at the times of a Poisson process, answered or not) or closed (so many in flight). One
phase follows the other without a pause, on the same connections. Nothing is ever sent twice. Health is asked beside it,
at even times. A latency counts from the moment at which a request was due. It runs in a process of its own, and waits
in `select`, so that it takes as little of the processors as it can; what it takes is reported.
"""

from __future__ import annotations

import base64
import json
import operator
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from subprocess import PIPE
from typing import Final, NamedTuple

from fitserve_benchmarks.http2 import Answer, Http2Connection, frame_message
from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.overload_model import PREDICT, is_right
from fitserve_benchmarks.poisson import arrival_times_s
from fitserve_benchmarks.processes import run_child

HEALTH: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = b"\x08\x01"
"""HealthCheckResponse with status SERVING."""

OK: Final = 0
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNANSWERED: Final = -1
"""No status came, within 5 s of the end of all phases."""

WRONG: Final = -2
"""Answered, with something else than the right answer."""

_DRAIN_S: Final = 5.0
_LONGEST_WAIT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of load.

    Args:
        name: For the report.
        duration_s: Time in which its requests are due.
        rate: Requests a second, on average; 0 where it is closed.
        in_flight: Calls in flight of a closed phase.
        timeout_ms: Deadline of every request; 0: none.
    """

    name: str
    duration_s: float
    rate: float = 0.0
    in_flight: int = 0
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """What a source does.

    Args:
        port: TCP port of this machine.
        phases: In their order.
        connections: For the requests; health has one of its own.
        health_every_s: Time between two questions for health.
        seed: Of the arrival times.
    """

    port: int
    phases: tuple[Phase, ...]
    connections: int = 8
    health_every_s: float = 0.02
    seed: int = 0


class Sent(NamedTuple):
    """One request, or one question for health.

    Args:
        due_s: When it was due, seconds from the begin of its phase.
        late_s: How much later it left.
        took_s: From when it was due to the end of its answer.
        outcome: gRPC status, WRONG or UNANSWERED.
    """

    due_s: float
    late_s: float
    took_s: float
    outcome: int


@dataclass(slots=True)
class PhaseRecord:
    """What a phase gave.

    Args:
        phase: Which.
        requests: Each request, in the order of its end.
        health: Each question for health.
        cpu_s: Processor time of the source while it lasted.
    """

    phase: Phase
    requests: list[Sent] = field(default_factory=list)
    health: list[Sent] = field(default_factory=list)
    cpu_s: float = 0.0


def source_in_process(plan: SourcePlan, messages: Sequence[bytes], contents: Sequence[bytes]) -> list[PhaseRecord]:
    """Puts the load on, from a child process.

    Args:
        plan: Which.
        messages: Predict requests, sent in rotation.
        contents: The content of the right answer to each.

    Raises:
        LoadFailedError: it could not be put on, or not to its end.
    """
    texts = [[base64.b64encode(each).decode() for each in group] for group in (messages, contents)]
    work = {"plan": asdict(plan), "messages": texts[0], "contents": texts[1]}
    command = [sys.executable, "-m", "fitserve_benchmarks.overload_source"]
    exit_code, output = run_child(command, message=json.dumps(work).encode(), stdout=PIPE)
    if exit_code != 0:
        raise LoadFailedError(f"overload source: expected exit code 0, got {exit_code}")
    answer = json.loads(output)
    if error := answer.get("error"):
        raise LoadFailedError(error)
    return [
        PhaseRecord(phase, [Sent(*each) for each in requests], [Sent(*each) for each in health], cpu_s)
        for phase, (requests, health, cpu_s) in zip(plan.phases, answer["records"], strict=True)
    ]


class _Pending(NamedTuple):
    record: PhaseRecord
    begin_s: float
    due_s: float
    sent_s: float
    number: int


class _Lines:
    """Connections of one method and one deadline, and what is on its way over them."""

    def __init__(
        self,
        plan: SourcePlan,
        method: str,
        contents: Sequence[bytes],
        is_right: Callable[[bytes, bytes], bool],
        timeout_ms: int = 0,
    ) -> None:
        count = plan.connections if method == PREDICT else 1
        self._contents = contents
        self._is_right = is_right
        self.connections = [
            Http2Connection("127.0.0.1", plan.port, method, timeout_ms=timeout_ms, reads_status=True)
            for _ in range(count)
        ]
        self._pending: list[dict[int, _Pending]] = [{} for _ in range(count)]

    @property
    def in_flight(self) -> int:
        return sum(map(len, self._pending))

    def send(self, framed: bytes, record: PhaseRecord, begin_s: float, due_s: float, number: int) -> bool:
        """Sends a request; False where every connection has as many calls as its server takes."""
        index = min(range(len(self.connections)), key=lambda i: len(self._pending[i]))
        connection = self.connections[index]
        if len(self._pending[index]) >= connection.max_streams:
            return False
        stream = connection.send(framed)
        connection.flush()
        self._pending[index][stream] = _Pending(record, begin_s, due_s, time.perf_counter(), number)
        return True

    def receive(self, index: int) -> None:
        """Takes the answers that have arrived on one of the connections."""
        connection, pending = self.connections[index], self._pending[index]
        for answer in connection.receive():
            sent = pending.pop(answer.stream)
            _note(sent, time.perf_counter(), self._outcome(answer, sent.number))
        if connection.wants_to_write:
            connection.flush()

    def give_up(self) -> None:
        """Counts what is still on its way as unanswered."""
        now_s = time.perf_counter()
        for pending in self._pending:
            for sent in pending.values():
                _note(sent, now_s, UNANSWERED)
            pending.clear()

    def _outcome(self, answer: Answer, number: int) -> int:
        if answer.status is None or (answer.status == OK and answer.message is None):
            return UNANSWERED
        if answer.status != OK:
            return answer.status
        content = self._contents[number % len(self._contents)]
        return OK if self._is_right(answer.message or b"", content) else WRONG


class _Source:
    """All lines of a plan, driven phase by phase."""

    def __init__(self, plan: SourcePlan, messages: Sequence[bytes], contents: Sequence[bytes]) -> None:
        self._plan = plan
        self._framed = [frame_message(message) for message in messages]
        timeouts = {phase.timeout_ms for phase in plan.phases}
        self._lines = {each: _Lines(plan, PREDICT, contents, is_right, each) for each in timeouts}
        self._health = _Lines(plan, HEALTH, [SERVING], operator.eq)
        self._all = [*self._lines.values(), self._health]
        self._places = {
            connection: (lines, index) for lines in self._all for index, connection in enumerate(lines.connections)
        }
        self._health_due_s = 0.0
        self._sent_count = 0
        self.records = [PhaseRecord(phase) for phase in plan.phases]

    def greet(self) -> None:
        """Waits for every connection's settings."""
        end_s = time.perf_counter() + _DRAIN_S
        while not all(connection.has_settings for lines in self._all for connection in lines.connections):
            self._receive(_LONGEST_WAIT_S)
            if time.perf_counter() > end_s:
                raise LoadFailedError("connection: expected an HTTP/2 server's SETTINGS, got none within 5 s")

    def run(self) -> None:
        """Carries out all phases, then waits for what is left."""
        begin_s = self._health_due_s = time.perf_counter()
        for index, record in enumerate(self.records):
            cpu_s = time.process_time()
            self._carry_out(record, begin_s, self._plan.seed + index)
            record.cpu_s = time.process_time() - cpu_s
            begin_s += record.phase.duration_s
        end_s = time.perf_counter() + _DRAIN_S
        while any(lines.in_flight for lines in self._all) and time.perf_counter() < end_s:
            self._receive(_LONGEST_WAIT_S)
        for lines in self._all:
            lines.give_up()

    def close(self) -> None:
        """Closes every connection."""
        for lines in self._all:
            for connection in lines.connections:
                connection.close()

    def _carry_out(self, record: PhaseRecord, begin_s: float, seed: int) -> None:
        phase = record.phase
        end_s = begin_s + phase.duration_s
        arrivals = (begin_s + arrival_times_s(phase.rate, phase.duration_s, seed)).tolist() if phase.rate else []
        due = deque(arrivals)
        while (now_s := time.perf_counter()) < end_s:
            if phase.in_flight:
                due.extend([now_s] * (phase.in_flight - self._lines[phase.timeout_ms].in_flight - len(due)))
            self._send_due(record, begin_s, due)
            self._ask_health(record, begin_s)
            next_s = min(end_s, self._health_due_s, due[0] if due else end_s)
            self._receive(min(_LONGEST_WAIT_S, max(next_s - time.perf_counter(), 0.0)))
        # What became due as the phase ended is sent as well; a server's limit of calls must not hide a queue.
        self._send_due(record, begin_s, due)

    def _send_due(self, record: PhaseRecord, begin_s: float, due: deque[float]) -> None:
        lines = self._lines[record.phase.timeout_ms]
        while due and due[0] <= time.perf_counter():
            framed = self._framed[self._sent_count % len(self._framed)]
            if not lines.send(framed, record, begin_s, due[0], self._sent_count):
                return
            due.popleft()
            self._sent_count += 1

    def _ask_health(self, record: PhaseRecord, begin_s: float) -> None:
        while self._health_due_s <= time.perf_counter():
            if not self._health.send(frame_message(b""), record, begin_s, self._health_due_s, -1):
                return
            self._health_due_s += self._plan.health_every_s

    def _receive(self, wait_s: float) -> None:
        writing = [connection for connection in self._places if connection.wants_to_write]
        # Not epoll, which knows no time below a millisecond.
        readable, writable, _ = select.select(self._places, writing, [], wait_s)
        for connection in readable:
            lines, index = self._places[connection]
            lines.receive(index)
        for connection in writable:
            connection.flush()


def _note(sent: _Pending, now_s: float, outcome: int) -> None:
    noted = Sent(sent.due_s - sent.begin_s, sent.sent_s - sent.due_s, now_s - sent.due_s, outcome)
    (sent.record.health if sent.number < 0 else sent.record.requests).append(noted)


def put_source(plan: SourcePlan, messages: Sequence[bytes], contents: Sequence[bytes]) -> list[PhaseRecord]:
    """Puts the load on, from this process.

    Raises:
        OSError: the server cannot be reached, or ended a connection.
        LoadFailedError: it is no HTTP/2 server.
    """
    source = _Source(plan, messages, contents)
    try:
        source.greet()
        source.run()
    finally:
        source.close()
    return source.records


def main() -> int:
    """The child: plan, messages and contents as JSON on stdin, the records as JSON on stdout."""
    work = json.load(sys.stdin)
    phases = tuple(Phase(**phase) for phase in work["plan"].pop("phases"))
    messages, contents = ([base64.b64decode(each) for each in work[key]] for key in ("messages", "contents"))
    try:
        records = put_source(SourcePlan(phases=phases, **work["plan"]), messages, contents)
    except (OSError, LoadFailedError) as error:
        json.dump({"error": f"overload source: {error}"}, sys.stdout)
        return 0
    json.dump({"records": [(each.requests, each.health, each.cpu_s) for each in records]}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
