"""The trainer's runs against the same mathematics by hand: same start, same batches, the first 50 steps."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from fitserve_contract.tasks import TaskKind
from fitserve_training import reference
from fitserve_training.catalogue import load_recipe
from fitserve_training.compiling import CompileRecord
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import Batch, Split
from fitserve_training.data.places import Places
from fitserve_training.fit import epoch_indices
from fitserve_training.optim import make_optimizer
from fitserve_training.recipes import thermometer
from fitserve_training.seeding import seed_global
from fitserve_training.stepping import Stepper

STEPS = 50
RTOL = 1e-5


def batches_of(split: Split, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """The first 50 batches as the trainer draws them, without an epoch's ragged last one."""
    taken: list[tuple[Tensor, Tensor]] = []
    epoch = 0
    while len(taken) < STEPS:
        epoch += 1
        for indices in epoch_indices(0, epoch, len(split), batch_size, torch.device("cpu")):
            assert indices is not None
            if len(indices) == batch_size:
                batch = split.take(indices)
                taken.append((batch.inputs[0], batch.targets))
    return taken[:STEPS]


def trainer_losses(
    recipe_name: str, model: nn.Module, batches: list[tuple[Tensor, Tensor]], lr: float, mode: str
) -> list[float]:
    """Each step's loss of the trainer's own step in this compile mode."""
    recipe = load_recipe(recipe_name)
    optimizer = make_optimizer(model.parameters(), RunConfig(lr=lr))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    record = CompileRecord(mode, mode)
    stepper = Stepper(model, recipe.objective, optimizer, record, autocast, pytest.fail)
    losses = []
    for x, y in batches:
        sums = torch.zeros(recipe.objective.sum_count, dtype=torch.float64)
        stepper(Batch((x,), y), sums)
        losses.append(sums[0].item() / len(y))
    assert record.used == mode, record.reason
    return losses


def built(recipe_name: str, dtype: torch.dtype) -> nn.Module:
    """The recipe's model as it starts from seed 0."""
    seed_global(0, "init")
    return load_recipe(recipe_name).build_model(RunConfig()).to(dtype)


def random_images(count: int, dtype: torch.dtype) -> Split:
    """Images of noise whose class is written into a patch, so that there is something to learn."""
    labels = torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(1))
    images = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(2), dtype=dtype)
    images[torch.arange(count), 0, labels, :] = 1.0
    return Split((images,), labels)


@pytest.mark.parametrize("mode", ["off", "module", "step"])
def test_linreg_equals_the_hand_written_one(mode: str) -> None:
    # In float64: the loss falls so far in 50 steps that float32's rounding of y would show.
    dtype = torch.float64
    recipe = load_recipe("linreg")
    config = RunConfig(data={"name": "synthetic", "example_count": 600, "noise_sd": 0.01})
    split = recipe.load_data(config, Places.default()).train
    batches = [(x.to(dtype), y.to(dtype)) for x, y in batches_of(split, 10)]
    model = cast(nn.Linear, built("linreg", dtype))
    by_hand = reference.LinearModel(model.weight.detach().T.clone(), model.bias.detach().clone())

    expected = reference.linear_regression(by_hand, batches, lr=0.03)

    torch.testing.assert_close(trainer_losses("linreg", model, batches, 0.03, mode), expected, rtol=RTOL, atol=0)
    torch.testing.assert_close(model.weight.detach().T, by_hand.weight, rtol=RTOL, atol=0)


@pytest.mark.parametrize("mode", ["off", "module"])
def test_softmax_equals_the_hand_written_one(mode: str) -> None:
    batches = batches_of(random_images(2000, torch.float32), 64)
    model = built("softmax", torch.float32)
    linear = cast(nn.Linear, cast(nn.Sequential, model)[1])
    by_hand = reference.LinearModel(linear.weight.detach().T.double(), linear.bias.detach().double())

    expected = reference.softmax_regression(by_hand, [(x.double(), y) for x, y in batches], lr=0.1)

    torch.testing.assert_close(trainer_losses("softmax", model, batches, 0.1, mode), expected, rtol=RTOL, atol=0)


@pytest.mark.parametrize("mode", ["off", "module"])
def test_lenet_equals_the_hand_written_one(mode: str) -> None:
    batches = batches_of(random_images(400, torch.float32), 32)
    model = built("lenet", torch.float32)
    by_hand = [p.detach().double().requires_grad_() for p in model.parameters()]

    expected = reference.lenet(by_hand, [(x.double(), y) for x, y in batches], lr=0.9)

    torch.testing.assert_close(trainer_losses("lenet", model, batches, 0.9, mode), expected, rtol=RTOL, atol=0)


def test_thermometer_equals_the_hand_written_one() -> None:
    x_N = torch.tensor(thermometer.READINGS, dtype=torch.float64)
    y_N = torch.tensor(thermometer.CELSIUS, dtype=torch.float64)
    batches = [(x_N.unsqueeze(1), y_N.unsqueeze(1))] * STEPS
    model = thermometer.ScaledLine(0.1).double()

    expected, parameters = reference.line_descent(0.1 * x_N, y_N, lr=1e-2, epochs=STEPS)

    torch.testing.assert_close(trainer_losses("thermometer", model, batches, 1e-2, "off"), expected, rtol=RTOL, atol=0)
    torch.testing.assert_close(torch.stack((model.w, model.b)).detach(), parameters, rtol=RTOL, atol=0)


def test_thermometer_gradient_three_ways() -> None:
    x_N = torch.tensor(thermometer.READINGS, dtype=torch.float64)
    y_N = torch.tensor(thermometer.CELSIUS, dtype=torch.float64)
    w, b = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    published = torch.tensor([4517.2969, 82.6000], dtype=torch.float64)

    by_chain_rule = reference.line_gradient_by_chain_rule(w, b, x_N, y_N)

    assert reference.line_loss(w, b, x_N, y_N).item() == pytest.approx(1763.884644, abs=1e-3)
    torch.testing.assert_close(by_chain_rule, published, rtol=1e-6, atol=0)
    for way in (reference.line_gradient_by_differences, reference.line_gradient_by_autograd):
        torch.testing.assert_close(way(w, b, x_N, y_N), by_chain_rule, rtol=1e-9, atol=0)


def test_published_thermometer_losses() -> None:
    x_N = torch.tensor(thermometer.READINGS, dtype=torch.float64)
    y_N = torch.tensor(thermometer.CELSIUS, dtype=torch.float64)

    raw, _ = reference.line_descent(x_N, y_N, lr=1e-4, epochs=100)
    scaled, parameters = reference.line_descent(0.1 * x_N, y_N, lr=1e-2, epochs=5000)

    assert [raw[0], raw[1], raw[2], raw[99]] == pytest.approx([1763.884644, 323.090546, 78.929634, 29.022669], rel=1e-6)
    published = {1: 80.364342, 2: 37.574917, 3: 30.871077, 10: 29.030487, 100: 22.148710, 5000: 2.927648}
    assert {epoch: scaled[epoch - 1] for epoch in published} == pytest.approx(published, rel=5e-7)
    assert parameters.tolist() == pytest.approx([5.3671, -17.3012], abs=1e-4)


def test_kinds_of_task_are_those_of_the_contract() -> None:
    kinds = {name: load_recipe(name).objective.kind for name in ("linreg", "thermometer", "softmax", "lenet")}
    assert kinds == {
        "linreg": TaskKind.REGRESSION,
        "thermometer": TaskKind.REGRESSION,
        "softmax": TaskKind.CLASSIFICATION,
        "lenet": TaskKind.CLASSIFICATION,
    }
