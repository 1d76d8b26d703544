"""nn.TransformerEncoder with a padding mask, without nested tensors, which ONNX does not have.

In evaluation mode torch packs the valid positions of such a batch into a nested tensor and fills the padded positions
of the answer with zeros. It does so only where every row of the batch is padded at its end, so that a row's answer
depends on the rows beside it. Here each row is treated as torch treats it alone.

Shapes: B examples, T positions, C channels.
"""

from __future__ import annotations

import torch
from torch import nn


class PaddedEncoder(nn.TransformerEncoder):
    """An encoder whose answer has zeros at the padded positions of every row that is padded at its end."""

    def forward(
        self,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        """Encodes (B, T, C); the mask is (B, T), True or -inf at padded positions."""
        norm, self.norm = self.norm, None
        try:
            output = super().forward(src, mask, src_key_padding_mask, is_causal)
        finally:
            self.norm = norm
        if src_key_padding_mask is not None and mask is None and src.dim() == 3:
            output = output.masked_fill(_zeroed(src_key_padding_mask)[:, :, None], 0.0)
        answer: torch.Tensor = output if norm is None else norm(output)
        return answer


def use_plain_encoders(module: nn.Module) -> None:
    """Turns every encoder of a module that would use nested tensors into a PaddedEncoder, in place."""
    for part in module.modules():
        if type(part) is nn.TransformerEncoder and part.use_nested_tensor:
            part.use_nested_tensor = False
            part.__class__ = PaddedEncoder


def _zeroed(padding: torch.Tensor) -> torch.Tensor:
    """Finds the positions that torch zeroes, bool (B, T): the padded ones of rows without a valid one behind them."""
    is_valid = padding.logical_not()
    valid_count = is_valid.sum(dim=1, keepdim=True)
    is_before = torch.arange(is_valid.shape[1], device=padding.device)[None, :] < valid_count
    is_padded_at_end = (is_valid != is_before).sum(dim=1, keepdim=True) == 0
    return ~is_valid & is_padded_at_end
