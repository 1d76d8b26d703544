"""Examples of a known linear law with noise. Shapes: N examples, D inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.seeding import generator


def load_linear(weights: Sequence[float], bias: float, noise_sd: float, example_count: int, seed: int) -> DataSet:
    """Draws y = x·w + b + noise with x ~ N(0, 1): `example_count` examples to train on, as many fresh ones held out.

    Source: Zhang et al., Dive into Deep Learning, section "Synthetic Regression Data".
    """
    train, held_out = (_draw(weights, bias, noise_sd, example_count, seed, part) for part in ("train", "held_out"))
    return DataSet(
        name="synthetic",
        source=f"y = x·{list(weights)} + {bias} + noise of sd {noise_sd:g}, {example_count:,} examples, seed {seed}",
        train=train,
        held_out=held_out,
    )


def _draw(weights: Sequence[float], bias: float, noise_sd: float, count: int, seed: int, part: str) -> Split:
    stream = generator(seed, "data", part)
    x_ND = torch.randn(count, len(weights), generator=stream)
    noise_N1 = torch.randn(count, 1, generator=stream) * noise_sd
    return Split((x_ND,), x_ND @ torch.tensor(weights).reshape(-1, 1) + bias + noise_N1)
