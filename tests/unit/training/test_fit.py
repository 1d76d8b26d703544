"""The loop: exact means, determinism, when it stops, and what it reports."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fitserve_training.compiling import CompileRecord
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import Split
from fitserve_training.data.places import Places
from fitserve_training.errors import RunStoppedError
from fitserve_training.fit import EpochReport, Job, Progress, fit, is_logged
from fitserve_training.objectives import Classification, Regression
from fitserve_training.optim import make_optimizer
from fitserve_training.recipes import thermometer
from fitserve_training.seeding import seed_global
from fitserve_training.stepping import Stepper


class Reports:
    """Keeps what the loop reports."""

    def __init__(self) -> None:
        self.epochs: list[EpochReport] = []
        self.shares: list[tuple[int, float]] = []

    def on_progress(self, epoch: int, share: float) -> None:
        self.shares.append((epoch, share))

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)


def classifier_job(config: RunConfig, mode: str = "off", count: int = 50) -> Job:
    """A linear classifier on noise."""
    stream = torch.Generator().manual_seed(5)
    split = Split((torch.randn(count, 6, generator=stream),), torch.randint(0, 3, (count,), generator=stream))
    seed_global(config.seed, "init")
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    return job_of(config, model, Classification(), split, mode)


def job_of(
    config: RunConfig, model: nn.Module, objective: Classification | Regression, split: Split, mode: str = "off"
) -> Job:
    optimizer = make_optimizer(model.parameters(), config)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16")
    stepper = Stepper(model, objective, optimizer, CompileRecord(mode, mode), autocast, pytest.fail)
    return Job(config, model, objective, stepper, split, split)


def thermometer_job(config: RunConfig, input_scale: float) -> Job:
    split = thermometer.load_data(config, Places.default()).train
    model = thermometer.ScaledLine(input_scale)
    return replace(job_of(config, model, Regression(), split), cure=thermometer.RECIPE.cure)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_mean_over_a_ragged_epoch_is_exact() -> None:
    config = RunConfig(epochs=1, batch_size=16, lr=1e-30)
    job = classifier_job(config)
    job.model.eval()
    with torch.no_grad():
        whole = nn.functional.cross_entropy(job.model(*job.train.inputs), job.train.targets).item()
    job = replace(job, model=job.model.requires_grad_())
    for module in job.model:  # type: ignore[attr-defined]
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    reports = Reports()

    fit(job, reports)

    assert reports.epochs[0].metrics["train_loss"] == pytest.approx(whole, rel=1e-6)
    assert reports.epochs[0].metrics["test_loss"] == pytest.approx(whole, rel=1e-6)
    assert reports.epochs[0].points[-1] == (
        1.0,
        {k: reports.epochs[0].metrics[k] for k in ("train_loss", "train_accuracy")},
    )


def test_one_seed_gives_one_set_of_bits_and_another_seed_another() -> None:
    def trained(seed: int) -> torch.Tensor:
        job = classifier_job(RunConfig(seed=seed, epochs=3, batch_size=16))
        fit(job, Reports())
        return weights(job.model)

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_later_epochs_need_nothing_but_the_state_of_the_earlier() -> None:
    config = RunConfig(epochs=4, batch_size=16, momentum=0.9)
    straight = classifier_job(config)
    fit(straight, Reports())

    halves = classifier_job(config)
    fit(replace(halves, config=replace(config, epochs=2)), Reports())
    torch.manual_seed(12345)
    fit(halves, Reports(), Progress(epoch=2))

    assert torch.equal(weights(straight.model), weights(halves.model))


def test_raw_readings_diverge_at_epoch_11_with_the_cure() -> None:
    reports = Reports()

    with pytest.raises(RunStoppedError, match=r"the loss is inf at epoch 11 with lr 0\.01: .*model\.input_scale=0\.1"):
        fit(thermometer_job(RunConfig(epochs=5000, batch_size=0, lr=1e-2), input_scale=1.0), reports)

    assert [report.epoch for report in reports.epochs] == list(range(1, 11))


def test_a_last_update_that_overflows_is_no_finished_run() -> None:
    with pytest.raises(RunStoppedError, match="the loss of the final weights is inf at epoch 10"):
        fit(thermometer_job(RunConfig(epochs=10, batch_size=0, lr=1e-2), input_scale=1.0), Reports())


def test_an_infinite_held_out_loss_stops_nothing() -> None:
    job = classifier_job(RunConfig(epochs=2, batch_size=16))
    held_out = Split((torch.full((3, 6), torch.inf),), torch.zeros(3, dtype=torch.int64))
    reports = Reports()

    progress = fit(replace(job, held_out=held_out), reports)

    assert progress.epoch == 2
    assert not math.isfinite(reports.epochs[-1].metrics["test_loss"])


def test_training_stops_when_the_parameters_stand_still() -> None:
    job = thermometer_job(RunConfig(epochs=5000, batch_size=0, lr=1e-2, stop_when_still=0.01), input_scale=0.1)
    reports = Reports()

    fit(job, reports)

    assert 1 < reports.epochs[-1].epoch < 5000
    assert reports.epochs[-1].is_last
    assert reports.epochs[-1].progress.is_early
    assert reports.epochs[-1].metrics["epoch"] == reports.epochs[-1].epoch


def test_loss_after_the_epoch_is_that_of_its_last_parameters() -> None:
    job = replace(classifier_job(RunConfig(epochs=2, batch_size=16)), is_loss_after_epoch=True)
    reports = Reports()

    fit(job, reports)

    metrics = reports.epochs[-1].metrics
    assert metrics["train_loss"] == metrics["test_loss"]


def test_progress_ends_every_epoch() -> None:
    reports = Reports()
    fit(classifier_job(RunConfig(epochs=2, batch_size=16)), reports)
    assert [share for share in reports.shares if share[1] == 1.0] == [(1, 1.0), (2, 1.0)]


def test_bfloat16_trains_in_float32_parameters() -> None:
    job = classifier_job(RunConfig(epochs=1, batch_size=16, precision="bfloat16"))
    before = weights(job.model)
    fit(job, Reports())
    assert weights(job.model).dtype == torch.float32
    assert not torch.equal(weights(job.model), before)


@pytest.mark.parametrize(
    ("epochs", "log_every", "expected"), [(100, 0, 100), (5000, 0, 110), (1000, 250, 4)], ids=["all", "spread", "every"]
)
def test_how_many_epochs_are_logged(epochs: int, log_every: int, expected: int) -> None:
    config = RunConfig(epochs=epochs, log_every=log_every)
    assert sum(is_logged(epoch, config) for epoch in range(1, epochs + 1)) == expected


def test_the_speed_leaves_compilation_out() -> None:
    job = classifier_job(RunConfig(epochs=2, batch_size=0), mode="module")
    reports = Reports()

    fit(job, reports)

    assert ["examples_per_s" in report.metrics for report in reports.epochs] == [False, True]


def test_a_ragged_last_batch_compiles_nothing_again() -> None:
    job = classifier_job(RunConfig(epochs=3, batch_size=16), mode="module")

    fit(job, Reports())

    record = job.stepper.record
    assert record.used == "module", record.reason
    assert record.graph_count == record.graph_count_after_warm_up > 0
    assert record.first_step_s > 0
