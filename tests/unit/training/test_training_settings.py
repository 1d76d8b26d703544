"""What people expect of a trainer: schedules, clipping, micro-batches, early stopping, best weights, seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from fitserve_training import rundir
from fitserve_training.compiling import CompileRecord, compiled_graph_count
from fitserve_training.config import RunConfig, Values
from fitserve_training.data.dataset import Batch, Split
from fitserve_training.errors import UsageError
from fitserve_training.fit import EpochReport, Job, Progress, fit
from fitserve_training.launch import Request, train
from fitserve_training.objectives import Classification, Objective, Regression
from fitserve_training.optim import by_rate, learning_rate, make_optimizer, set_learning_rate
from fitserve_training.report import write_index
from fitserve_training.seeds import figures_over, train_seeds
from fitserve_training.stepping import Stepper, StepPlan

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


def quiet(_line: str) -> None:
    pass


def stepped(plan: StepPlan, objective: Objective | None = None, mode: str = "off") -> tuple[torch.Tensor, list[float]]:
    """Takes three steps of a small classifier; gives the weights and the sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = Batch((torch.randn(10, 6, dtype=torch.float64),), torch.randint(0, 3, (10,)))
    optimizer = make_optimizer(model.parameters(), RunConfig(lr=0.5))
    stepper = Stepper(
        model, objective or Classification(), optimizer, CompileRecord(mode, mode), OFF, pytest.fail, plan
    )
    sums = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        stepper(batch, sums)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), sums.tolist()


@given(st.integers(0, 20), st.integers(21, 200), st.sampled_from(["constant", "linear", "cosine"]))
def test_the_rate_rises_to_lr_and_never_again(warmup: int, steps: int, schedule: str) -> None:
    config = RunConfig(lr=0.3, lr_warmup_steps=warmup, lr_schedule=schedule)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.3 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(0.3)


def test_schedules_end_at_zero() -> None:
    for schedule in ("linear", "cosine"):
        assert learning_rate(RunConfig(lr=1.0, lr_schedule=schedule), 100, 100) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("size", [1, 3, 5, 10, 11])
def test_micro_batches_are_the_batch(size: int) -> None:
    whole, parts = stepped(StepPlan()), stepped(StepPlan(micro_batch_size=size))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-12, atol=1e-14)
    assert parts[1] == pytest.approx(whole[1], rel=1e-12)


def test_clipping_bounds_the_norm_of_all_gradients() -> None:
    model = nn.Linear(3, 2)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = make_optimizer(model.parameters(), RunConfig(lr=1.0))
    stepper = Stepper(
        model, Regression(), optimizer, CompileRecord("off", "off"), OFF, pytest.fail, StepPlan(clip_norm=0.01)
    )
    stepper(Batch((torch.ones(4, 3),), torch.full((4, 2), 100.0)), torch.zeros(5, dtype=torch.float64))
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_trains_on_the_smoothed_loss_and_scores_by_the_plain_one(tmp_path: Path) -> None:
    changes: Values = {"data.name": "digits", "epochs": 1, "label_smoothing": 0.3}
    rows = rundir.read_lines(train(Request("softmax", tmp_path / "s", changes=changes), quiet) / rundir.METRICS)
    outputs, targets = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    smoothed = -(torch.tensor([0.8, 0.1, 0.1]) * outputs.log_softmax(1)).sum()
    torch.testing.assert_close(Classification(0.3).loss(outputs, targets), smoothed)
    assert rows[0]["train_loss"] != pytest.approx(rows[0]["test_loss"], rel=1e-3)
    with pytest.raises(UsageError, match="'label_smoothing': recipe linreg does not classify"):
        train(Request("linreg", tmp_path / "l", changes={"label_smoothing": 0.1}), quiet)


class Reports:
    def __init__(self) -> None:
        self.epochs: list[EpochReport] = []

    def on_progress(self, epoch: int, share: float) -> None:
        pass

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)


def test_patience_counts_epochs_without_a_lower_validation_loss() -> None:
    # What is trained on says +1 and the validation split -1: the first epoch is the best. What is held out says
    # that every epoch is better than the last, and decides nothing.
    train_split, validation, held_out = (
        Split((torch.ones(8, 1),), torch.full((8, 1), value)) for value in (1.0, -1.0, 2.0)
    )
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    config = RunConfig(epochs=50, batch_size=0, lr=0.05, patience=3)
    stepper = Stepper(
        model, Regression(), make_optimizer(model.parameters(), config), CompileRecord("off", "off"), OFF, print
    )
    job, reports = Job(config, model, Regression(), stepper, train_split, held_out, validation), Reports()

    progress = fit(job, reports)

    assert (progress.epoch, progress.best_epoch, progress.is_last, progress.is_early) == (4, 1, True, True)
    assert [report.is_best for report in reports.epochs] == [True, False, False, False]


def test_the_count_of_patience_survives_a_resume() -> None:
    torch.manual_seed(0)
    split = Split((torch.ones(8, 1),), torch.ones(8, 1))
    model = nn.Linear(1, 1)
    config = RunConfig(epochs=50, batch_size=0, lr=0.1, patience=3)
    stepper = Stepper(
        model, Regression(), make_optimizer(model.parameters(), config), CompileRecord("off", "off"), OFF, print
    )
    job = Job(config, model, Regression(), stepper, split, split, split)

    progress = fit(job, Reports(), Progress(epoch=7, best_loss=0.0, best_epoch=5))

    assert progress.epoch == 8


def test_a_run_keeps_the_best_weights_where_asked(tmp_path: Path) -> None:
    # At the noise of the data the loss goes up and down.
    changes: Values = {"data.example_count": 200, "epochs": 12, "lr": 0.3, "keep_weights": "best"}
    run_dir = train(Request("linreg", tmp_path / "s", changes=changes), quiet)
    summary = json.loads((run_dir / rundir.SUMMARY).read_text())
    losses = {row["epoch"]: row["val_loss"] for row in rundir.read_lines(run_dir / rundir.METRICS)}
    assert min(losses, key=lambda epoch: losses[epoch]) == summary["best"]["epoch"] == summary["epoch"] < 12
    best, kept = load_file(run_dir / rundir.BEST), load_file(run_dir / rundir.WEIGHTS)
    assert all(torch.equal(best[name], kept[name]) for name in best)
    assert (summary["data"]["train_count"], summary["data"]["validation_count"]) == (180, 20)


def test_a_compiled_step_follows_a_schedule_without_compiling_again() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    split = Split((torch.randn(20, 4),), torch.randn(20, 1))
    config = RunConfig(epochs=4, batch_size=10, lr=0.1, lr_schedule="cosine", lr_warmup_steps=2)
    eager = nn.Linear(4, 1)
    eager.load_state_dict(model.state_dict())

    def trained(module: nn.Module, mode: str, lr: float | torch.Tensor) -> CompileRecord:
        record = CompileRecord(mode, mode)
        optimizer = make_optimizer(module.parameters(), config, lr)
        stepper = Stepper(module, Regression(), optimizer, record, OFF, pytest.fail)
        fit(Job(replace(config), module, Regression(), stepper, split, split), Reports())
        return record

    record = trained(model, "step", torch.tensor(config.lr))
    trained(eager, "off", config.lr)

    assert record.used == "step"
    assert record.graph_count == record.graph_count_after_warm_up == compiled_graph_count()
    torch.testing.assert_close(model.weight, eager.weight)


def test_lbfgs_takes_no_parts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lbfgs: expected no micro_batch_size"):
        train(Request("linreg", tmp_path / "l", changes={"optimizer": "lbfgs", "micro_batch_size": 5}), quiet)


def test_seeds_give_mean_and_sd(tmp_path: Path) -> None:
    said: list[str] = []
    changes: Values = {"data.example_count": 60, "epochs": 1, "seed": 3}
    folder = train_seeds(Request("linreg", tmp_path / "l", changes=changes), 3, said.append)
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert runs == ["seed-3", "seed-4", "seed-5"]
    losses = [json.loads((folder / run / rundir.SUMMARY).read_text())["test_loss"] for run in runs]
    figures = json.loads((folder / "seeds.json").read_text())
    assert figures["test_loss"]["mean"] == pytest.approx(sum(losses) / 3)
    assert len(set(losses)) == 3
    assert any(line.startswith("test loss") for line in said)
    before = (folder / "seed-4" / rundir.SUMMARY).read_bytes()
    train_seeds(Request("linreg", tmp_path / "l", changes=changes, is_resumed=True), 3, quiet)
    assert (folder / "seed-4" / rundir.SUMMARY).read_bytes() == before


def test_figures_leave_out_what_a_seed_lacks() -> None:
    figures = figures_over([{"test_loss": 1.0, "test_r2": None}, {"test_loss": 3.0, "test_r2": 0.5}])
    assert figures == {"test_loss": {"mean": 2.0, "sd": pytest.approx(2**0.5), "least": 1.0, "greatest": 3.0}}


def test_the_report_stands_alone_and_the_index_links_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    train(Request("softmax", runs / "softmax", changes={"data.name": "digits", "epochs": 2}), quiet)
    train(Request("thermometer", runs / "thermometer", changes={"epochs": 5}), quiet)

    report = (runs / "softmax" / rundir.REPORT).read_text()
    index = write_index(runs).read_text()

    assert report.count("<svg") == 2
    assert report.count("data:image/png;base64,") == 24
    assert "Confusion matrix" in report
    assert not any(f'{attribute}="http' in report.replace("http://www.w3.org", "") for attribute in ("src", "href"))
    assert '<a href="softmax/report.html">' in index
    assert '<a href="thermometer/report.html">' in index
    assert "Confusion matrix" not in (runs / "thermometer" / rundir.REPORT).read_text()


def test_tensorboard_gets_every_epoch(tmp_path: Path) -> None:
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    changes: Values = {"data.example_count": 60, "epochs": 3, "tensorboard": True}
    run_dir = train(Request("linreg", tmp_path / "l", changes=changes), quiet)
    events = accumulator.EventAccumulator(str(run_dir / rundir.EVENTS))
    events.Reload()
    losses = [row["test_loss"] for row in rundir.read_lines(run_dir / rundir.METRICS)]
    assert [event.value for event in events.Scalars("test/loss")] == pytest.approx(losses, rel=1e-6)


@pytest.mark.needs_gpu
def test_a_run_on_a_gpu_compiles_its_step_once(tmp_path: Path) -> None:
    changes: Values = {"data.name": "digits", "epochs": 3, "device": "cuda", "lr_schedule": "cosine"}
    summary = json.loads((train(Request("lenet", tmp_path / "l", changes=changes), quiet) / rundir.SUMMARY).read_text())
    record = summary["compile"]
    assert record["used"] == "step", record["reason"]
    assert record["is_captured"], record["reason"]
    assert record["graph_count"] > 0 == record["recompilation_count"]


@pytest.mark.needs_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_on_a_gpu_resumes_to_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    changes: Values = {"data.name": "digits", "device": "cuda", "lr_schedule": "cosine", "optimizer": optimizer}
    changes |= {"epochs": 4, "checkpoint_every_s": 0.0, "memory_format": "channels_last", "lr": 1e-3}

    def stopping(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    straight = train(Request("lenet", tmp_path / "straight", changes=changes), quiet)
    with pytest.raises(KeyboardInterrupt):
        train(Request("lenet", tmp_path / "resumed", changes=changes), stopping)
    resumed = train(Request("lenet", tmp_path / "resumed", is_resumed=True), quiet)

    expected, found = load_file(straight / rundir.WEIGHTS), load_file(resumed / rundir.WEIGHTS)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_factor_of_the_rate_holds_for_the_parameters_of_that_name_whatever_the_schedule() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    config = RunConfig(lr=0.1, lr_schedule="linear")
    optimizer = make_optimizer(by_rate(model, {"1.": 10.0}), config)
    set_learning_rate(optimizer, 0.05)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [(old - new).detach().mean().item() for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.05, 0.05, 0.5, 0.5])


@given(st.sets(st.sampled_from(["0.", "1.", "0.weight"])))
def test_each_parameter_is_in_one_group(prefixes: set[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = by_rate(model, {prefix: 2.0 + index for index, prefix in enumerate(sorted(prefixes))})
    members = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(members) == sorted(map(id, model.parameters()))
    assert all(groups.values())
