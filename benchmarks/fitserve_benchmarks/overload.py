"""Overloads a server of its own with ten times what it can do, and holds it to what it must do meanwhile.

A model of 5 ms or more a run, all answers known; the capacity by a closed loop; then, without a pause, 80 % of it, ten
times it, 80 % again, and ten times it by callers who hardly wait.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.overload_figures import Figure, PhaseSummary, figures, summarize
from fitserve_benchmarks.overload_model import MODEL, publish_model, requests, rounds_for
from fitserve_benchmarks.overload_source import Phase, PhaseRecord, SourcePlan, source_in_process
from fitserve_benchmarks.programs import RunningService, running_service

SCHEMA_VERSION: Final = 1
QUIET, FLOOD, AFTER, IMPATIENT = "80 %", "ten times", "80 % again", "ten times, impatient"

_LEVELS: Final = (2, 4, 8, 16)
"""Calls in flight of the closed loops."""

_POOL_SIZE: Final = 64
_SCRAPE_EVERY_S: Final = 0.1
_SCRAPE_LIMIT_S: Final = 5.0
_IMPATIENT_RUNS: Final = 6
_EXAMPLES: Final = f'fitserve_batch_examples_sum{{model="{MODEL}",version="1"}}'


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """What is done.

    Args:
        seconds: Time at ten times the capacity; at 80 % it is as long again and a half, after it half as long.
        run_s: What a run of the model should take.
        times: How many times the capacity.
        timeout_ms: Deadline of every request but the impatient.
        transport: The server's.
        seed: Of the arrivals and the requests.
        options: Further options of fitserve-serve.
    """

    seconds: float = 10.0
    run_s: float = 0.0065
    times: float = 10.0
    timeout_ms: int = 1000
    transport: str = "auto"
    seed: int = 0
    options: tuple[str, ...] = ()

    @property
    def is_bounded(self) -> bool:
        """The server is told how long what waits may take to run."""
        return any(option.startswith("--max-queue-ms") for option in self.options)


@dataclass(frozen=True, slots=True)
class OverloadResult:
    """What it gave.

    Args:
        plan: What was done.
        run_s: The fastest run of one row on one thread, measured.
        peak: Right answers a second at the best level of the closed loop.
        closed: Each level.
        phases: Each open phase.
        figures: What it is held to.
        examples_run: Rows that the server ran in the open phases.
        scrapes_s: Time of each request for the metrics page; None: not answered.
        environment: Hardware and versions.
    """

    plan: OverloadPlan
    run_s: float
    peak: float
    closed: tuple[PhaseSummary, ...]
    phases: tuple[PhaseSummary, ...]
    figures: tuple[Figure, ...]
    examples_run: int
    scrapes_s: tuple[float | None, ...]
    environment: dict[str, Any] = field(default_factory=describe_environment)

    @property
    def is_held(self) -> bool:
        """Tells whether every figure was reached."""
        return all(figure.is_held for figure in self.figures)

    @property
    def run_for_nobody(self) -> int:
        """Rows that were run in the open phases, and whose callers got no answer."""
        return self.examples_run - sum(phase.outcomes.get("right", 0) for phase in self.phases)

    def save(self, path: Path) -> None:
        """Writes the result as JSON."""
        document = {"schema_version": SCHEMA_VERSION, **asdict(self), "run_for_nobody": self.run_for_nobody}
        for figure, entry in zip(self.figures, document["figures"], strict=True):
            # JSON knows no infinity.
            entry |= {"is_held": figure.is_held, "found": figure.found if figure.found < float("inf") else None}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def run_overload(plan: OverloadPlan, say: Callable[[str], None]) -> OverloadResult:
    """Measures; `say` takes a line as each part is known.

    Raises:
        StepFailedError: the server did not come up.
        LoadFailedError: the load could not be put on.
    """
    with tempfile.TemporaryDirectory(prefix="fitserve-overload-") as folder:
        root = Path(folder, "repository")
        rounds, run_s = rounds_for(plan.run_s)
        say(f"a model of {rounds} products, {run_s * 1e3:.2f} ms a run of one row on one thread")
        publish_model(root, rounds)
        options = ("--device", "cpu", "--variant", "fp32", "--transport", plan.transport, *plan.options)
        with running_service(root, MODEL, 1, log_path=Path(folder, "log"), options=options) as service:
            return _measure(plan, service, rounds, run_s, say)


def _measure(
    plan: OverloadPlan, service: RunningService, rounds: int, run_s: float, say: Callable[[str], None]
) -> OverloadResult:
    port = int(service.address.rpartition(":")[2])
    messages, contents = requests(rounds, _POOL_SIZE, plan.seed)

    def put(phases: Sequence[Phase]) -> list[PhaseRecord]:
        return source_in_process(SourcePlan(port, tuple(phases), seed=plan.seed), messages, contents)

    closed = [summarize(put([level])[0]) for level in closed_phases(plan)]
    peak = max(level.goodput for level in closed)
    say(f"capacity: {peak:.0f} right answers a second")
    before = _examples_run(service.metrics_port)
    with scraping(service.metrics_port) as scrapes:
        records = put(open_phases(plan, peak, run_s))
    quiet, flood, after, _ = records
    return OverloadResult(
        plan,
        run_s,
        peak,
        tuple(closed),
        tuple(map(summarize, records)),
        tuple(figures(peak, quiet, flood, after, scrapes, is_bounded=plan.is_bounded)),
        _examples_run(service.metrics_port) - before,
        tuple(scrapes),
    )


def closed_phases(plan: OverloadPlan) -> list[Phase]:
    """Gives the levels at which the capacity is looked for."""
    return [Phase(f"{level} in flight", plan.seconds / 4, in_flight=level) for level in _LEVELS]


def open_phases(plan: OverloadPlan, peak: float, run_s: float) -> list[Phase]:
    """Gives the phases of the load, which follow each other without a pause."""
    flood, calm = plan.times * peak, 0.8 * peak
    return [
        Phase(QUIET, 1.5 * plan.seconds, calm, timeout_ms=plan.timeout_ms),
        Phase(FLOOD, plan.seconds, flood, timeout_ms=plan.timeout_ms),
        Phase(AFTER, 0.5 * plan.seconds, calm, timeout_ms=plan.timeout_ms),
        Phase(IMPATIENT, 0.3 * plan.seconds, flood, timeout_ms=max(1, round(_IMPATIENT_RUNS * run_s * 1e3))),
    ]


@contextmanager
def scraping(port: int) -> Iterator[list[float | None]]:
    """Asks for the metrics page ten times a second while the context is open; the list is whole when it has closed.

    Yields:
        Seconds that each took; None where it was not answered within 5 s.
    """
    found: list[float | None] = []
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(_SCRAPE_EVERY_S):
            begin_s = time.perf_counter()
            is_answered = bool(_metrics_page(port))
            found.append(time.perf_counter() - begin_s if is_answered else None)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def _metrics_page(port: int) -> str:
    """Gives the page; nothing where it is not answered with one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SCRAPE_LIMIT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    return text if response.status == 200 else ""


def _examples_run(port: int) -> int:
    """Reads how many rows the server has run since its start."""
    for line in _metrics_page(port).splitlines():
        if line.startswith(_EXAMPLES):
            return int(float(line.rpartition(" ")[2]))
    return 0
