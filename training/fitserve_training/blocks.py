"""Convolution, sigmoid and pooling over blocks of pixels: the same sums, in a form that a CPU is quick at.

A convolution over 1 or 6 channels leaves most of a vector unit idle, and average pooling makes two passes over the
largest tensor there is. Here the pixels of a block become channels (space to depth), and a convolution over blocks
gives all the outputs of a tile at once: 16 -> 96 channels instead of 1 -> 6. Its kernel is the original one laid out
again, with zeros where an output does not see an input. The four outputs that pooling joins are neighbours in memory.

Shapes: B examples, I and O channels, K side of the kernel, S side of a block, R kernel side in blocks, T = S * S * O.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def block_kernel_index(out_channels: int, in_channels: int, kernel: int, block: int) -> Tensor:
    """Says which weight stands where in the kernel over blocks; O * I * K * K stands for zero.

    Args:
        out_channels: O.
        in_channels: I.
        kernel: K.
        block: S, even.

    Returns:
        int64 (T, S * S * I, R, R). An output channel is (place in its pooling window, window in the tile, O), an
        input channel (row in the block, column in the block, I).
    """
    reach = -(-(block + kernel - 1) // block)
    index = torch.full((2, 2, block // 2, block // 2, out_channels, reach, block, reach, block, in_channels), -1)
    count = out_channels * in_channels * kernel * kernel
    weights_OKKI = torch.arange(count).reshape(out_channels, in_channels, kernel, kernel).permute(0, 2, 3, 1)
    flat = index.view(2, 2, block // 2, block // 2, out_channels, reach * block, reach * block, in_channels)
    for y in range(block):
        for x in range(block):
            tile = flat[y % 2, x % 2, y // 2, x // 2]
            tile[:, y : y + kernel, x : x + kernel] = weights_OKKI
    index[index < 0] = count
    ordered = index.permute(0, 1, 2, 3, 4, 6, 8, 9, 5, 7)
    return ordered.reshape(block * block * out_channels, block * block * in_channels, reach, reach).contiguous()


def space_to_depth(images_BIHW: Tensor, block: int) -> Tensor:
    """Makes channels of the pixels of each block: (B, I, H, W) to (B, S * S * I, H / S, W / S), channels last."""
    count, channels, height, width = images_BIHW.shape
    split = images_BIHW.reshape(count, channels, height // block, block, width // block, block)
    blocks = split.permute(0, 2, 4, 3, 5, 1).reshape(count, height // block, width // block, block * block * channels)
    return blocks.permute(0, 3, 1, 2)


def pooled_sigmoid_convolution(blocks: Tensor, weight_OIKK: Tensor, bias_O: Tensor, index: Tensor) -> Tensor:
    """Convolves, takes the sigmoid and averages 2×2 windows.

    Args:
        blocks: (B, S * S * I, H, W), channels last, as `space_to_depth` makes them.
        weight_OIKK: The convolution's own weight.
        bias_O: The convolution's own bias.
        index: Of `block_kernel_index` for this convolution.

    Returns:
        (B, T / 4, H', W'), channels last, H' = H - R + 1: again blocks, of half the side. Where that side is one,
        the channels are the O channels of the pooled picture.
    """
    kernel: Tensor = _Widen.apply(weight_OIKK, index)  # type: ignore[no-untyped-call]
    bias = bias_O.repeat(index.shape[0] // len(bias_O))
    sums = functional.conv2d(blocks, kernel.contiguous(memory_format=torch.channels_last), bias)
    count, channels, height, width = sums.shape
    windows = sums.permute(0, 2, 3, 1).reshape(-1, 4, channels // 4)
    pooled: Tensor = _SigmoidMean.apply(windows)  # type: ignore[no-untyped-call]
    return pooled.reshape(count, height, width, channels // 4).permute(0, 3, 1, 2)


class _Widen(torch.autograd.Function):
    """Lays a weight out by an index; backward adds up what belongs to one weight, in a fixed order."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = weight.shape
        padded = torch.cat((weight.reshape(-1), weight.new_zeros(1)))
        return padded.index_select(0, index.reshape(-1)).reshape(index.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = gradient.new_zeros(ctx.shape.numel() + 1)
        sums.index_add_(0, index.reshape(-1), gradient.reshape(-1))
        return sums[:-1].reshape(ctx.shape), None


class _SigmoidMean(torch.autograd.Function):
    """Mean over four neighbours (M, 4, C) of the sigmoid."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor) -> Tensor:
        kept = torch.sigmoid(windows)
        ctx.save_for_backward(kept)
        return (kept[:, 0] + kept[:, 1]).add_(kept[:, 2]).add_(kept[:, 3]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.sigmoid_backward((gradient * 0.25).unsqueeze(1).expand_as(kept), kept)
        return slope
