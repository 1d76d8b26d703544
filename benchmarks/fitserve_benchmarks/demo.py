"""The demo: train, prove, export, benchmark, serve, predict and evaluate LeNet, by the commands that a user has."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from fitserve_benchmarks.latency_plan import Plan
from fitserve_benchmarks.latency_report import latency_table, startup_table
from fitserve_benchmarks.latency_run import run_latency
from fitserve_benchmarks.programs import RunningService, StepFailedError, run_program, running_service
from fitserve_benchmarks.rows import LatencyResult
from fitserve_benchmarks.served_answers import ServedAnswers, compare_answers
from fitserve_benchmarks.subject import SubjectError
from fitserve_benchmarks.threads import thread_setting
from fitserve_benchmarks.wire import WirePlan, WireResult, measure_wire
from fitserve_client import Client
from fitserve_client.errors import FitserveError

if TYPE_CHECKING:
    from fitserve_training.runs import TrainedRun

RECIPE: Final = "lenet"
SHOWN_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """How the demo is run.

    Args:
        repository: Model repository to publish in.
        runs: Folder of runs.
        output_dir: Folder for results.
        device: `auto`, `cpu` or `cuda`, for training and serving.
        train_options: Further options of `fitserve-train`.
        batch_sizes: Batch sizes of the latency benchmark.
        trials: Turns of each contestant in it.
        budget_s: Time for the calls of one row of it.
        in_flight: Levels of the wire benchmark.
        wire_s: Time for each of them.
    """

    repository: Path
    runs: Path
    output_dir: Path
    device: str = "auto"
    train_options: Sequence[str] = ()
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    trials: int = 20
    budget_s: float = 2.0
    in_flight: tuple[int, ...] = (1, 8, 32)
    wire_s: float = 3.0

    @property
    def run_dir(self) -> Path:
        """Where the run goes."""
        return self.runs / RECIPE


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the steps gave.

    Args:
        summary: The run's `summary.json`.
        version: Version that was published.
        verification: The export's verification figures, as in the manifest.
        answers: The server against torch.
        provider: Execution provider that the server runs the version on.
        latency: The latency benchmark.
        wire: The wire benchmark.
    """

    summary: Mapping[str, Any]
    version: int
    verification: Mapping[str, Any]
    answers: ServedAnswers
    provider: str
    latency: LatencyResult
    wire: WireResult = field(repr=False)

    @property
    def is_right(self) -> bool:
        """Tells whether every answer that was checked is right."""
        return all(row.agrees for row in self.latency.rows) and all(row.is_right for row in self.wire.rows)


def run_demo(plan: DemoPlan, console: Console) -> DemoResult:
    """Runs every step; nothing that it starts goes on after it.

    Args:
        plan: How.
        console: Where the tables on the way go.

    Raises:
        StepFailedError: a step failed; its output is on the terminal, and the message names it.
    """
    options = ["--run-dir", str(plan.run_dir), "--device", plan.device, *plan.train_options]
    run_program("fitserve-train", RECIPE, *options)
    published = _export(plan)
    latency = _measure_latency(plan, published["version"], console)
    log_path = plan.runs / "demo" / "server.log"
    options = ["--device", plan.device]
    try:
        with running_service(
            plan.repository, RECIPE, published["version"], log_path=log_path, options=options
        ) as service:
            answers, provider = _ask(plan, service, published["version"])
            wire = measure_wire(_wire_plan(plan, service), say=_say)
    except FitserveError as error:
        raise StepFailedError(f"server: {error}; its output is in {log_path}") from error
    wire.save(plan.output_dir / f"wire-{RECIPE}.json")
    summary = json.loads((plan.run_dir / "summary.json").read_text())
    return DemoResult(summary, published["version"], published["verification"], answers, provider, latency, wire)


def _export(plan: DemoPlan) -> dict[str, Any]:
    arguments = [str(plan.run_dir), "--repository", str(plan.repository), "--json"]
    published: dict[str, Any] = json.loads(run_program("fitserve-export", *arguments, is_output_wanted=True))
    print(f"verified and published: {published['folder']}")
    return published


def _measure_latency(plan: DemoPlan, version: int, console: Console) -> LatencyResult:
    """Measures before the server starts: it would take turns on the same processors."""
    sizes = ",".join(map(str, plan.batch_sizes))
    print(f"\n$ fitserve-bench latency --model {RECIPE} --batch-sizes {sizes} --threads 1", flush=True)
    latency_plan = Plan(
        repository=str(plan.repository),
        model=RECIPE,
        version=version,
        run_dir=str(plan.run_dir),
        batch_sizes=plan.batch_sizes,
        trials=plan.trials,
        budget_s=plan.budget_s,
    )
    try:
        result, _ = run_latency(latency_plan, [thread_setting("1")], plan.output_dir)
    except SubjectError as error:
        raise StepFailedError(f"latency: {error}") from error
    console.print(latency_table(result.rows, f"{RECIPE} version {version}, 1 thread"))
    console.print(startup_table(result.rows, "before the first answer"))
    return result


def _ask(plan: DemoPlan, service: RunningService, version: int) -> tuple[ServedAnswers, str]:
    """Predicts and evaluates the whole held-out set over gRPC; gives the comparison and the provider."""
    from fitserve_training.runs import open_run

    run = open_run(plan.run_dir)
    held_out = run.held_out()
    with Client(service.address) as client:
        provider = client.details(RECIPE, version=version).version.execution_provider
        _show_some(client, run, held_out.inputs, held_out.labels)
        answers = compare_answers(client, RECIPE, version, run.module, held_out.inputs, held_out.labels)
    print(f"Evaluate: {answers.served_correct_count} of {answers.example_count} right; {held_out.source}")
    return answers, provider


def _show_some(client: Client, run: TrainedRun, inputs: Mapping[str, Any], labels: Any) -> None:
    """Prints a few predictions, as `fitserve-client predict` would give them."""
    print(f"\nPredict over gRPC, the first {SHOWN_EXAMPLES} held-out images:", flush=True)
    logits = client.predict(RECIPE, {name: array[:SHOWN_EXAMPLES] for name, array in inputs.items()}).array
    names = run.task.class_names
    for label, row in zip(labels[:SHOWN_EXAMPLES].tolist(), logits, strict=True):
        print(f"  {names[int(row.argmax())]:<12} (labelled {names[label]})")


def _wire_plan(plan: DemoPlan, service: RunningService) -> WirePlan:
    print(f"\n$ fitserve-bench wire --server {service.address} --model {RECIPE}", flush=True)
    return WirePlan(
        server=service.address,
        model=RECIPE,
        in_flight=plan.in_flight,
        duration_s=plan.wire_s,
        repository=str(plan.repository),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
