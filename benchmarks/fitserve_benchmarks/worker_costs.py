"""What further workers give and cost: processor time of a request, requests a second, and memory, in one run.

The same model is served by one worker and by several, all at once and loaded in turns. Shapes: T turns.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.request import urlopen

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.load import LoadPlan, load_in_process
from fitserve_benchmarks.processes import child_process
from fitserve_benchmarks.programs import free_ports, program_path
from fitserve_benchmarks.serve_load import Target
from fitserve_benchmarks.serve_requests import MODEL_INFER, Traffic, is_right, make_traffic
from fitserve_benchmarks.serve_servers import Contestant, Launch, Served, running
from fitserve_benchmarks.subject import open_subject
from fitserve_benchmarks.threads import available_processors

LEAST_PROCESSORS: Final = 4
"""On fewer the load itself takes what a second worker would have."""

MOST_CPU_RATIO: Final = 1.15
LEAST_RATE_RATIO: Final = 1.7

_SPIN: Final = "import os\nos.nice(19)\nwhile True: pass"
"""Takes what nobody else wants of a processor."""

_COUNTED: Final = re.compile(r"^fitserve_requests_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class WorkersPlan:
    """What is measured.

    Args:
        repository: Model repository.
        model: Its highest version.
        counts: Numbers of workers; the first is what the others are held against.
        in_flight: Calls in flight, each on a connection of its own: connections are dealt to workers.
        turns: T, of each number of workers.
        turn_s: Time of a turn.
    """

    repository: Path
    model: str
    counts: tuple[int, ...] = (1, 2)
    in_flight: int = 32
    turns: int = 5
    turn_s: float = 2.0


@dataclass(frozen=True)
class WorkersRow:
    """What a number of workers came to.

    Args:
        count: Workers.
        cpu_s: Processor time of a request, parent and workers together, median of T turns.
        cpu_ratio: The same over the first row's, turn by turn, median.
        rate: Requests a second, median.
        rate_ratio: The same over the first row's; None where there are too few processors to tell.
        memory: Of each worker: resident, proportional and private bytes.
        failed_count: Calls that were not answered.
        wrong_count: Checked answers that were wrong.
        checked_count: Answers checked.
    """

    count: int
    cpu_s: float
    cpu_ratio: float
    rate: float
    rate_ratio: float | None
    memory: tuple[dict[str, int], ...]
    failed_count: int
    wrong_count: int
    checked_count: int

    @property
    def further_bytes(self) -> int:
        """Memory that a further worker takes: what the largest of them has to itself."""
        return max((worker["private_bytes"] for worker in self.memory if "private_bytes" in worker), default=0)


@dataclass(frozen=True)
class WorkersResult:
    """A run.

    Args:
        settings: Of the plan.
        environment: Of the machine.
        rows: One for each number of workers.
        busy_ratio: Processor time of a request at the first number of workers while others keep the processors busy
            that further workers would have, over the same without, median: what a machine takes for being shared.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[WorkersRow, ...]
    busy_ratio: float

    @property
    def is_right(self) -> bool:
        """Every call was answered, and rightly."""
        return all(row.failed_count == 0 and row.wrong_count == 0 for row in self.rows)

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class _Turn:
    request_count: float
    cpu_s: float
    rate: float
    failed_count: int
    checks: tuple[bool, ...]

    @property
    def request_cpu_s(self) -> float:
        """Processor time of a request."""
        return self.cpu_s / max(self.request_count, 1.0)


def run_workers(plan: WorkersPlan, say: Callable[[str], None]) -> WorkersResult:
    """Measures; nothing that it starts goes on after it.

    Args:
        plan: How.
        say: Takes a line of progress.

    Raises:
        SubjectError: the model cannot be measured.
        PeerError: a server did not come up.
        LoadFailedError: the load could not be put on.
    """
    environment = describe_environment()
    traffic = make_traffic(open_subject(plan.repository, plan.model), 1)
    turns: dict[int, list[_Turn]] = {count: [] for count in plan.counts}
    busy: list[_Turn] = []
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as folder, ExitStack() as stack:
        served = Served(plan.repository, (), 1, Path(folder))
        servers = {count: _Server(count, served, traffic, stack) for count in plan.counts}
        for number in range(plan.turns):
            for count, server in servers.items():
                turns[count].append(server.turn(plan))
            with ExitStack() as neighbours:
                for _ in range(max(plan.counts) - plan.counts[0]):
                    neighbours.enter_context(child_process([sys.executable, "-c", _SPIN]))
                busy.append(servers[plan.counts[0]].turn(plan))
            say(f"turn {number + 1} of {plan.turns}")
        memory = {count: server.memory() for count, server in servers.items()}
    first = turns[plan.counts[0]]
    rows = tuple(_row(count, turns[count], first, memory[count]) for count in plan.counts)
    settings = {**asdict(plan), "repository": plan.repository.name}
    return WorkersResult(settings, environment, rows, _cpu_ratio(busy, first))


class _Server:
    """A server with so many workers, up until the stack unwinds."""

    def __init__(self, count: int, served: Served, traffic: Traffic, stack: ExitStack) -> None:
        self._traffic = traffic
        self._port, self._metrics_port = free_ports(2)
        places = ["--repository", str(served.repository), "--port", str(self._port)]
        # Connections stay where they are: what is compared is work, not moves.
        options = ["--metrics-port", str(self._metrics_port), "--device", "cpu", "--connection-age-s", "0"]
        command = [program_path("fitserve-serve"), *places, *options, "--max-queue-ms", "0", "--workers", str(count)]
        launch = Launch(f"workers {count}", command, Target(self._port, MODEL_INFER))
        self._contestant: Contestant = stack.enter_context(running(launch, served, traffic.messages[0]))

    def turn(self, plan: WorkersPlan) -> _Turn:
        load = LoadPlan("127.0.0.1", self._port, MODEL_INFER, plan.in_flight, plan.in_flight, plan.turn_s)
        counted, cpu_s = self._counted(), self._contestant.cpu_s()
        result = load_in_process(load, self._traffic.messages)
        cpu_s, counted = self._contestant.cpu_s() - cpu_s, self._counted() - counted
        expected = self._traffic.expected
        checks = tuple(is_right(answer, expected[number % len(expected)]) for number, answer in result.samples)
        return _Turn(counted, cpu_s, len(result.latencies_s) / result.duration_s, result.failed_count, checks)

    def memory(self) -> tuple[dict[str, int], ...]:
        workers: list[dict[str, int]] = json.loads(self._page("/status.json"))["workers"]
        return tuple(workers)

    def _counted(self) -> float:
        return sum(map(float, _COUNTED.findall(self._page("/metrics"))))

    def _page(self, path: str) -> str:
        with urlopen(f"http://127.0.0.1:{self._metrics_port}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
        return text


def _row(count: int, turns: Sequence[_Turn], first: Sequence[_Turn], memory: tuple[dict[str, int], ...]) -> WorkersRow:
    is_told = len(available_processors()) >= LEAST_PROCESSORS
    rates = [turn.rate / before.rate for turn, before in zip(turns, first, strict=True)]
    checks = [check for turn in turns for check in turn.checks]
    return WorkersRow(
        count=count,
        cpu_s=median(turn.request_cpu_s for turn in turns),
        cpu_ratio=_cpu_ratio(turns, first),
        rate=median(turn.rate for turn in turns),
        rate_ratio=median(rates) if is_told else None,
        memory=memory,
        failed_count=sum(turn.failed_count for turn in turns),
        wrong_count=checks.count(False),
        checked_count=len(checks),
    )


def _cpu_ratio(turns: Sequence[_Turn], first: Sequence[_Turn]) -> float:
    return median(turn.request_cpu_s / before.request_cpu_s for turn, before in zip(turns, first, strict=True))
