"""Small nets for pictures and sound, of the families that people serve.

Shapes: N rows, C channels, H W space, T time.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES: Final = 5


def mlp() -> nn.Module:
    """Maps (N, 16) to logits, with batch norms in evaluation mode."""
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, CLASSES))


def lenet() -> nn.Module:
    """Maps (N, 1, 28, 28) to logits."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Sigmoid(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, CLASSES), nn.Softmax(-1),
    )  # fmt: skip


class View(nn.Module):
    """A CNN that flattens by `view(x.size(0), -1)`, as old tutorials do, with `x.size(0)` in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8 * 7 * 7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 16, 16) to log-probabilities."""
        features = functional.max_pool2d(functional.relu(self.conv(x)), 1)
        return functional.log_softmax(self.head(features.view(features.size(0), -1)), dim=1)


class Residual(nn.Module):
    """A block of a ResNet."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Adds the body to the shortcut."""
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """Maps (N, 3, 32, 32) to logits."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1),
        Residual(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


class Squeezed(nn.Module):
    """MobileNet's block: depthwise convolution, squeeze and excitation, hard swish."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        y = functional.hardswish(self.norm(self.depthwise(x)))
        scale = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + functional.relu6(self.pointwise(y * scale))


def mobilenet() -> nn.Module:
    """Maps (N, 3, 16, 16) to logits."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), Squeezed(8), Squeezed(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )


class UNet(nn.Module):
    """Segments: a path down, a path up by transposed convolution and interpolation, and a bridge."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, 2, 1)
        self.bottom = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.LeakyReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 1, 16, 16) to (N, 2, 16, 16)."""
        first = functional.relu(self.down(x))
        joined = torch.cat([self.up(self.bottom(first)), first], dim=1)
        wide = functional.interpolate(joined, scale_factor=2.0, mode="bilinear", align_corners=False)
        segments: Tensor = self.head(wide)
        return segments


class ChannelsLastNorm(nn.Module):
    """ConvNeXt's layer norm over channels: permutes there and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, C, H, W)."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """Maps (N, 3, 16, 16) to logits."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ChannelsLastNorm(8), nn.Conv2d(8, 8, 7, padding=3, groups=8), ChannelsLastNorm(8),
        nn.Conv2d(8, 32, 1), nn.GELU(), nn.Conv2d(32, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


class Mixer(nn.Module):
    """An MLP mixer over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.tokens = nn.Linear(16, 16)
        self.channels = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 16, 16) to logits."""
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = y + self.tokens(self.norm(y).transpose(1, 2)).transpose(1, 2)
        y = y + functional.gelu(self.channels(self.norm(y)))
        logits: Tensor = self.head(y.mean(1))
        return logits


class Windows(nn.Module):
    """Swin's attention in windows: the windows of all rows are folded into the first axis and unfolded again."""

    def __init__(self, *, is_shifted: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(2, 16, 16))
        self.is_shifted = is_shifted

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, 8, 8, 8): height, width, channels."""
        n = x.shape[0]
        y = torch.roll(x, (-2, -2), (1, 2)) if self.is_shifted else x
        windows = y.view(n, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8)
        q, k, v = self.qkv(windows).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = torch.softmax(q @ k.transpose(-1, -2) / 2.0 + self.bias, -1) @ v
        merged = self.out(attended.transpose(1, 2).reshape(-1, 16, 8))
        back = merged.view(n, 2, 2, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, 8)
        return x + (torch.roll(back, (2, 2), (1, 2)) if self.is_shifted else back)


class Detector(nn.Module):
    """A one-stage detector's head: boxes and scores by cell, and the best three of each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 5, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, 3, 16, 16) to boxes (N, 3, 4) and scores (N, 3)."""
        cells = self.head(x).flatten(2).transpose(1, 2)
        scores, best = cells[..., 4].sigmoid().topk(3, dim=1)
        return torch.gather(cells[..., :4], 1, best.unsqueeze(-1).expand(-1, -1, 4)), scores


class Shuffled(nn.Module):
    """ShuffleNet's channel shuffle, a pixel shuffle, and a bicubic resize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 8, 6, 6) to (N, 2, 24, 24)."""
        y = self.conv(x).view(x.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(x.shape[0], 8, 6, 6)
        return functional.interpolate(functional.pixel_shuffle(y, 2), size=(24, 24), mode="bicubic")


class Sound(nn.Module):
    """A speech encoder as Whisper's: two convolutions over time, sines as positions, a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(10, 16, 3, padding=1)
        self.second = nn.Conv1d(16, 16, 3, stride=2, padding=1)
        self.positions = nn.Buffer(torch.sin(torch.arange(10 * 16.0)).view(10, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")

    def forward(self, mel: Tensor) -> Tensor:
        """Maps (N, 10, 20) to (N, 10, 16)."""
        y = functional.gelu(self.second(functional.gelu(self.first(mel)))).transpose(1, 2)
        encoded: Tensor = self.block(y + self.positions)
        return encoded


class PeakOfRow(nn.Module):
    """Divides each row by its own peak and clamps at its own floor: what the coupled one does wrong, done right."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, C, T)."""
        peak = x.abs().amax(dim=(1, 2), keepdim=True)
        return torch.maximum(x / (peak + 1e-6), peak.log1p() - 8.0)
