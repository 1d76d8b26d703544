"""A pretrained encoder of pictures with its preprocessing in front and a new head behind.

Shapes: B pictures, C channels, S pixels a side, K outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fitserve_training.encoders.picture_preparation import Preparation


class HeadedEncoder(nn.Module):
    """A network of an encoder and a head, of which the encoder may be frozen.

    A frozen encoder gets no gradients and stays in evaluation mode, so that it drops nothing out and its batch norms
    keep the checkpoint's statistics.

    Args:
        network: Of transformers.
        heads: Names of its parts that are the head.
        is_frozen: The head alone is trained.
    """

    def __init__(self, network: nn.Module, heads: Sequence[str], is_frozen: bool) -> None:
        super().__init__()
        self.network = network
        self._heads, self._is_frozen = frozenset(heads), is_frozen
        if is_frozen:
            for part in self._frozen_parts():
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> HeadedEncoder:
        """Sets the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._is_frozen:
            for part in self._frozen_parts():
                part.eval()
        return self

    @property
    def only_head(self) -> nn.Module | None:
        """The one part that learns behind a frozen encoder; None where others do."""
        heads = [part for name, part in self.network.named_children() if name in self._heads]
        return heads[0] if self._is_frozen and len(heads) == 1 else None

    def _frozen_parts(self) -> list[nn.Module]:
        return [part for name, part in self.network.named_children() if name not in self._heads]


class PictureClassifier(HeadedEncoder):
    """Maps pictures with values 0..1 to logits.

    Args:
        network: Takes `pixel_values` and returns `logits`.
        heads: Names of its parts that are the head.
        is_frozen: The head alone is trained.
        preparation: What the network's pictures have behind them.
        own_size: Pixels a side that its positions are made for; where the preparation's S is another, they are
            interpolated.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, heads: Sequence[str], is_frozen: bool, preparation: Preparation, own_size: int
    ) -> None:
        super().__init__(network, heads, is_frozen)
        self._channel_count, self._is_bgr = len(preparation.scale), preparation.is_bgr
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.tensor(getattr(preparation, name)).reshape(-1, 1, 1))
        takes = inspect.signature(network.forward).parameters
        is_other = preparation.size != own_size
        self._options = {"interpolate_pos_encoding": True} if is_other and "interpolate_pos_encoding" in takes else {}

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, C, S, S) to logits (B, K); grey pictures, C = 1, stand for three equal channels."""
        if image.shape[1] != self._channel_count:
            image = image.expand(-1, self._channel_count, -1, -1)
        pixels = image * self.scale + self.shift
        logits: Tensor = self.network(pixel_values=pixels.flip(1) if self._is_bgr else pixels, **self._options).logits
        return logits
