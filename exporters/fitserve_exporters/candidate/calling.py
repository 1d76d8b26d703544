"""How a module's forward is called with the tensors of a request: by position, by keyword, through `*args`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fitserve_exporters.errors import ExportError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Calling:
    """Where each input of a version goes in forward's arguments.

    Args:
        names: The inputs, in order.
        keywords: For each input the keyword that it is passed by; None passes it by position.
    """

    names: tuple[str, ...]
    keywords: tuple[str | None, ...]

    def call(self, module: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """Calls the module with one tensor per input, in the order of `names`."""
        pairs = list(zip(self.keywords, tensors, strict=True))
        by_keyword = {keyword: tensor for keyword, tensor in pairs if keyword is not None}
        return module(*(tensor for keyword, tensor in pairs if keyword is None), **by_keyword)


def by_position(module: nn.Module, count: int, input_names: Sequence[str] | None) -> Calling:
    """Finds how a sequence of inputs is passed: in the order of forward, the surplus through `*args`.

    Args:
        module: Its forward takes them.
        count: How many there are.
        input_names: Their names; by default those of forward's parameters, `args_0`, `args_1`, … within `*args`.

    Raises:
        ExportError: forward takes fewer or needs more, or the names are not one per input.
    """
    parameters = _parameters(module)
    names = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL][:count]
    rest = next((parameter.name for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL), None)
    if len(names) < count and rest is None:
        raise ExportError(
            f"example: expected one input per parameter of forward ({', '.join(names)}), got {count}; "
            "pass keyword-only arguments as a mapping by name"
        )
    names += [f"{rest}_{index}" for index in range(count - len(names))]
    _check_required(parameters, names[:count], count_by_position=count)
    if input_names is not None and len(input_names) != count:
        raise ExportError(f"input_names: expected {count}, one per input of the example, got {len(input_names)}")
    return Calling(tuple(input_names or names), (None,) * count)


def by_name(module: nn.Module, given: Sequence[str], input_names: Sequence[str] | None) -> Calling:
    """Finds how a mapping of inputs is passed: by keyword, or by position where forward takes no keyword.

    Args:
        module: Its forward takes them.
        given: The names in the mapping.
        input_names: The order of the inputs; by default that of forward's parameters.

    Raises:
        ExportError: forward has no such parameter, or needs another one.
    """
    parameters = _parameters(module)
    known = [p.name for p in parameters if p.kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [name for name in given if name not in known]
    if unknown and not takes_any:
        raise ExportError(
            f"example: expected parameters of forward ({', '.join(known)}), got {sorted(unknown)}; "
            "the keys of a mapping are the names of forward's parameters"
        )
    if input_names is not None and set(input_names) != set(given):
        raise ExportError(f"input_names: expected the keys of the example {sorted(given)}, got {sorted(input_names)}")
    order = list(input_names) if input_names else [name for name in known if name in given] + unknown
    _check_required(parameters, order, count_by_position=0)
    alone = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    # Positional-only parameters fill from the left: they must be given without a gap, and come in forward's order.
    order = [name for name in alone if name in given] + [name for name in order if name not in alone]
    return Calling(tuple(order), tuple(None if name in alone else name for name in order))


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError) as error:
        raise ExportError(f"module: its forward has no signature that Python can read: {error}") from error


def _check_required(parameters: Sequence[inspect.Parameter], given: Sequence[str], *, count_by_position: int) -> None:
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
        and parameter.name not in given
    ]
    if missing:
        cure = "give them in the example" if not count_by_position else "give them in the example, by name in a mapping"
        raise ExportError(
            f"example: expected every argument that forward needs, missing {', '.join(missing)}; {cure}; a value that "
            "is no tensor has to be a default of forward or an attribute of the module"
        )
