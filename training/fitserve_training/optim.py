"""Optimizers by name, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from fitserve_training.config import RunConfig
from fitserve_training.errors import UsageError, unknown_name

_SETTINGS: dict[str, tuple[Callable[..., torch.optim.Optimizer], tuple[str, ...]]] = {
    "sgd": (torch.optim.SGD, ("momentum", "dampening", "nesterov", "weight_decay")),
    "adam": (torch.optim.Adam, ("weight_decay",)),
    "adamw": (torch.optim.AdamW, ("weight_decay",)),
    "adamax": (torch.optim.Adamax, ("weight_decay",)),
    "adagrad": (torch.optim.Adagrad, ("weight_decay",)),
    "asgd": (torch.optim.ASGD, ("weight_decay",)),
    "rmsprop": (torch.optim.RMSprop, ("momentum", "weight_decay")),
    "rprop": (torch.optim.Rprop, ()),
    "lbfgs": (torch.optim.LBFGS, ()),
}
"""Constructor, and the settings of RunConfig that it takes beside `lr`."""

_FACTOR = "lr_factor"
"""Key of a parameter group: the multiple of the learning rate that it learns with."""

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""One kernel for all parameters instead of several per parameter, on CPU and CUDA."""

_CAPTURABLE = (*_FUSED[1:], torch.optim.Adamax, torch.optim.ASGD, torch.optim.RMSprop, torch.optim.Rprop)
"""Can keep all of their state on a GPU, their count of steps included. SGD counts none; the others have no such way."""


def check_optimizer(config: RunConfig) -> None:
    """Checks the optimizer's name and that every setting given to it is one that it takes.

    Raises:
        UsageError: unknown name, or a setting (momentum, …) that this optimizer does not have.
    """
    if config.optimizer not in _SETTINGS:
        raise unknown_name("optimizer", config.optimizer, _SETTINGS)
    _, takes = _SETTINGS[config.optimizer]
    for key in ("momentum", "dampening", "nesterov", "weight_decay"):
        if getattr(config, key) and key not in takes:
            raise UsageError(f"setting {key!r}: optimizer {config.optimizer} has no {key}; leave it at its default")
    if config.nesterov and (config.momentum <= 0 or config.dampening != 0):
        raise UsageError("setting 'nesterov': expected momentum above 0 and dampening 0 with it")


def learning_rate(config: RunConfig, step: int, step_count: int) -> float:
    """Gives the learning rate of a step: a pure function, so that a resumed run needs no state of it.

    Args:
        config: Says `lr`, `lr_warmup_steps` and `lr_schedule`.
        step: From 0.
        step_count: Steps of the whole run.
    """
    if step < config.lr_warmup_steps:
        return config.lr * (step + 1) / config.lr_warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    done = (step - config.lr_warmup_steps) / max(1, step_count - config.lr_warmup_steps)
    left = 1 - done if config.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * left


def is_lr_scheduled(config: RunConfig) -> bool:
    """Says whether the learning rate ever differs from `lr`."""
    return config.lr_warmup_steps > 0 or config.lr_schedule != "constant"


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of every parameter group, times its factor, in place where a compiled step reads a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr * group[_FACTOR])
        else:
            group["lr"] = lr * group[_FACTOR]


def make_optimizer(
    parameters: Iterable[Parameter] | Mapping[float, Sequence[Parameter]],
    config: RunConfig,
    lr: float | torch.Tensor | None = None,
    is_on_device: bool = False,
) -> torch.optim.Optimizer:
    """Builds the optimizer that the configuration names, fused where torch has such a kernel.

    Args:
        parameters: What it updates; a mapping has them by the multiple of the rate that they learn with.
        config: Names it and its settings.
        lr: A tensor on the device where a compiled step is to follow a schedule: a number would be compiled in.
        is_on_device: Keep all state on the GPU, so that a captured step can go on with it.

    Raises:
        UsageError: as `check_optimizer`.
    """
    check_optimizer(config)
    kind, takes = _SETTINGS[config.optimizer]
    settings: dict[str, Any] = {key: getattr(config, key) for key in takes}
    if kind in _FUSED:
        settings["fused"] = True
    if kind in _CAPTURABLE and is_on_device:
        settings["capturable"] = True
    by_factor = parameters if isinstance(parameters, Mapping) else {1.0: list(parameters)}
    rate = config.lr if lr is None else lr
    groups = [{"params": members, "lr": rate * factor, _FACTOR: factor} for factor, members in by_factor.items()]
    return kind(groups, **settings)


def by_rate(model: torch.nn.Module, factors: Mapping[str, float]) -> dict[float, list[Parameter]]:
    """Sorts a model's parameters by the multiple of the rate that they learn with.

    Args:
        model: Whose.
        factors: Multiples by the beginning of a parameter's name; all others learn with the rate itself.

    Returns:
        Factor to parameters, none of them empty.
    """
    groups: dict[float, list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return groups
