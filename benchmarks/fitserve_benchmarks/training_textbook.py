"""The training loop of the textbooks, which ours is measured against: clear, usual, and slow for small models.

A dataset transforms each example when it is asked for, a DataLoader collates them, and every step reads its loss and
its right answers back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images of bytes (N, H, W) with labels; an example becomes float (1, H, W) in 0..1 when it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._images[place].unsqueeze(0).to(torch.float32).div(255), self._labels[place]


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[Tensor, int]]
) -> tuple[float, float]:
    """Trains one epoch; gives mean loss and accuracy."""
    model.train()
    total_loss, right, count = 0.0, 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad()
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += loss.item() * len(labels)
        right += (logits.argmax(dim=1) == labels).sum().item()
        count += len(labels)
    return total_loss / count, right / count
