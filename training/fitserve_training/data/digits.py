"""scikit-learn's bundled handwritten digits: 1,797 real images of 8×8 pixels, brought to 28×28.

Source: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), as sklearn.datasets.load_digits has
it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.fashion_mnist import images_from_bytes

_LARGEST_GREY = 16
_SIZE = 28
_HELD_OUT_EVERY = 5


def load() -> DataSet:
    """Brings the digits to (N, 1, 28, 28) in 0..1; every fifth example is held out.

    The enlarged images are rounded to 256 greys, so that a PNG of one is the very example.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images.astype(np.float32) / _LARGEST_GREY).unsqueeze(1)
    large = functional.interpolate(small, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
    images = images_from_bytes((large.squeeze(1) * 255).round().to(torch.uint8).numpy())
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    is_held_out = torch.arange(len(labels)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    train, held_out = (Split((images[rows],), labels[rows]) for rows in (~is_held_out, is_held_out))
    return DataSet(
        name="digits",
        source=f"scikit-learn's digits ({len(train):,} training and {len(held_out)} test images, 8×8 brought to 28×28)",
        train=train,
        held_out=held_out,
        class_names=tuple(str(digit) for digit in range(10)),
        note="the published figures belong to Fashion-MNIST: no published band for digits",
    )
