"""A line through (1, 2), (2, 4), (3, 6) by gradient descent on the sum of squares, and under eight optimizers.

Source: the classic first example of PyTorch courses (Kim, PyTorch Zero To All, lecture 5). With x and y fixed, the
error of (w, b) is multiplied by one matrix per epoch, with eigenvalues 0.99278821 and 0.66721179 at lr 0.01, so that
every run can be held against a closed form.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.places import Places
from fitserve_training.objectives import Regression
from fitserve_training.optim import make_optimizer
from fitserve_training.recipe import Band, Finish, Recipe, ServedInput
from fitserve_training.reference import line_closed_form
from fitserve_training.seeding import seed_global

OPTIMIZERS = ("sgd", "adam", "adamax", "asgd", "adagrad", "lbfgs", "rmsprop", "rprop")
X = (1.0, 2.0, 3.0)
Y = (2.0, 4.0, 6.0)
GOAL = (2.0, 0.0)
_MOST_COMPARED = 100
"""Epochs of each optimizer in the comparison: LBFGS alone evaluates the loss twenty times in each."""


def choose_data(_name: str, _places: Places) -> str:
    """There is one kind of data: the three points."""
    return "points"


def load_data(_config: RunConfig, _places: Places) -> DataSet:
    """Gives the three points; there are none to hold out, so they are tested on as well."""
    points = Split((torch.tensor(X).unsqueeze(1),), torch.tensor(Y).unsqueeze(1))
    return DataSet("points", "3 points of y = 2x (trained and tested on all of them)", points, points)


def build_model(_config: RunConfig) -> nn.Module:
    """Builds 1 -> 1 as nn.Linear draws it."""
    return nn.Linear(1, 1)


def parameters(module: nn.Module) -> dict[str, float]:
    """Gives w, b and the prediction at 4."""
    w, b = _pair(module).tolist()
    return {"w": w, "b": b, "prediction_at_4": 4 * w + b}


def measure(finish: Finish) -> dict[str, float]:
    """Gives how far w or b is from the closed form; for plain gradient descent on all points, which alone has it."""
    config = finish.config
    if config.optimizer != "sgd" or config.momentum or config.weight_decay or config.is_selecting:
        return {}
    goal, x_N = torch.tensor(GOAL, dtype=torch.float64), torch.tensor(X, dtype=torch.float64)
    expected = line_closed_form(_pair(_fresh(config)), goal, x_N, config.lr, int(finish.rows[-1]["epoch"]))
    return {"closed_form_error": (_pair(finish.model) - expected).abs().max().item()}


def draw(finish: Finish, folder: Path) -> None:
    """Draws the loss under each optimizer, each in a picture of its own and all in one."""
    from fitserve_training.plots import save_figure

    curves = {name: losses_under(name, finish.config) for name in OPTIMIZERS}
    for shown in (*((name,) for name in OPTIMIZERS), OPTIMIZERS):
        name = f"optimizer-{shown[0]}.svg" if len(shown) == 1 else "optimizers.svg"
        with save_figure(folder / name) as axes:
            for optimizer in shown:
                axes.plot(range(1, len(curves[optimizer]) + 1), curves[optimizer], label=optimizer)
            axes.set_yscale("log")
            axes.set_xlabel("epoch")
            axes.set_ylabel("loss (sum of squares)")
            axes.legend()


def losses_under(optimizer_name: str, config: RunConfig) -> list[float]:
    """Trains from the run's own start under another optimizer; gives each epoch's loss before its update."""
    settings = replace(config, optimizer=optimizer_name, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0)
    points, model = load_data(config, Places.default()).train, _fresh(config)
    optimizer = make_optimizer(model.parameters(), settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = RECIPE.objective.loss(model(points.inputs[0]), points.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    # Every optimizer gives the closure's first loss, that before the update.
    return [float(optimizer.step(closure)) for _ in range(min(config.epochs, _MOST_COMPARED))]  # type: ignore[arg-type]


def _fresh(config: RunConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        seed_global(config.seed, "init")
        return build_model(config)


def _pair(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])


RECIPE = Recipe(
    name="line",
    defaults={
        # One thread: the steps are too small to share, and waiting for a busy core costs far more than it gives.
        "threads": 1,
        "lr": 1e-2,
        "batch_size": 0,
        "epochs": 100,
        "data.name": "points",
    },
    choose_data=choose_data,
    data_names=("auto", "points"),
    load_data=load_data,
    build_model=build_model,
    objective=Regression(is_summed=True),
    inputs=(ServedInput("x", torch.float32, ("batch", 1)),),
    output_name="y",
    bands={"points": (Band("closed_form_error", 0.0, 1e-5),)},
    parameters=parameters,
    draw=draw,
    measure=measure,
)
