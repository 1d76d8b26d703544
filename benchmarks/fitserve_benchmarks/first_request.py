"""What the first request to a server costs that has just said it is ready, against a later one.

Servers are started one after another; the client is warm, its connection open, and the health asked some hundred times
without a pause, so that client and machine are as awake as they are for a later request: what is left is what the
server has yet to do. Beside it stands a request after a pause on the same server, which finds the machine asleep.
Shapes: S starts.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.processes import child_process
from fitserve_benchmarks.programs import free_ports, program_path
from fitserve_benchmarks.serve_requests import MODEL_INFER, Traffic, is_right, make_traffic
from fitserve_benchmarks.subject import open_subject

MOST_RATIO: Final = 1.5

_HEALTH: Final = "/grpc.health.v1.Health/Check"
_AWAKE_COUNT: Final = 200
_LATER: Final = 499
_PAUSES: Final = 4
_PAUSE_S: Final = 0.25
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class FirstPlan:
    """What is measured.

    Args:
        repository: Model repository.
        model: Its highest version.
        starts: S.
        transport: "auto", "fast" or "stock".
    """

    repository: Path
    model: str
    starts: int = 20
    transport: str = "auto"


@dataclass(frozen=True)
class Start:
    """One start, seconds.

    Args:
        first_s: The first request.
        later_s: Median of the 499 after it.
        paused_s: Median of four, each after a pause of 0.25 s.
        is_right: Every answer was.
    """

    first_s: float
    later_s: float
    paused_s: float
    is_right: bool


@dataclass(frozen=True)
class FirstResult:
    """A run."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    starts: tuple[Start, ...]

    @property
    def ratio(self) -> float:
        """The first request over a later one, start by start, median."""
        return median(start.first_s / start.later_s for start in self.starts)

    @property
    def paused_ratio(self) -> float:
        """A request after a pause over one without, likewise."""
        return median(start.paused_s / start.later_s for start in self.starts)

    @property
    def is_right(self) -> bool:
        """Every answer was right."""
        return all(start.is_right for start in self.starts)

    def text(self) -> str:
        """Says it in words."""
        first_s, later_s = (median(getattr(start, name) for start in self.starts) for name in ("first_s", "later_s"))
        held = "holds" if self.ratio <= MOST_RATIO else "missed"
        return (
            f"{self.settings['model']}, {len(self.starts)} starts: the first request {first_s * 1e6:.0f} µs, a later "
            f"one {later_s * 1e6:.0f} µs; ratio {self.ratio:.2f}, at most {MOST_RATIO}: {held}; after a pause of "
            f"{_PAUSE_S} s on the same servers {self.paused_ratio:.2f}"
        )

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def run_first(plan: FirstPlan, say: Callable[[str], None]) -> FirstResult:
    """Measures; nothing that it starts goes on after it.

    Args:
        plan: How.
        say: Takes a line of progress.

    Raises:
        SubjectError: the model cannot be measured.
        OSError: a server did not start or did not answer.
    """
    environment = describe_environment()
    traffic = make_traffic(open_subject(plan.repository, plan.model), 1)
    # The client's own first calls are not the server's: one start that does not count.
    _start(plan, traffic)
    starts = []
    for number in range(plan.starts):
        starts.append(_start(plan, traffic))
        say(f"start {number + 1} of {plan.starts}: {starts[-1].first_s / starts[-1].later_s:.2f}")
    return FirstResult({**asdict(plan), "repository": plan.repository.name}, environment, tuple(starts))


def _start(plan: FirstPlan, traffic: Traffic) -> Start:
    (port,) = free_ports(1)
    places = ["--repository", str(plan.repository), "--port", str(port), "--metrics-port", "off"]
    options = ["--device", "cpu", "--transport", plan.transport, "--log-level", "error"]
    command = [program_path("fitserve-serve"), *places, *options]
    with child_process(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout as output:
            line = output.readline()
        if not line:
            raise OSError(f"fitserve-serve: expected to be ready, ended with exit code {process.wait()}")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                return _measured(channel, traffic)
            except grpc.RpcError as error:
                raise OSError(f"fitserve-serve: expected an answer, got {error}") from None


def _measured(channel: grpc.Channel, traffic: Traffic) -> Start:
    health: Any = channel.unary_unary(_HEALTH, None, None)
    for _ in range(_AWAKE_COUNT):
        health(b"", timeout=_TIMEOUT_S, wait_for_ready=True)
    infer: Any = channel.unary_unary(MODEL_INFER, None, None)
    checks: list[bool] = []

    def call(number: int) -> float:
        index = number % len(traffic.messages)
        begin_s = time.perf_counter()
        answer = infer(traffic.messages[index], timeout=_TIMEOUT_S)
        took_s = time.perf_counter() - begin_s
        if number < len(traffic.messages):
            checks.append(is_right(answer, traffic.expected[index]))
        return took_s

    first_s = call(0)
    later_s = median(call(number) for number in range(1, _LATER + 1))
    return Start(first_s, later_s, median(_after_pause(call) for _ in range(_PAUSES)), all(checks))


def _after_pause(call: Callable[[int], float]) -> float:
    time.sleep(_PAUSE_S)
    return call(_LATER)
