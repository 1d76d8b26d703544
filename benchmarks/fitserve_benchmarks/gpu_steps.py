"""The steps of the GPU check, each of which gives its figures or says what it lacks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from fitserve_benchmarks.floors import DeviceRates, device_properties, floor_of, measure_rates, training_floor
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.programs import StepFailedError, program_path, running_service

RECIPE: Final = "lenet"
SENTENCES: Final = "bert-multilabel"

TARGET_EXAMPLES_PER_S: Final = 2.5e6
"""What training the exact `lenet` recipe is to reach on one H200-class GPU: 30 times the book's median."""

MACRO_F1_ANCHORS: Final = {"BERT-base, paper": 0.46, "BERT-base, 10 epochs": 0.503, "RoBERTa-base": 0.450}
"""Source: Demszky et al. 2020 (GoEmotions) and the fine-tunings that the recipe names; threshold 0.5."""

_TAIL_LINES: Final = 12
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_RATES_FILE: Final = "rates.json"


class NotRunError(Exception):
    """A step lacks something; the message names it."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """How the check is run.

    Args:
        work_dir: Folder for runs, repository and logs.
        output_dir: Folder for the reports.
        device: `cuda`; `cpu` rehearses the same steps, and the report says that it proves nothing about a GPU.
        train_options: Further options of `fitserve-train` for LeNet.
        sentence_options: Further options of `fitserve-train` for GoEmotions.
        data_dir: Data files; None takes DATA_DIR of the environment.
        batch_sizes: Of the latency benchmark.
        wire_s: Time for each level of calls in flight.
        limit_s: Time for preparing one contestant of the latency benchmark.
        steps: Steps that are asked for, beside those that they need; empty for all.
    """

    work_dir: Path
    output_dir: Path
    device: str = "cuda"
    train_options: Sequence[str] = ()
    sentence_options: Sequence[str] = ()
    data_dir: Path | None = None
    batch_sizes: tuple[int, ...] = (1, 8, 64, 256)
    wire_s: float = 5.0
    limit_s: float = 120.0
    steps: Sequence[str] = ()

    @property
    def run_dir(self) -> Path:
        """Where the run goes."""
        return self.work_dir / "runs" / RECIPE

    @property
    def repository(self) -> Path:
        """Where the version goes."""
        return self.work_dir / "repository"

    def data_options(self, folder: str) -> list[str]:
        """Gives the options that name the data directory where it has a folder.

        Raises:
            NotRunError: it has not.
        """
        found = self.data_dir or (Path(os.environ["DATA_DIR"]) if os.environ.get("DATA_DIR") else None)
        if found is None or not (found / folder).is_dir():
            raise NotRunError(f"needs {folder} in the data directory: --data-dir or DATA_DIR, got {found or 'neither'}")
        return ["--data-dir", str(found)]


def doctor(plan: GpuPlan) -> Mapping[str, Any]:
    """Asks the service what there is."""
    command = [program_path("fitserve-serve"), "doctor", "--json", "--device", plan.device]
    exit_code, output = run_child(command, stdout=subprocess.PIPE)
    return {"can_serve": exit_code == 0, "findings": json.loads(output)}


def rates(plan: GpuPlan) -> Mapping[str, Any]:
    """Measures what the device does at best; the steps after it read the figures."""
    measured = asdict(measure_rates(plan.device))
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    (plan.work_dir / _RATES_FILE).write_text(json.dumps(measured))
    return {**measured, "properties": device_properties(plan.device)}


def gpu_tests(plan: GpuPlan) -> Mapping[str, Any]:
    """Runs the tests that need a GPU, from the checkout that this is."""
    tests = Path(__file__).parents[2] / "tests"
    files = [str(path) for path in sorted(tests.rglob("test_*.py")) if "mark.needs_gpu" in path.read_text()]
    if not files:
        raise NotRunError(f"needs the checkout's tests, found none with the mark needs_gpu in '{tests}'")
    if importlib.util.find_spec("pytest") is None:
        raise NotRunError("needs pytest: make setup installs it")
    report = plan.work_dir / "gpu-tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "needs_gpu",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    text = _checked(plan, "gpu-tests", [*command, f"--rootdir={tests.parent}", *files], accepted=(0, 1))
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(report).iter("testsuite"):
        counts = {name: count + int(suite.get(name, 0)) for name, count in counts.items()}
    if counts["failures"] + counts["errors"]:
        raise StepFailedError(f"tests: expected none to fail, got {counts}: {_tail(text)}")
    passed = counts["tests"] - counts["skipped"]
    if not passed:
        raise NotRunError(f"needs a GPU: all {counts['skipped']} tests marked needs_gpu were skipped")
    return {**counts, "passed": passed}


def train(plan: GpuPlan) -> Mapping[str, Any]:
    """Trains LeNet; how it is compiled is left to the recipe, which captures the whole step on a GPU."""
    run_options = ["--run-dir", str(plan.run_dir), "--device", plan.device]
    with suppress(NotRunError):
        run_options += plan.data_options("fashion-mnist")
    _run(plan, "fitserve-train", RECIPE, *run_options, *plan.train_options)
    return _summary(plan.run_dir)


def training_rate(plan: GpuPlan) -> Mapping[str, Any]:
    """Holds the training's rate against the aim and against the floors of a step."""
    from fitserve_training.runs import open_run

    summary = _summary(plan.run_dir)
    if summary["data"] != "fashion_mnist":
        raise NotRunError(f"needs fashion-mnist (--data-dir or DATA_DIR): an epoch of {summary['data']} is too short")
    run = open_run(plan.run_dir)
    batch_size = int(tomllib.loads((plan.run_dir / "config.toml").read_text())["batch_size"])
    batch = {name: array[:batch_size] for name, array in run.held_out().inputs.items()}
    floor = training_floor(run.module, batch, _measured_rates(plan))
    return {
        "examples_per_s": summary["examples_per_s"],
        "target_examples_per_s": TARGET_EXAMPLES_PER_S,
        "share_of_target": summary["examples_per_s"] / TARGET_EXAMPLES_PER_S,
        "step_s": floor.batch_size / summary["examples_per_s"],
        "floor": asdict(floor),
    }


def export(plan: GpuPlan) -> Mapping[str, Any]:
    """Exports the run with its variants."""
    places = [str(plan.run_dir), "--repository", str(plan.repository)]
    published = json.loads(_run(plan, "fitserve-export", *places, "--variants", "auto", "--json").splitlines()[-1])
    providers = published["verification"]["providers"]
    return {
        "version": published["version"],
        "providers": sorted(providers),
        "variants": published["variants"],
        "metrics": {name: figures["metrics"] for name, figures in providers.items()},
    }


def serve(plan: GpuPlan) -> Mapping[str, Any]:
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


def latency(plan: GpuPlan) -> Mapping[str, Any]:
    """Measures every contestant, in every scenario."""
    sizes = ",".join(map(str, plan.batch_sizes))
    places = ["--repository", str(plan.repository), "--run-dir", str(plan.run_dir), "--output-dir", str(plan.work_dir)]
    what = ["--model", RECIPE, "--batch-sizes", sizes, "--threads", "1", "--contestants", "all"]
    _run(plan, "fitserve-bench", "latency", *what, "--limit-s", f"{plan.limit_s:g}", *places)
    result: dict[str, Any] = json.loads((plan.work_dir / f"latency-{RECIPE}.json").read_text())
    return {"settings": result["settings"], "rows": result["rows"], "scenarios": result["scenarios"]}


def floors(plan: GpuPlan) -> Mapping[str, Any]:
    """Computes the floors of a call at each batch size."""
    from fitserve_training.runs import open_run

    run = open_run(plan.run_dir)
    inputs = run.held_out().inputs
    measured = _measured_rates(plan)
    found = [
        floor_of(run.module, {name: array[:size] for name, array in inputs.items()}, measured)
        for size in plan.batch_sizes
    ]
    return {"rates": asdict(measured), "floors": [{**asdict(floor), "least_s": floor.least_s} for floor in found]}


def goemotions(plan: GpuPlan) -> Mapping[str, Any]:
    """Trains on all of GoEmotions and gives macro-F1 of its test split beside the published anchors."""
    data = plan.data_options("goemotions")
    if plan.device == "cpu":
        raise NotRunError("needs a GPU: all of GoEmotions takes hours on a CPU")
    missing = [name for name in ("transformers", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRunError(f"needs {missing[0]}: pip install 'fitserve[bert]'")
    run_dir = plan.work_dir / "runs" / SENTENCES
    options = ["--data", "goemotions", "--run-dir", str(run_dir), "--device", plan.device]
    _run(plan, "fitserve-train", SENTENCES, *options, *data, *plan.sentence_options)
    return {**_summary(run_dir), "anchors": MACRO_F1_ANCHORS}


def _summary(run_dir: Path) -> dict[str, Any]:
    """Reads a run's figures, the facts of its compiling and the name of its data."""
    summary = json.loads((run_dir / "summary.json").read_text())
    kept = {name: value for name, value in summary.items() if isinstance(value, int | float | str | bool)}
    return {**kept, "compile": summary.get("compile", {}), "data": summary.get("data", {}).get("name", "")}


def _measured_rates(plan: GpuPlan) -> DeviceRates:
    return DeviceRates(**json.loads((plan.work_dir / _RATES_FILE).read_text()))


def _run(plan: GpuPlan, program: str, *arguments: str) -> str:
    """Runs an installed command with its output gathered; its last lines are the message where it fails."""
    return _checked(plan, program, [program_path(program), *arguments])


def _checked(plan: GpuPlan, name: str, command: Sequence[str], accepted: Sequence[int] = (0,)) -> str:
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    log_path = plan.work_dir / f"{name}.log"
    with log_path.open("wb") as log:
        exit_code, output = run_child(command, environment=_OFFLINE, stdout=subprocess.PIPE, stderr=log)
    text = output.decode(errors="replace")
    if exit_code not in accepted:
        said = text
        with suppress(OSError):
            said += "\n" + log_path.read_text(errors="replace")
        raise StepFailedError(f"{name}: expected exit code 0, got {exit_code}: {_tail(said)}")
    return text


def _tail(text: str) -> str:
    return " | ".join(text.splitlines()[-_TAIL_LINES:])
