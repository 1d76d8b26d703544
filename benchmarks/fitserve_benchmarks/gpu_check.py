"""Everything that needs a GPU, in one go: train LeNet compiled, export, serve on CUDA, evaluate, benchmark.

Each step is a command that a user has. One that the machine lacks something for is named as not run, with the reason;
nothing here asks the network for anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from fitserve_benchmarks import gpu_steps as steps
from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.gpu_steps import GpuPlan, NotRunError

DONE: Final = "done"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"


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
        run: Gives its figures; raises NotRunError where something is missing.
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
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    from fitserve_service.session import cuda_problem

    if not torch.cuda.is_available():
        build = "this torch build has no CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        return f"{build} (torch {torch.__version__})"
    return cuda_problem() or ""


def step_names(text: str) -> tuple[str, ...]:
    """Reads names of steps separated by commas; none where there is no text.

    Raises:
        ValueError: no step has such a name.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    known = [step.name for step in STEPS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--steps: expected some of {', '.join(known)}; got '{unknown[0][:64]}'")
    return names


def _with_needs(names: Iterable[str]) -> set[str]:
    """Gives steps with those that they need, and those that these need."""
    found = set(names)
    for step in reversed(STEPS):
        if step.name in found:
            found |= set(step.needs)
    return found


def _result_of(step: Step, plan: GpuPlan, missing: str, before: Mapping[str, StepResult]) -> StepResult:
    if plan.steps and step.name not in _with_needs(plan.steps):
        return StepResult(step.name, NOT_RUN, "not asked for")
    if step.needs_gpu and missing:
        return StepResult(step.name, NOT_RUN, missing)
    undone = [name for name in step.needs if before[name].state != DONE]
    if undone:
        return StepResult(step.name, NOT_RUN, f"needs the step '{undone[0]}', which is {before[undone[0]].state}")
    begin_s = time.monotonic()
    try:
        figures = step.run(plan)
    except NotRunError as error:
        return StepResult(step.name, NOT_RUN, str(error))
    except Exception as error:  # whatever a step meets here must not keep the others from running
        return StepResult(step.name, FAILED, f"{type(error).__name__}: {error}", time.monotonic() - begin_s)
    return StepResult(step.name, DONE, "", time.monotonic() - begin_s, figures)


STEPS: Final = (
    Step("doctor", steps.doctor, needs_gpu=False),
    Step("rates", steps.rates),
    Step("tests", steps.gpu_tests),
    Step("train", steps.train),
    Step("training rate", steps.training_rate, needs=("train", "rates")),
    Step("export", steps.export, needs=("train",)),
    Step("serve", steps.serve, needs=("export",)),
    Step("latency", steps.latency, needs=("export",)),
    Step("floors", steps.floors, needs=("train", "rates")),
    Step("goemotions", steps.goemotions),
)
"""In the order in which they are run."""
