"""Features of a frozen encoder, computed once: every epoch trains the head on them, and not the encoder again.

Shapes: N examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fitserve_training.data.dataset import Split
from fitserve_training.encoders.picture_classifier import HeadedEncoder

_CHUNK = 256


@dataclass(frozen=True)
class FrozenPart:
    """A model cut in two: what is frozen, and the head that learns.

    Args:
        model: All of it.
        head: The part of it that maps features to the model's outputs.
    """

    model: nn.Module
    head: nn.Module

    def encode(self, split: Split, autocast: torch.autocast) -> Split:
        """Computes the features of every example, in order, in evaluation mode and on the split's device."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), autocast:
            found = [_features(self.model, self.head, batch.inputs) for batch in split.chunks(_CHUNK)]
        self.model.train(was_training)
        return Split((torch.cat(found),), split.targets)


def frozen_part(model: nn.Module, split: Split) -> FrozenPart | None:
    """Finds the head that makes a frozen encoder's outputs of features alone; None where nothing can be cut so.

    Args:
        model: On the device of `split`.
        split: Some of its examples show whether the outputs are the head's. Sequences are left as they are: the
            features of some encoders are as long as they.
    """
    head = model.only_head if isinstance(model, HeadedEncoder) else None
    if head is None or split.lengths is not None:
        return None
    was_training = model.training
    model.eval()
    with torch.no_grad():
        inputs = tuple(x[:2] for x in next(split.chunks(2)).inputs)
        outputs = model(*inputs)
        features = _features(model, head, inputs)
        is_whole = features is not None and torch.equal(head(features), outputs)
    model.train(was_training)
    return FrozenPart(model, head) if is_whole else None


def _features(model: nn.Module, head: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Runs a model and returns what its head was given; None where that is not one tensor of rows."""
    given: list[Any] = []
    hook = head.register_forward_pre_hook(lambda _module, arguments: given.append(arguments))
    try:
        model(*inputs)
    finally:
        hook.remove()
    if len(given) != 1 or len(given[0]) != 1 or not isinstance(given[0][0], Tensor):
        return None
    return given[0][0].clone()
