"""Layers in the form that a CPU is quick at are the layers they stand for, forward and backward."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fitserve_training.blocks import block_kernel_index, pooled_sigmoid_convolution, space_to_depth
from fitserve_training.config import RunConfig
from fitserve_training.recipes.lenet import build_model


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3, 5]), st.integers(1, 3), st.integers(0, 2**31))
def test_a_block_of_two_gives_the_pooled_picture(
    channels: int, outputs: int, kernel: int, count: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(channels, outputs, kernel).double()
    side = 2 * 3 + kernel - 1
    images = torch.randn(count, channels, side, side, dtype=torch.float64, requires_grad=True)
    index = block_kernel_index(outputs, channels, kernel, block=2)

    plain = nn.functional.avg_pool2d(torch.sigmoid(layer(images)), 2)
    found = pooled_sigmoid_convolution(space_to_depth(images, 2), layer.weight, layer.bias, index)

    assert found.shape == plain.shape
    torch.testing.assert_close(found, plain)
    for a, b in zip(
        gradients(found, images, layer.weight, layer.bias),
        gradients(plain, images, layer.weight, layer.bias),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_lenet_trains_by_blocks_to_the_gradients_of_its_layers() -> None:
    torch.manual_seed(0)
    model = build_model(RunConfig()).double()
    images = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    parameters = list(model.parameters())

    by_blocks = model(images)
    by_layers = model.eval()(images)

    torch.testing.assert_close(by_blocks, by_layers, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(by_blocks, *parameters), gradients(by_layers, *parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_blocks_add_nothing_to_the_state() -> None:
    model = build_model(RunConfig())
    assert sum(p.numel() for p in model.parameters()) == 61_706
    assert list(model.state_dict()) == [f"{i}.{name}" for i in (0, 3, 7, 9, 11) for name in ("weight", "bias")]
