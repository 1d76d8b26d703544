"""One architecture: how it is built, what goes in, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Inputs = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
Draw = Callable[[int], Inputs]


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Args:
        library: What it comes from.
        make: Builds it; weights are random.
        draw: Draws inputs of so many rows, from torch's random state.
        settings: Further arguments of export().
        longer: Draws inputs whose free axes differ from those of `draw`; None where there are none.
        pick: Chooses of torch's answer what is published, in the order of the outputs.
        refused: A part of the sentence that refuses it; empty where it is published.
    """

    library: str
    make: Callable[[], nn.Module]
    draw: Draw
    settings: Mapping[str, Any] = field(default_factory=dict)
    longer: Draw | None = None
    pick: Callable[[Any], Any] = lambda answer: answer
    refused: str = ""


def reals(*shape: int) -> Draw:
    """Draws normal values (B, *shape)."""
    return lambda rows: torch.randn(rows, *shape)


def integers(count: int, *shape: int) -> Draw:
    """Draws numbers from 0 to count - 1 (B, *shape)."""
    return lambda rows: torch.randint(0, count, (rows, *shape))


def each(*draws: Draw) -> Draw:
    """Draws several inputs, passed by position."""
    return lambda rows: [draw(rows) for draw in draws]  # type: ignore[misc]


def named(**draws: Draw) -> Draw:
    """Draws several inputs, passed by keyword."""
    return lambda rows: {name: draw(rows) for name, draw in draws.items()}  # type: ignore[misc]


def padding(length: int, *, is_one_at_padding: bool = False) -> Draw:
    """Draws masks (B, length) of texts of 1 to length tokens: INT64 ones at tokens, or BOOL true at padding."""

    def draw(rows: int) -> torch.Tensor:
        is_token = torch.arange(length)[None] < torch.randint(1, length + 1, (rows, 1))
        return ~is_token if is_one_at_padding else is_token.long()

    return draw


def texts(length: int = 7, count: int = 60) -> Draw:
    """Draws token ids from 5 on, and the mask of their padding."""

    def draw(rows: int) -> Inputs:
        mask = padding(length)(rows)
        assert isinstance(mask, torch.Tensor)
        return {"input_ids": torch.randint(5, count, (rows, length)) * mask, "attention_mask": mask}

    return draw


def roughened(module: nn.Module) -> nn.Module:
    """Draws the weights that are all alike, as new norms, biases and layer scales are: they would hide faults."""
    for values in (*module.parameters(), *module.buffers()):
        if values.is_floating_point() and values.numel() > 1 and bool((values == values.flatten()[0]).all()):
            is_zero = float(values.flatten()[0]) == 0
            values.data.uniform_(-0.1, 0.1) if is_zero else values.data.uniform_(0.5, 1.5)
    return module.eval()
