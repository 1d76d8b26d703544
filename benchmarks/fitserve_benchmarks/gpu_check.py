"""Everything that needs a GPU, in one go: train LeNet compiled, export, serve on CUDA, evaluate, benchmark.

Each step is a command that a user has. One that the machine lacks something for is named as not run, with the reason;
nothing here asks the network for anything.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.programs import StepFailedError, program_path, running_service

RECIPE: Final = "lenet"
DONE: Final = "done"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"

_TAIL_LINES: Final = 12
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """How the check is run.

    Args:
        work_dir: Folder for runs, repository and logs.
        output_dir: Folder for the reports.
        device: `cuda`; `cpu` rehearses the same steps, and the report says that it proves nothing about a GPU.
        train_options: Further options of `fitserve-train`.
        batch_sizes: Of the latency benchmark.
        wire_s: Time for each level of calls in flight.
    """

    work_dir: Path
    output_dir: Path
    device: str = "cuda"
    train_options: Sequence[str] = ()
    batch_sizes: tuple[int, ...] = (1, 8, 64, 256)
    wire_s: float = 5.0

    @property
    def run_dir(self) -> Path:
        """Where the run goes."""
        return self.work_dir / "runs" / RECIPE

    @property
    def repository(self) -> Path:
        """Where the version goes."""
        return self.work_dir / "repository"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step.

    Args:
        name: Its name.
        state: `done`, `failed` or `not run`.
        reason: Why it failed or was not run; empty where it is done.
        duration_s: Time that it took.
        figures: What it gave, JSON-safe.
    """

    name: str
    state: str
    reason: str = ""
    duration_s: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the check.

    Args:
        name: Its name.
        run: Gives its figures; raises StepFailedError.
        needs: Steps that must be done before.
        needs_gpu: Whether the device must be there.
    """

    name: str
    run: Callable[[GpuPlan], Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    needs_gpu: bool = True


def run_gpu_check(plan: GpuPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs every step that can be run; one that fails does not keep the others from running.

    Args:
        plan: How.
        say: Takes a line of progress.

    Returns:
        The report, JSON-safe.
    """
    missing = why_not(plan.device)
    results: dict[str, StepResult] = {}
    for step in STEPS:
        say(f"{step.name} …")
        results[step.name] = result = _result_of(step, plan, missing, results)
        say(
            f"{step.name}: {result.state}" + (f": {result.reason}" if result.reason else f", {result.duration_s:.1f} s")
        )
    return {
        "schema_version": 1,
        "device": plan.device,
        "is_rehearsal": plan.device != "cuda",
        "environment": describe_environment(),
        "steps": [asdict(result) for result in results.values()],
    }


def why_not(device: str) -> str:
    """Tells why a device cannot be measured here; empty where it can."""
    if device == "cpu":
        return ""
    import torch

    from fitserve_service.session import cuda_problem

    if not torch.cuda.is_available():
        build = "this torch build has no CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        return f"{build} (torch {torch.__version__})"
    return cuda_problem() or ""


def _result_of(step: Step, plan: GpuPlan, missing: str, before: Mapping[str, StepResult]) -> StepResult:
    if step.needs_gpu and missing:
        return StepResult(step.name, NOT_RUN, missing)
    undone = [name for name in step.needs if before[name].state != DONE]
    if undone:
        return StepResult(step.name, NOT_RUN, f"needs the step '{undone[0]}', which is {before[undone[0]].state}")
    begin_s = time.monotonic()
    try:
        figures = step.run(plan)
    except (StepFailedError, OSError, ValueError, RuntimeError) as error:
        return StepResult(step.name, FAILED, str(error), time.monotonic() - begin_s)
    return StepResult(step.name, DONE, "", time.monotonic() - begin_s, figures)


def _doctor(plan: GpuPlan) -> Mapping[str, Any]:
    command = [program_path("fitserve-serve"), "doctor", "--json", "--device", plan.device]
    exit_code, output = run_child(command, stdout=subprocess.PIPE)
    return {"can_serve": exit_code == 0, "findings": json.loads(output)}


def _rates(plan: GpuPlan) -> Mapping[str, Any]:
    from fitserve_benchmarks.floors import measure_rates

    return asdict(measure_rates(plan.device))


def _train(plan: GpuPlan) -> Mapping[str, Any]:
    options = ["--run-dir", str(plan.run_dir), "--device", plan.device, "--compile", "module", *plan.train_options]
    _run(plan, "fitserve-train", RECIPE, *options)
    summary = json.loads((plan.run_dir / "summary.json").read_text())
    return {name: value for name, value in summary.items() if isinstance(value, int | float | str | bool)}


def _export(plan: GpuPlan) -> Mapping[str, Any]:
    places = [str(plan.run_dir), "--repository", str(plan.repository)]
    published = json.loads(_run(plan, "fitserve-export", *places, "--variants", "auto", "--json").splitlines()[-1])
    providers = published["verification"]["providers"]
    return {
        "version": published["version"],
        "providers": sorted(providers),
        "variants": published["variants"],
        "metrics": {name: figures["metrics"] for name, figures in providers.items()},
    }


def _serve(plan: GpuPlan) -> Mapping[str, Any]:
    """Serves the version on the device, evaluates it over gRPC against torch, and loads it."""
    from fitserve_benchmarks.served_answers import compare_answers
    from fitserve_benchmarks.subject import highest_version
    from fitserve_benchmarks.wire import WirePlan, measure_wire
    from fitserve_client import Client
    from fitserve_training.runs import open_run

    version = highest_version(plan.repository, RECIPE)
    run = open_run(plan.run_dir)
    held_out = run.held_out()
    # The answers are held against torch fp32; a variant that rounds has its own record.
    options = ["--device", plan.device, "--variant", "fp32"]
    log_path = plan.work_dir / "server.log"
    with running_service(plan.repository, RECIPE, version, log_path=log_path, options=options) as service:
        with Client(service.address) as client:
            provider = client.details(RECIPE, version=version).version.execution_provider
            answers = compare_answers(client, RECIPE, version, run.module, held_out.inputs, held_out.labels)
        wire = measure_wire(
            WirePlan(service.address, RECIPE, duration_s=plan.wire_s, in_flight=(1, 8, 32)), say=lambda _: None
        )
    wire.save(plan.work_dir / "wire.json")
    return {
        "execution_provider": provider,
        "evaluated": asdict(answers),
        "wire": json.loads((plan.work_dir / "wire.json").read_text()),
    }


def _latency(plan: GpuPlan) -> Mapping[str, Any]:
    sizes = ",".join(map(str, plan.batch_sizes))
    places = ["--repository", str(plan.repository), "--run-dir", str(plan.run_dir), "--output-dir", str(plan.work_dir)]
    _run(
        plan,
        "fitserve-bench",
        "latency",
        "--model",
        RECIPE,
        "--batch-sizes",
        sizes,
        "--threads",
        "1",
        "--contestants",
        "all",
        *places,
    )
    result: dict[str, Any] = json.loads((plan.work_dir / f"latency-{RECIPE}.json").read_text())
    return {"settings": result["settings"], "rows": result["rows"]}


def _floors(plan: GpuPlan) -> Mapping[str, Any]:
    from fitserve_benchmarks.floors import floor_of, measure_rates
    from fitserve_training.runs import open_run

    run = open_run(plan.run_dir)
    inputs = run.held_out().inputs
    rates = measure_rates(plan.device)
    floors = [
        floor_of(run.module, {name: array[:size] for name, array in inputs.items()}, rates) for size in plan.batch_sizes
    ]
    return {"rates": asdict(rates), "floors": [asdict(floor) for floor in floors]}


def _run(plan: GpuPlan, program: str, *arguments: str) -> str:
    """Runs a command with its output gathered; its last lines are the message where it fails."""
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    log_path = plan.work_dir / f"{program}.log"
    with log_path.open("wb") as log:
        command = [program_path(program), *arguments]
        exit_code, output = run_child(command, environment=_OFFLINE, stdout=subprocess.PIPE, stderr=log)
    text = output.decode(errors="replace")
    if exit_code != 0:
        said: list[str] = []
        with suppress(OSError):
            said = [*text.splitlines(), *log_path.read_text(errors="replace").splitlines()][-_TAIL_LINES:]
        raise StepFailedError(f"{program}: expected exit code 0, got {exit_code}: {' | '.join(said)}")
    return text


STEPS: Final = (
    Step("doctor", _doctor, needs_gpu=False),
    Step("rates", _rates),
    Step("train", _train),
    Step("export", _export, needs=("train",)),
    Step("serve", _serve, needs=("export",)),
    Step("latency", _latency, needs=("export",)),
    Step("floors", _floors, needs=("train",)),
)
