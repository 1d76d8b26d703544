"""Gradients three ways, and the recipes' hand-written forms against the trainer: same start, same batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fitserve_training import reference
from fitserve_training.catalogue import load_recipe
from fitserve_training.config import RunConfig
from fitserve_training.data.places import Places
from fitserve_training.fit import epoch_indices
from fitserve_training.optim import make_optimizer
from fitserve_training.recipes import line, thermometer, two_layer
from fitserve_training.seeding import seed_global

RTOL = 1e-5


def two_layer_start(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    seed_global(0, "init")
    model = two_layer.TwoLayer(has_own_backward=False)
    return model.w1.detach().to(dtype), model.w2.detach().to(dtype)


def clamped_gradient(w1: Tensor, w2: Tensor, x_ND: Tensor, y_NK: Tensor) -> Tensor:
    """The well-known fault: the slope behind the ReLU is clamped at 0 instead of masked where the input was below."""
    hidden_NH = x_ND @ w1
    active_NH = hidden_NH.clamp(min=0)
    slope_NK = 2 * (active_NH @ w2 - y_NK)
    slope_NH = (slope_NK @ w2.T).clamp(min=0)
    return torch.cat([(x_ND.T @ slope_NH).flatten(), (active_NH.T @ slope_NK).flatten()])


def test_two_layer_gradients_agree_three_ways() -> None:
    points = two_layer.load_data(RunConfig(), Places.default()).train
    assert two_layer.gradient_gap(*two_layer_start(torch.float64), points) < 1e-12
    assert two_layer.gradient_gap(*two_layer_start(torch.float32), points) < 1e-4


def test_the_gradient_check_finds_the_clamped_gradient_that_training_does_not() -> None:
    points = two_layer.load_data(RunConfig(), Places.default()).train
    x_ND, y_NK = points.inputs[0].double(), points.targets.double()
    w1, w2 = two_layer_start(torch.float64)
    _, *by_hand = reference.two_layer_gradient(w1, w2, x_ND, y_NK)

    gap = reference.largest_gap([torch.cat([g.flatten() for g in by_hand]), clamped_gradient(w1, w2, x_ND, y_NK)])

    (band,) = (band for band in two_layer.RECIPE.bands["noise"] if band.metric == "gradient_gap")
    assert not band.holds(gap)
    assert gap > 100 * band.high
    losses = []
    for _ in range(20):
        losses.append((((x_ND @ w1).clamp(min=0) @ w2 - y_NK) ** 2).sum().item())
        step = 1e-6 * clamped_gradient(w1, w2, x_ND, y_NK)
        w1, w2 = w1 - step[: w1.numel()].reshape(w1.shape), w2 - step[w1.numel() :].reshape(w2.shape)
    assert losses[-1] < 0.2 * losses[0], "the fault converges all the same"


@pytest.mark.parametrize("backward", ["autograd", "own"])
def test_two_layer_equals_the_hand_written_one(backward: str) -> None:
    config = RunConfig(lr=1e-6, model={"backward": backward})
    points = two_layer.load_data(config, Places.default()).train
    w1, w2 = two_layer_start(torch.float64)
    model = two_layer.TwoLayer(backward == "own").double()
    model.load_state_dict({"w1": w1, "w2": w2})
    optimizer = make_optimizer(model.parameters(), config)
    losses = []
    for _ in range(50):
        loss = two_layer.RECIPE.objective.loss(model(points.inputs[0].double()), points.targets.double())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    expected = reference.two_layer_descent(
        w1.clone(), w2.clone(), points.inputs[0].double(), points.targets.double(), 1e-6, 50
    )

    torch.testing.assert_close(losses, expected, rtol=RTOL, atol=0)


def test_the_first_loss_of_two_layer_has_the_mean_of_the_formula() -> None:
    firsts = []
    for seed in range(40):
        stream = torch.Generator().manual_seed(seed)
        shapes = ((100, 1000), (100, 10), (1000, 100), (100, 10))
        x, y, w1, w2 = (torch.randn(shape, generator=stream) for shape in shapes)
        firsts.append(reference.two_layer_descent(w1, w2, x, y, 1e-6, 1)[0])
    assert sum(firsts) / len(firsts) == pytest.approx(50_001_000, rel=0.08)


def test_thermometer_gradients_agree_three_ways() -> None:
    x_N, y_N = (torch.tensor(v, dtype=torch.float64) for v in (thermometer.READINGS, thermometer.CELSIUS))
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    gradients = reference.line_gradients(one, zero, x_N, y_N)
    assert reference.largest_gap(gradients) < 1e-9
    assert gradients[1].tolist() == pytest.approx([4517.2969, 82.6000], rel=1e-6)


def test_linreg_scratch_equals_the_hand_written_one() -> None:
    recipe = load_recipe("linreg-scratch")
    config = RunConfig(lr=0.03, data={"name": "synthetic", "example_count": 600, "noise_sd": 0.01})
    split = recipe.load_data(config, Places.default()).train
    model = recipe.build_model(config).double()
    start_w, start_b = (p.detach().clone() for p in model.parameters())
    batches = []
    for indices in epoch_indices(0, 1, len(split), 10, torch.device("cpu")):
        assert indices is not None
        batch = split.take(indices)
        batches.append((batch.inputs[0].double(), batch.targets.double()))
    optimizer = make_optimizer(model.parameters(), config)
    losses = []
    for x, y in batches[:50]:
        loss = recipe.objective.loss(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    expected = reference.half_squared_regression(reference.LinearModel(start_w, start_b), batches[:50], lr=0.03)

    torch.testing.assert_close(losses, expected, rtol=RTOL, atol=0)


def test_line_equals_its_closed_form_and_its_factors() -> None:
    x_N = torch.tensor(line.X, dtype=torch.float64)
    start, goal = torch.tensor([0.3, -0.7], dtype=torch.float64), torch.tensor(line.GOAL, dtype=torch.float64)
    by_hand = reference.LinearModel(start[:1].reshape(1, 1).clone(), start[1:].clone())

    reference.summed_line(by_hand, x_N.unsqueeze(1), 2 * x_N.unsqueeze(1), 0.01, 100)

    formula = reference.line_closed_form(start, goal, x_N, 0.01, 100)
    torch.testing.assert_close(torch.cat([by_hand.weight.flatten(), by_hand.bias]), formula, rtol=1e-9, atol=0)
    moments = torch.tensor([[14.0, 6.0], [6.0, 3.0]], dtype=torch.float64)
    factors = torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64) - 0.02 * moments)
    assert factors.tolist() == pytest.approx([0.66721179, 0.99278821], abs=1e-8)


def test_every_optimizer_of_line_starts_alike_and_falls() -> None:
    config = RunConfig(lr=0.01, epochs=30)
    curves = {name: line.losses_under(name, config) for name in line.OPTIMIZERS}
    assert len({round(curve[0], 6) for curve in curves.values()}) == 1
    assert all(curve[-1] < curve[0] for curve in curves.values())
    assert functional.mse_loss(torch.tensor(curves["lbfgs"][-1]), torch.tensor(0.0)) < 1e-3
