"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""One kernel for all parameters instead of several per parameter, on CPU and CUDA."""


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


def make_optimizer(parameters: Iterable[Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """Builds the optimizer that the configuration names, fused where torch has such a kernel.

    Raises:
        UsageError: as `check_optimizer`.
    """
    check_optimizer(config)
    kind, takes = _SETTINGS[config.optimizer]
    settings: dict[str, Any] = {key: getattr(config, key) for key in takes}
    if kind in _FUSED:
        settings["fused"] = True
    return kind(parameters, lr=config.lr, **settings)
