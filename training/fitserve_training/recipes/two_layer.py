"""Two layers of weights and no biases, fitted to noise: the smallest network whose gradient is worth deriving by hand.

Source: Johnson, "Learning PyTorch with Examples". A well-known version of it clamps the gradient of the ReLU instead of
masking it where the input was negative: it converges all the same, so only a check of the gradient finds it.
Shapes: N examples, D = 1000 inputs, H = 100 hidden, K = 10 outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError
from fitserve_training.objectives import Regression
from fitserve_training.recipe import Band, Finish, Recipe, ServedInput
from fitserve_training.reference import largest_gap, two_layer_gradient
from fitserve_training.seeding import generator, seed_global

EXAMPLE_COUNT, D, H, K = 100, 1000, 100, 10


class MaskedRelu(torch.autograd.Function):
    """max(h, 0) with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor) -> Tensor:
        """Clamps at 0."""
        ctx.save_for_backward(hidden_NH)
        return hidden_NH.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        """Lets the slope pass where the input was positive: it is masked, not clamped."""
        (hidden_NH,) = ctx.saved_tensors
        masked: Tensor = slopes[0] * (hidden_NH > 0)
        return masked


class TwoLayer(nn.Module):
    """max(x w1, 0) w2.

    Args:
        has_own_backward: The ReLU's backward is this module's own instead of autograd's.
    """

    def __init__(self, has_own_backward: bool) -> None:
        super().__init__()
        self.has_own_backward = has_own_backward
        self.w1 = nn.Parameter(torch.randn(D, H))
        self.w2 = nn.Parameter(torch.randn(H, K))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Maps (N, D) to (N, K)."""
        hidden_NH = x_ND @ self.w1
        active_NH: Tensor = MaskedRelu.apply(hidden_NH) if self.has_own_backward else hidden_NH.clamp(min=0)  # type: ignore[no-untyped-call]
        return active_NH @ self.w2


def choose_data(_name: str, _places: Places) -> str:
    """There is one kind of data: noise."""
    return "noise"


def load_data(config: RunConfig, _places: Places) -> DataSet:
    """Draws x and y from N(0, 1); nothing can be learned of other noise, so the examples are tested on as well."""
    stream = generator(config.seed, "data", "train")
    x_ND, y_NK = (torch.randn(EXAMPLE_COUNT, size, generator=stream) for size in (D, K))
    noise = Split((x_ND,), y_NK)
    source = f"{EXAMPLE_COUNT} examples of noise, seed {config.seed} (trained and tested on all of them)"
    return DataSet("noise", source, noise, noise)


def build_model(config: RunConfig) -> nn.Module:
    """Builds the network with the backward that `model.backward` says, weights N(0, 1).

    Raises:
        UsageError: `model.backward` is neither autograd nor own.
    """
    backward = config.model.get("backward", "autograd")
    if backward not in ("autograd", "own"):
        raise UsageError(f"setting 'model.backward': expected autograd or own, got {backward!r}")
    return TwoLayer(backward == "own")


def served(module: nn.Module) -> nn.Module:
    """Gives the same network without a backward of its own, which serving has no use for."""
    plain = TwoLayer(has_own_backward=False)
    plain.load_state_dict(module.state_dict())
    return plain


def gradients(w1: Tensor, w2: Tensor, points: Split, has_own_backward: bool) -> Tensor:
    """Gives dL/dw1 and dL/dw2 of the module, flattened into one vector."""
    module = TwoLayer(has_own_backward).to(w1.dtype)
    module.load_state_dict({"w1": w1, "w2": w2})
    outputs_NK = module(points.inputs[0].to(w1.dtype))
    loss = RECIPE.objective.loss(outputs_NK, points.targets.to(w1.dtype))
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, (module.w1, module.w2))])


def gradient_gap(w1: Tensor, w2: Tensor, points: Split) -> float:
    """Gives how far the three gradients differ, relative to the largest component: by hand, autograd, own backward."""
    with torch.random.fork_rng(devices=[]):
        x_ND, y_NK = points.inputs[0].to(w1.dtype), points.targets.to(w1.dtype)
        _, *by_hand = two_layer_gradient(w1, w2, x_ND, y_NK)
        others = [gradients(w1, w2, points, has_own_backward) for has_own_backward in (False, True)]
        return largest_gap([torch.cat([each.flatten() for each in by_hand]), *others])


def measure(finish: Finish) -> dict[str, float]:
    """Gives the first loss, the last as a share of it, and how far the three gradients differ at the start."""
    with torch.random.fork_rng(devices=[]):
        seed_global(finish.config.seed, "init")
        model = TwoLayer(has_own_backward=False)
    first, last = finish.rows[0]["train_loss"], finish.rows[-1]["train_loss"]
    gap = gradient_gap(model.w1.detach(), model.w2.detach(), finish.data.train)
    return {"first_loss": first, "last_to_first_loss": last / first, "gradient_gap": gap}


RECIPE = Recipe(
    name="two-layer",
    defaults={
        "threads": 1,
        "lr": 1e-6,
        "batch_size": 0,
        "epochs": 20,
        "data.name": "noise",
        "model.backward": "autograd",
    },
    choose_data=choose_data,
    data_names=("auto", "noise"),
    load_data=load_data,
    build_model=build_model,
    objective=Regression(is_summed=True),
    inputs=(ServedInput("x", torch.float32, ("batch", D)),),
    output_name="y",
    bands={
        "noise": (
            # 95 % of draws lie in each of the first two; the mean first loss is K N (1 + H D / 2) = 50,001,000.
            Band("first_loss", 3.7e7, 6.8e7),
            Band("last_to_first_loss", 0.009, 0.034),
            Band("gradient_gap", 0.0, 1e-4),
        )
    },
    served=served,
    measure=measure,
)
