"""What is computed by hand is what autograd and the optimizer compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fitserve_training.cross_entropy import cross_entropy
from fitserve_training.data.dataset import Batch, Split
from fitserve_training.derived import derived_gradient, plain_descent
from fitserve_training.objectives import Classification, MultiLabel
from fitserve_training.stepping import make_gradient

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.floats(0.1, 1), st.integers(0, 2**31))
def test_the_derived_gradient_is_autograds(count: int, inputs: int, classes: int, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    derived, usual = (nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double() for _ in range(2))
    usual.load_state_dict(derived.state_dict())
    batch = Batch((torch.randn(count, 1, inputs).double(),), torch.randint(0, classes, (count,)))
    by_hand, by_autograd = derived_gradient(derived, Classification(), OFF), make_gradient(usual, Classification(), OFF)
    sums, expected_sums = torch.zeros(2).double(), torch.zeros(2).double()
    assert by_hand is not None

    for _ in range(2):  # the second adds to what the first left
        loss, expected = by_hand(batch, sums, share), by_autograd(batch, expected_sums, share)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(sums, expected_sums)
    for a, b in zip(derived.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_only_one_linear_layer_under_cross_entropy_is_derived() -> None:
    model, smoothed = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), Classification(0.1)
    on = torch.autocast("cpu", torch.bfloat16)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(4, 3).requires_grad_(False))

    assert derived_gradient(model, Classification(), OFF) is not None
    assert derived_gradient(model, smoothed, OFF) is None
    assert derived_gradient(model, MultiLabel(3), OFF) is None
    assert derived_gradient(model, Classification(), on) is None
    assert derived_gradient(frozen, Classification(), OFF) is None
    assert derived_gradient(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), Classification(), OFF) is None
    assert derived_gradient(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), Classification(), OFF) is None


def test_plain_descent_is_the_optimizers_to_the_last_bit() -> None:
    torch.manual_seed(0)
    ours, usual = (nn.Sequential(nn.Linear(37, 11), nn.Linear(11, 3)) for _ in range(2))
    usual.load_state_dict(ours.state_dict())
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    update, reference = plain_descent(optimizer), torch.optim.SGD(usual.parameters(), lr=0.1, fused=True)
    assert update is not None

    for lr in (0.1, 0.03):  # a schedule changes the rate of the group
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = lr
        for a, b in zip(ours.parameters(), usual.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        update()
        reference.step()

    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), usual.parameters(), strict=True))


@pytest.mark.parametrize("settings_", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}])
def test_descent_with_anything_more_is_the_optimizers(settings_: dict[str, Any]) -> None:
    parameters = list(nn.Linear(2, 2).parameters())

    assert plain_descent(torch.optim.SGD(parameters, lr=0.1, **settings_)) is None
    assert plain_descent(torch.optim.Adam(parameters)) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 80), st.integers(0, 2**31))
def test_cross_entropy_is_torchs(count: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = (torch.randn(count, classes) * 30).double().requires_grad_()
    targets = torch.randint(0, classes, (count,))

    found, expected = cross_entropy(logits, targets), functional.cross_entropy(logits, targets)

    torch.testing.assert_close(found, expected)
    (slope,), (expected_slope,) = (torch.autograd.grad(3 * loss, logits) for loss in (found, expected))
    torch.testing.assert_close(slope, expected_slope)


def test_packed_pictures_give_the_same_batches_from_a_fourth_of_the_memory() -> None:
    greys = torch.randint(0, 256, (2100, 1, 3, 2), dtype=torch.uint8)
    split = Split((greys.float().div(255),), torch.arange(2100))
    packed, places = split.packed(), torch.tensor([5, 2099, 0])

    assert packed.inputs[0].dtype == torch.uint8
    assert torch.equal(packed.take(places).inputs[0], split.take(places).inputs[0])
    assert torch.equal(packed.whole().inputs[0], split.inputs[0])
    for a, b in zip(packed.chunks(1000), split.chunks(1000), strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0])
    assert packed.packed() is packed


@pytest.mark.parametrize("value", [0.5, -1 / 255, 256 / 255, float("nan")])
def test_what_is_no_grey_is_not_packed(value: float) -> None:
    pictures = torch.zeros(3, 1, 2, 2)
    pictures[2, 0, 1, 1] = value
    split = Split((pictures,), torch.zeros(3))

    assert split.packed() is split
