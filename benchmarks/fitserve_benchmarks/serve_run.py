"""The servers' benchmark: everybody up at once, one after the other under load, turn by turn.

Shapes: B examples of a request.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.peers import Peer, PeerError
from fitserve_benchmarks.poisson import PoissonPlan, PoissonResult, poisson_in_process
from fitserve_benchmarks.serve_checks import check_answers
from fitserve_benchmarks.serve_inprocess import IN_PROCESS, in_process_turn
from fitserve_benchmarks.serve_large import LARGE, LARGE_IN_FLIGHT, is_for_large, write_large_model
from fitserve_benchmarks.serve_load import WARM_UP_S, Turn, load_source, own_turn, put_turn
from fitserve_benchmarks.serve_requests import Traffic, make_traffic
from fitserve_benchmarks.serve_rows import Check, PoissonRow, ServeResult, ServeRow, make_poisson_row, make_row
from fitserve_benchmarks.serve_servers import (
    ECHO_QUEUE,
    FAST,
    Contestant,
    Launch,
    Served,
    copy_served,
    own_launches,
    peer_launch,
    running,
    try_install,
)
from fitserve_benchmarks.subject import Subject, open_subject
from fitserve_benchmarks.threads import available_processors

_Kind = TypeVar("_Kind")

_CAPACITY_IN_FLIGHT: Final = 32
_POISSON_SHARE: Final = 0.7
_GENERATIONS: Final = 6
_LONGEST_TURN_S: Final = 10.0
_LONGEST_WARM_UP_S: Final = 3.0
_LEAST_RATE: Final = 1.0
"""Offered to who answered nothing in a turn."""

_POISSON_CONNECTIONS: Final = 4


@dataclass(frozen=True)
class ServePlan:
    """What is measured.

    Args:
        repository: Model repository.
        models: Names; the highest version of each.
        batch_sizes: Examples in a request.
        in_flight: Calls in flight.
        turns: Turns of each contestant at each level.
        turn_s: Time that counts of a turn, at least: slow models have longer ones.
        thread_count: Threads inside an operator, for everybody.
        peers: Who takes part beside ours.
        poisson_s: Time of the open loop for each contestant, all turns together; 0: none.
        has_large: Measure 10 MB in and out too.
    """

    repository: Path
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    in_flight: tuple[int, ...] = (1, 8, 32, 64, 128)
    turns: int = 3
    turn_s: float = 1.0
    thread_count: int = 1
    peers: Sequence[Peer] = field(default_factory=tuple)
    poisson_s: float = 4.0
    has_large: bool = True


def run_serve(plan: ServePlan, say: Callable[[str], None]) -> ServeResult:
    """Measures; nothing that it starts goes on after it.

    Args:
        plan: How.
        say: Takes a line of progress.

    Raises:
        SubjectError: a model cannot be measured.
        PeerError: a contestant of ours did not come up.
        LoadFailedError: the load could not be put on.
    """
    environment = describe_environment()
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as folder, ExitStack() as stack:
        served = copy_served(plan.repository, plan.models, plan.thread_count, Path(folder))
        if plan.has_large:
            write_large_model(served.repository)
        subjects = {model: open_subject(served.repository, model) for model in plan.models}
        first = make_traffic(subjects[plan.models[0]], 1, 1)
        line_up = _LineUp(served, first.messages[0], stack, say)
        for launch in own_launches(served):
            line_up.start(launch)
        line_up.start_peers(plan.peers)
        bench = _Bench(plan, line_up.contestants, subjects, say)
        bench.measure()
        if plan.has_large:
            bench.measure_large(open_subject(served.repository, LARGE))
    return ServeResult(
        settings=_settings(plan),
        environment=environment,
        load_average_after=os.getloadavg(),
        versions={c.name: c.launch.version for c in line_up.contestants if c.launch.version},
        absent=line_up.absent,
        rows=bench.rows,
        checks=bench.checks,
        poisson=bench.poisson,
    )


def _settings(plan: ServePlan) -> dict[str, object]:
    names = [peer.name for peer in plan.peers]
    return {**asdict(plan), "repository": plan.repository.name, "peers": names, "load_source": load_source()}


class _LineUp:
    """Starts contestants; they run until the stack is closed."""

    def __init__(self, served: Served, message: bytes, stack: ExitStack, say: Callable[[str], None]) -> None:
        self.contestants: list[Contestant] = []
        self.absent: dict[str, str] = {}
        self._served = served
        self._message = message
        self._stack = stack
        self._say = say

    def start(self, launch: Launch) -> None:
        self._say(f"starting {launch.name}")
        self.contestants.append(self._stack.enter_context(running(launch, self._served, self._message)))

    def start_peers(self, peers: Sequence[Peer]) -> None:
        runtime_version = importlib.metadata.version("onnxruntime-gpu")
        for peer in peers:
            python, reason = try_install(peer, runtime_version)
            if python is None:
                self.absent[peer.name] = reason
                continue
            try:
                self.start(peer_launch(peer, python, self._served))
            except PeerError as error:
                self.absent[peer.name] = str(error)
                self._say(f"{peer.name}: left out, {error}")


class _Bench:
    """The turns, and what they gave."""

    def __init__(
        self,
        plan: ServePlan,
        contestants: Sequence[Contestant],
        subjects: dict[str, Subject],
        say: Callable[[str], None],
    ) -> None:
        self.rows: list[ServeRow] = []
        self.checks: list[Check] = []
        self.poisson: list[PoissonRow] = []
        self._plan = plan
        self._contestants = contestants
        self._subjects = subjects
        self._say = say
        self._fast_rate = _LEAST_RATE

    def measure(self) -> None:
        """Runs each model at each batch size, and the open loop at batch 1."""
        for subject in self._subjects.values():
            for batch_size in self._plan.batch_sizes:
                traffic = make_traffic(subject, batch_size)
                self._closed_loop(subject, traffic, self._contestants, self._plan.in_flight, has_in_process=True)
            if self._plan.poisson_s > 0:
                self._open_loop(make_traffic(subject, 1))

    def measure_large(self, subject: Subject) -> None:
        """Runs ours and the echoes on 10 MB in and out."""
        contestants = [contestant for contestant in self._contestants if is_for_large(contestant)]
        traffic = make_traffic(subject, 1, 2)
        self._closed_loop(subject, traffic, contestants, LARGE_IN_FLIGHT, has_in_process=False)

    def _closed_loop(
        self,
        subject: Subject,
        traffic: Traffic,
        contestants: Sequence[Contestant],
        levels: Sequence[int],
        *,
        has_in_process: bool,
    ) -> None:
        sizes = {contestant.name: self._check(contestant, traffic) for contestant in contestants}
        call_s = self._call_s(subject, traffic) if has_in_process else 0.0
        for level in levels:
            times = turn_times(self._plan.turn_s, level, call_s)
            key = (traffic.model, traffic.batch_size, level)
            turns: dict[str, list[Turn]] = {}
            cpu_s: dict[str, float] = {}
            for number in range(self._plan.turns):
                self._say(f"{key[0]}, batch {key[1]}, {level} in flight, turn {number + 1} of {self._plan.turns}")
                for contestant in _rotated([*contestants, *([None] if has_in_process else [])], number):
                    name = IN_PROCESS if contestant is None else contestant.name
                    if contestant is None:
                        turn = self._in_process(subject, traffic, level, times[0])
                        spent_s = turn.load_cpu_s
                    elif (size := sizes[name]) is not None:
                        turn, spent_s = self._turn(contestant, traffic, size, level, times)
                    else:
                        continue
                    turns.setdefault(name, []).append(turn)
                    cpu_s[name] = cpu_s.get(name, 0.0) + spent_s
            self.rows += [make_row(key, name, results, cpu_s[name]) for name, results in turns.items()]

    def _turn(
        self, contestant: Contestant, traffic: Traffic, size: int, level: int, times: tuple[float, float]
    ) -> tuple[Turn, float]:
        requests = [contestant.launch.request_of(message) for message in traffic.messages]
        before_s = contestant.cpu_s()
        turn = put_turn(contestant.launch.target, requests, size, level, *times)
        return turn, contestant.cpu_s() - before_s

    def _call_s(self, subject: Subject, traffic: Traffic) -> float:
        """Gives the time of one call in process."""
        return float(np.median(self._in_process(subject, traffic, 1, self._plan.turn_s).latencies_s))

    def _in_process(self, subject: Subject, traffic: Traffic, level: int, turn_s: float) -> Turn:
        # As many at a time as the server runs: more would only share out the same processors.
        count = self._plan.thread_count
        callers = min(level, max(len(available_processors()) // count, 1))
        return in_process_turn(subject.onnx_path, count, callers, turn_s, traffic.batches[0])

    def _check(self, contestant: Contestant, traffic: Traffic) -> int | None:
        """Checks sampled answers; gives the length of one to the first request, None where there was none."""
        try:
            size, check = check_answers(contestant, traffic)
        except (OSError, LoadFailedError) as error:
            self._say(f"{contestant.name}: no answer to {traffic.model}, batch {traffic.batch_size}: {error}")
            self.checks.append(Check(traffic.model, traffic.batch_size, contestant.name, 0, 1))
            return None
        self.checks.append(check)
        return size

    def _open_loop(self, traffic: Traffic) -> None:
        """Runs everybody's closed loop for the capacity and then its open loop, turn by turn."""
        taking_part = {
            c.name for c in self._contestants if _is_for_open_loop(c) and self._answer_bytes(c, traffic) is not None
        }
        turns: dict[str, list[tuple[float, float, PoissonResult]]] = {}
        for number in range(self._plan.turns):
            self._say(f"{traffic.model}: Poisson arrivals, turn {number + 1} of {self._plan.turns}")
            for contestant in _rotated(self._contestants, number):
                if contestant.name in taking_part:
                    turn = self._poisson_turn(contestant, traffic, number)
                    turns.setdefault(contestant.name, []).append(turn)
        self.poisson += [make_poisson_row(traffic.model, name, found) for name, found in turns.items()]

    def _poisson_turn(
        self, contestant: Contestant, traffic: Traffic, number: int
    ) -> tuple[float, float, PoissonResult]:
        target = contestant.launch.target
        # By the client of the open loop: it takes its part of the same processors, more than h2load does.
        capacity = own_turn(target, traffic.messages, _CAPACITY_IN_FLIGHT, self._plan.turn_s).rate
        rate, turn_s = max(_POISSON_SHARE * capacity, _LEAST_RATE), self._plan.poisson_s / self._plan.turns
        if contestant.name == FAST:
            self._fast_rate = rate
        elif contestant.name == ECHO_QUEUE:
            # What of a tail is the machine's: an echo under the arrivals that our own server had.
            rate = self._fast_rate
        plan = PoissonPlan(target.port, target.path, rate, _POISSON_CONNECTIONS, turn_s, number)
        return capacity, rate, poisson_in_process(plan, traffic.messages)

    def _answer_bytes(self, contestant: Contestant, traffic: Traffic) -> int | None:
        """Gives the length of an answer, None where there is none."""
        try:
            return len(contestant.ask(contestant.launch.request_of(traffic.messages[0])))
        except OSError:
            return None


def turn_times(turn_s: float, level: int, call_s: float) -> tuple[float, float]:
    """Gives the times that count and that come before, so long that all calls in flight are answered several times.

    Args:
        turn_s: Time that counts, at least.
        level: Calls in flight.
        call_s: Time of one call in process.
    """
    generation_s = level * call_s
    counted_s = min(_GENERATIONS * generation_s, _LONGEST_TURN_S)
    return max(turn_s, counted_s), min(max(WARM_UP_S, generation_s), _LONGEST_WARM_UP_S)


def _is_for_open_loop(contestant: Contestant) -> bool:
    is_floor = contestant.name == ECHO_QUEUE
    return (is_floor or not contestant.launch.is_echo) and contestant.launch.target.protocol == "grpc"


def _rotated(contestants: Sequence[_Kind], number: int) -> list[_Kind]:
    """Has another one begin each turn, so that nobody always follows the same one."""
    first = number % max(1, len(contestants))
    return [*contestants[first:], *contestants[:first]]
