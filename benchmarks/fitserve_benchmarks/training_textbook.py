"""The training loop of the textbooks, which ours is measured against: clear, usual, and slow for small models.

A dataset transforms each example when it is asked for, a DataLoader collates them, and every step reads its loss and
its right answers back.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images of bytes (N, H, W) with labels; an example becomes float (1, H, W) in 0..1 when it is asked for.

    Args:
        images: uint8 (N, H, W).
        labels: (N,).
        transform: `picture` as torchvision's data sets and ToTensor have it: array, then PIL picture, then tensor;
            `tensor` leaves the picture out, which is less work than the textbooks do.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: str = "picture") -> None:
        self._images, self._labels = images, labels.tolist()
        self._transform = {"picture": _through_picture, "tensor": _scaled}[transform]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._transform(self._images[place]), self._labels[place]


def _through_picture(image_HW: Tensor) -> Tensor:
    picture = Image.fromarray(image_HW.numpy())
    return _scaled(torch.from_numpy(np.array(picture, copy=True)))


def _scaled(image_HW: Tensor) -> Tensor:
    return image_HW.unsqueeze(0).contiguous().to(torch.float32).div(255)


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
