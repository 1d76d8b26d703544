"""Our training loop against the textbook's, in turns on the same examples, and how far it is from the arithmetic."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.training_textbook import TransformedImages, train_epoch
from fitserve_training.catalogue import load_recipe
from fitserve_training.compiling import choose_compile
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import Split
from fitserve_training.data.places import Places
from fitserve_training.device import cpu_threads
from fitserve_training.fit import EpochReport, Job, Progress, fit
from fitserve_training.optim import make_optimizer
from fitserve_training.recipe import Recipe
from fitserve_training.seeding import seed_global
from fitserve_training.settings import resolve_config
from fitserve_training.stepping import Stepper

RECIPES: Final = ("softmax", "lenet")
_GEMM_SIDE: Final = 1024
_GEMM_REPEATS: Final = 20


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured.

    Args:
        recipe: softmax or lenet.
        trials: Turns of each loop; one epoch each, after one that is not counted.
        example_count: Examples of an epoch, at most as many as there are.
        threads: CPU threads of both loops; 0 takes the recipe's own setting.
        compile: Mode of our loop.
        transform: What the textbook's dataset does to an example, `picture` or `tensor`.
        data_dir: Where data files are.
    """

    recipe: str
    trials: int = 7
    example_count: int = 12_800
    threads: int = 0
    compile: str = "auto"
    transform: str = "picture"
    data_dir: Path | None = None


@dataclass(frozen=True)
class SpeedResult:
    """Examples per second, a value per trial; the n-th trials of the two ran side by side.

    Args:
        textbook: Of the textbook's loop.
        ours: Of ours.
        flops_per_example: Floating-point operations of forward and backward, from torch's counter.
        gemm_flops_per_s: Rate of a large matrix product with the same threads.
        threads: Of both loops.
        compile_used: Mode of ours.
        first_step_s: Compilation, in no trial.
    """

    plan: dict[str, Any]
    data: str
    textbook: list[float]
    ours: list[float]
    flops_per_example: float
    gemm_flops_per_s: float
    threads: int
    compile_used: str
    first_step_s: float
    environment: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Median over the pairs."""
        return median(b / a for a, b in zip(self.textbook, self.ours, strict=True))

    @property
    def floor_examples_per_s(self) -> float:
        """What the arithmetic alone would allow."""
        return self.gemm_flops_per_s / self.flops_per_example

    def save(self, path: Path) -> None:
        """Writes everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        derived = {"ratio": self.ratio, "floor_examples_per_s": self.floor_examples_per_s}
        path.write_text(json.dumps({**asdict(self), **derived}, indent=2) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """Puts the result into lines for people."""
        textbook, ours, floor = median(self.textbook), median(self.ours), self.floor_examples_per_s
        return [
            f"{self.plan['recipe']} on {self.data}, {self.threads} threads, compile {self.compile_used}, "
            f"{len(self.ours)} trials",
            f"  textbook loop {textbook:>12,.0f} examples/s   (each example by {self.plan['transform']})",
            f"  fitserve      {ours:>12,.0f} examples/s   {self.ratio:.2f} times (median of pairs)",
            f"  arithmetic    {floor:>12,.0f} examples/s   {self.flops_per_example / 1e6:.3f} MFLOP an example "
            f"at {self.gemm_flops_per_s / 1e9:.0f} GFLOP/s; ours is {ours / floor:.0%} of that",
        ]


def measure_speed(plan: SpeedPlan) -> SpeedResult:
    """Measures both loops in turns.

    Raises:
        ValueError: the recipe is none of RECIPES, or a number of the plan is below 1.
    """
    if plan.recipe not in RECIPES or plan.trials < 1 or plan.example_count < 1:
        raise ValueError(
            f"expected a recipe of {', '.join(RECIPES)} and at least 1 trial and example, got {plan.recipe}, "
            f"{plan.trials} and {plan.example_count}"
        )
    recipe, places = load_recipe(plan.recipe), Places.default(plan.data_dir)
    config = resolve_config(recipe, None, {"device": "cpu", "compile": plan.compile}, places)
    data = recipe.load_data(config, places)
    train = data.train.take(torch.arange(min(plan.example_count, len(data.train))))
    split, threads = Split(train.inputs, train.targets), plan.threads or config.threads or torch.get_num_threads()
    with cpu_threads(threads):
        ours, job = _our_epoch(recipe, config, split, places)
        textbook = _textbook_epoch(recipe, config, split, plan.transform)
        times = [(textbook(trial), ours(trial)) for trial in range(plan.trials + 1)][1:]
        flops, rate = _flops(recipe, config, split), _gemm_rate()
    record = job.stepper.record
    return SpeedResult(
        plan={**asdict(plan), "data_dir": None},
        data=data.source,
        textbook=[pair[0] for pair in times],
        ours=[pair[1] for pair in times],
        flops_per_example=flops,
        gemm_flops_per_s=rate,
        threads=threads,
        compile_used=record.used,
        first_step_s=record.first_step_s,
        environment=describe_environment(),
    )


def _textbook_epoch(recipe: Recipe, config: RunConfig, split: Split, transform: str) -> Callable[[int], float]:
    seed_global(config.seed, "init")
    model = plain_model(recipe, config)
    settings = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = settings[config.optimizer](model.parameters(), lr=config.lr)
    images = (split.inputs[0].squeeze(1) * 255).round().to(torch.uint8)
    dataset = TransformedImages(images, split.targets, transform)
    loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)

    def epoch(_trial: int) -> float:
        started = time.perf_counter()
        train_epoch(model, optimizer, loader)
        return len(split) / (time.perf_counter() - started)

    return epoch


def plain_model(recipe: Recipe, config: RunConfig) -> nn.Module:
    """Builds the recipe's model of torch's own layers, one after the other, as the textbook has them."""
    layers = list(recipe.build_model(config).children())
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            layers[place] = nn.Linear(layer.in_features, layer.out_features)
            layers[place].load_state_dict(layer.state_dict())
    return nn.Sequential(*layers)


class _Speeds:
    """Takes the speed from the loop's own report."""

    def __init__(self) -> None:
        self.last = 0.0

    def on_progress(self, epoch: int, share: float) -> None:
        """Shows nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Keeps the epoch's speed; the held-out test is not in it."""
        self.last = report.metrics.get("examples_per_s", self.last)


def _our_epoch(recipe: Recipe, config: RunConfig, split: Split, places: Places) -> tuple[Callable[[int], float], Job]:
    seed_global(config.seed, "init")
    model = recipe.build_model(config)
    record = choose_compile(config.compile, torch.device("cpu"), places.cache_dir)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16")
    optimizer = make_optimizer(model.parameters(), config)
    stepper = Stepper(model, recipe.objective, optimizer, record, autocast, print)
    few = Split(tuple(x[:256] for x in split.inputs), split.targets[:256])
    job, speeds = Job(config, model, recipe.objective, stepper, split.packed(), few), _Speeds()

    def epoch(trial: int) -> float:
        fit(replace(job, config=replace(config, epochs=trial + 1)), speeds, Progress(epoch=trial))
        return speeds.last

    return epoch, job


def _flops(recipe: Recipe, config: RunConfig, split: Split) -> float:
    model, count = plain_model(recipe, config), min(256, len(split))
    with FlopCounterMode(display=False) as counter:
        loss = recipe.objective.loss(model(split.inputs[0][:count]), split.targets[:count])
        loss.backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / count


def _gemm_rate() -> float:
    left, right = torch.rand(_GEMM_SIDE, _GEMM_SIDE), torch.rand(_GEMM_SIDE, _GEMM_SIDE)
    product, best_s = left @ right, float("inf")
    for _ in range(_GEMM_REPEATS):
        started = time.perf_counter()
        torch.mm(left, right, out=product)
        best_s = min(best_s, time.perf_counter() - started)
    return float(2 * _GEMM_SIDE**3) / best_s
