"""Captured steps: the steps they stand for, when there are none, and what becomes of a capture that fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitserve_training.capturing import Capture, IndexStep, capture_step, choose_capture
from fitserve_training.compiling import CompileRecord, choose_compile
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import Split
from fitserve_training.fit import EpochReport, Job, Progress, fit
from fitserve_training.objectives import Classification
from fitserve_training.optim import is_lr_scheduled, make_optimizer
from fitserve_training.seeding import seed_global
from fitserve_training.stepping import Stepper, StepPlan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = RunConfig(epochs=4, batch_size=16, lr=0.05, momentum=0.9, lr_schedule="cosine", lr_warmup_steps=3)


class Replays:
    """Holds the indices of a step in one place, as a graph does, and counts; its Python runs again each time."""

    def __init__(self) -> None:
        self.capture_count = self.replay_count = 0

    def capture(self, step: IndexStep, indices: Tensor) -> IndexStep:
        self.capture_count += 1
        held = torch.zeros_like(indices)

        def replay(given: Tensor) -> None:
            self.replay_count += 1
            held.copy_(given)
            step(held)

        return replay


class Reports:
    """Keeps the metrics."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []

    def on_progress(self, epoch: int, share: float) -> None:
        pass

    def on_epoch(self, report: EpochReport) -> None:
        self.metrics.append({key: value for key, value in report.metrics.items() if key != "examples_per_s"})


def classifier_job(
    mode: str,
    capture: Capture | None,
    said: list[str],
    device: torch.device = CPU,
    config: RunConfig = CONFIG,
    weights: list[float] | None = None,
) -> Job:
    """A small classifier on noise: 50 examples, 3 full batches an epoch and a ragged one."""
    stream = torch.Generator().manual_seed(5)
    split = Split((torch.randn(50, 6, generator=stream),), torch.randint(0, 3, (50,), generator=stream)).to(device)
    seed_global(config.seed, "init")
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    lr = torch.tensor(config.lr, device=device) if mode == "step" and is_lr_scheduled(config) else None
    optimizer = make_optimizer(model.parameters(), config, lr, is_on_device=device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=False)
    record, plan = CompileRecord(mode, mode), StepPlan(capture=capture)
    objective = Classification(class_weights=None if weights is None else torch.tensor(weights, device=device))
    stepper = Stepper(model, objective, optimizer, record, autocast, said.append, plan)
    return Job(config, model, objective, stepper, split, split)


def compile_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets dynamo and autograd do all of their work, and leaves out that code is generated."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: whole(f, dynamic=dynamic, backend="aot_eager"))


both_weights = pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])


@both_weights
def test_replayed_steps_are_the_steps_with_schedule_momentum_and_a_ragged_end(
    monkeypatch: pytest.MonkeyPatch, weights: list[float] | None
) -> None:
    compile_without_code(monkeypatch)
    said: list[str] = []
    replays, plain, replayed = Replays(), Reports(), Reports()
    eager = classifier_job("off", None, said, weights=weights)
    job = classifier_job("step", replays.capture, said, weights=weights)

    fit(eager, plain)
    fit(job, replayed)

    record = job.stepper.record
    assert (record.used, record.is_captured, said) == ("step", True, [])
    assert (replays.capture_count, replays.replay_count) == (1, 4 * 3 - 3)
    for expected, found in zip(plain.metrics, replayed.metrics, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    for a, b in zip(eager.model.parameters(), job.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_second_compilation_of_an_update_with_momentum_belongs_to_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_without_code(monkeypatch)
    job = classifier_job("step", None, [])

    fit(job, Reports())

    record = job.stepper.record
    assert record.used == "step", record.reason
    assert record.graph_count > 0 == record.recompilation_count
    assert record.warm_up_s > record.first_step_s > 0
    assert job.stepper.warm_up_examples == 3 * 16


def test_a_second_fit_goes_on_with_the_captured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_without_code(monkeypatch)
    replays, reports, straight = Replays(), Reports(), Reports()
    config = replace(CONFIG, lr_schedule="constant")
    job = classifier_job("step", replays.capture, [], config=config)
    fit(classifier_job("step", None, [], config=config), straight)

    done = fit(replace(job, config=replace(config, epochs=2)), Reports())
    fit(job, reports, Progress(epoch=done.epoch))

    assert replays.capture_count == 1
    assert reports.metrics == straight.metrics[2:]


def test_a_capture_that_fails_leaves_the_compiled_step_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_without_code(monkeypatch)

    def failing(_step: IndexStep, _indices: Tensor) -> IndexStep:
        raise RuntimeError("operation not permitted when stream is capturing")

    said: list[str] = []
    job, plain = classifier_job("step", failing, said), classifier_job("step", None, [])

    fit(job, Reports())
    fit(plain, Reports())

    assert (job.stepper.record.used, job.stepper.record.is_captured) == ("step", False)
    assert job.stepper.record.reason.startswith("not captured: RuntimeError: operation not permitted")
    assert len(said) == 1
    for a, b in zip(plain.model.parameters(), job.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_a_step_is_captured() -> None:
    replays = Replays()

    fit(classifier_job("off", replays.capture, []), Reports())

    assert replays.capture_count == 0


@pytest.mark.parametrize(
    ("name", "is_captured"), [("sgd", True), ("adam", True), ("rmsprop", True), ("adagrad", False), ("lbfgs", False)]
)
def test_an_optimizer_that_counts_on_the_host_is_not_captured(name: str, is_captured: bool) -> None:
    optimizer = make_optimizer(nn.Linear(2, 1).parameters(), RunConfig(optimizer=name), is_on_device=True)

    assert choose_capture(CUDA, optimizer, has_lengths=False) is (capture_step if is_captured else None)
    assert choose_capture(CUDA, optimizer, has_lengths=True) is None
    assert choose_capture(CPU, optimizer, has_lengths=False) is None


def test_auto_compiles_no_batches_of_many_lengths(tmp_path: Path) -> None:
    assert choose_compile("auto", CUDA, tmp_path, has_lengths=True).used == "off"


@pytest.mark.needs_gpu
@both_weights
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_captured_step_is_the_eager_one_on_a_gpu(optimizer: str, weights: list[float] | None) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = replace(CONFIG, optimizer=optimizer, momentum=momentum, lr=0.01)
    said: list[str] = []
    eager, captured = Reports(), Reports()
    job = classifier_job("step", capture_step, said, torch.device("cuda:0"), config, weights)

    fit(classifier_job("off", None, said, torch.device("cuda:0"), config, weights), eager)
    fit(job, captured)

    record = job.stepper.record
    assert (record.used, record.is_captured, record.recompilation_count, said) == ("step", True, 0, [])
    assert record.capture_s > 0
    for a, b in zip(eager.metrics, captured.metrics, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
