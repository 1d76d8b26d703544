"""Refuses settings that a person gave and that the run would ignore.

Settings of data and model are watched while the run is built: what nobody has read has no effect. The settings that
every recipe has are always read, but some have no effect beside others; `_without_effect` says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn

from fitserve_training.config import RunConfig, Scalar
from fitserve_training.data.dataset import DataSet
from fitserve_training.errors import UsageError
from fitserve_training.optim import is_lr_scheduled

_NAME = "data.name"
"""Read before there is a configuration: it chooses recipe and preset."""


class WatchedSettings(Mapping[str, Scalar]):
    """A section of the settings that remembers which of them were read.

    Args:
        values: By key.
    """

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self._values, self._read = dict(values), set[str]()

    def __getitem__(self, key: str) -> Scalar:
        self._read.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def unread(self) -> set[str]:
        """Keys whose values nobody has read."""
        return set(self._values) - self._read


class Watch:
    """A configuration whose sections are watched.

    Args:
        config: Of the run; it stays as it is.
    """

    def __init__(self, config: RunConfig) -> None:
        self._sections = {"data": WatchedSettings(config.data), "model": WatchedSettings(config.model)}
        self.config = replace(config, data=self._sections["data"], model=self._sections["model"])

    def unread(self) -> set[str]:
        """Returns the dotted keys of the settings that nobody has read."""
        return {f"{name}.{key}" for name, section in self._sections.items() for key in section.unread}


def check_effects(given: Iterable[str], config: RunConfig) -> None:
    """Checks that no setting given is without effect beside the others, before any data is read.

    Raises:
        UsageError: one is; the message says why.
    """
    reasons = dict(_without_effect(config))
    for key in given:
        if key in reasons:
            raise UsageError(f"setting {key!r}: it would be ignored, for {reasons[key]}; leave it out")


def _without_effect(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Gives the settings that change nothing beside the others, with the reason."""
    if not config.is_selecting:
        yield "validation_share", "nothing is selected without patience or keep_weights=best"
    elif config.log_every:
        yield "log_every", "patience and keep_weights=best log every epoch"
    if config.patience >= config.epochs:
        yield "patience", f"no run of {config.epochs} epochs waits for {config.patience} (patience below epochs)"
    if config.dampening and not config.momentum:
        yield "dampening", "there is no momentum"
    if config.optimizer == "rprop" and is_lr_scheduled(config):
        for key in ("lr_schedule", "lr_warmup_steps"):
            yield key, "optimizer rprop reads the learning rate in its first step alone"
    if config.optimizer == "lbfgs" and config.compile in ("module", "step"):
        yield "compile", "optimizer lbfgs is not compiled"


def _without_effect_on(example_count: int, config: RunConfig) -> Iterator[tuple[str, str]]:
    """Gives the settings that change nothing with so many training examples, with the reason."""
    batch_size = min(config.batch_size or example_count, example_count)
    if config.micro_batch_size > batch_size:
        yield "micro_batch_size", f"a batch has only {batch_size} examples"
    step_count = config.epochs * -(-example_count // batch_size)
    if config.lr_schedule != "constant" and config.lr_warmup_steps >= step_count:
        yield "lr_schedule", f"the warm-up takes all {step_count} steps (lr_warmup_steps)"


def check_read(given: Iterable[str], watch: Watch, recipe_name: str, data: DataSet, model: nn.Module) -> None:
    """Checks that the run read every setting given, and that data and model had a use for it.

    Args:
        given: Dotted keys of the settings that a person gave.
        watch: The configuration that data, model and optimizer were built from.
        recipe_name: Of the run.
        data: As it was loaded.
        model: As it was built.

    Raises:
        UsageError: a setting would be ignored.
    """
    never = f"recipe {recipe_name} on {data.name} does not read it as things are set"
    reasons = dict.fromkeys(watch.unread() - {_NAME}, never)
    reasons |= dict.fromkeys(data.ignored, f"{data.name} says by itself what is held out")
    if data.validation is not None:
        reasons["validation_share"] = f"{data.name} has a validation split of its own"
    reasons |= dict(_without_effect_on(len(data.train), watch.config))
    is_told = watch.config.memory_format != "contiguous"
    if is_told and not any(parameter.ndim == 4 for parameter in model.parameters()):
        reasons["memory_format"] = f"recipe {recipe_name} on {data.name} has no weights of four dimensions"
    for key in given:
        if key in reasons:
            raise UsageError(f"setting {key!r}: it would be ignored, for {reasons[key]}; leave it out")
