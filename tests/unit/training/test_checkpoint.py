"""Checkpoints: bit for bit, whole or not at all, and never of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fitserve_training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from fitserve_training.config import RunConfig
from fitserve_training.errors import UsageError
from fitserve_training.optim import make_optimizer

OPTIMIZERS = ["sgd", "adam", "adamw", "adamax", "adagrad", "asgd", "rmsprop", "rprop"]


def trained(config: RunConfig, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = make_optimizer(model.parameters(), config)
    advance(model, optimizer, range(steps))
    return model, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_ends_at_the_same_bits(name: str, tmp_path: Path) -> None:
    config = RunConfig(optimizer=name, lr=0.01, momentum=0.9 if name in ("sgd", "rmsprop") else 0.0)
    straight, straight_optimizer = trained(config, 6)
    halfway, halfway_optimizer = trained(config, 3)
    save_checkpoint(tmp_path / "last.safetensors", halfway, halfway_optimizer, {"epoch": 3})

    resumed, resumed_optimizer = trained(config, 0)
    assert load_checkpoint(tmp_path / "last.safetensors", resumed, resumed_optimizer) == {"epoch": 3}
    advance(resumed, resumed_optimizer, range(3, 6))

    for (key, expected), found in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, found), key
    assert resumed_optimizer.state_dict()["param_groups"] == straight_optimizer.state_dict()["param_groups"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", nn.Linear(3, 4))

    with pytest.raises(UsageError, match=r"of another model: 'bias' expected shape \(5,\), got \(4,\)"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(3, 5))


def test_weights_are_no_checkpoint(tmp_path: Path) -> None:
    model, optimizer = trained(RunConfig(), 0)
    save_weights(tmp_path / "w.safetensors", model)

    with pytest.raises(UsageError, match="expected format fitserve-checkpoint-1, got pt"):
        load_checkpoint(tmp_path / "w.safetensors", model, optimizer)


@pytest.mark.parametrize("kept", [0, 7, 40, -1])
def test_a_truncated_file_is_named(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(3, 4))
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(UsageError, match="cannot be read") as caught:
        load_weights(path, nn.Linear(3, 4))

    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.safetensors: cannot be read"):
        load_weights(tmp_path / "absent.safetensors", nn.Linear(1, 1))


def test_nothing_is_left_beside_a_checkpoint(tmp_path: Path) -> None:
    model, optimizer = trained(RunConfig(), 1)
    save_checkpoint(tmp_path / "last.safetensors", model, optimizer, {"epoch": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_weights_of_channels_last_come_back_with_their_strides(tmp_path: Path) -> None:
    def convolution() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module, make_optimizer(module.parameters(), RunConfig(lr=0.1, momentum=0.9))

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        module(torch.ones(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (straight, optimizer), (resumed, other) = convolution(), convolution()
    step(straight, optimizer)
    save_checkpoint(tmp_path / "c", straight, optimizer, {"epoch": 1})
    load_checkpoint(tmp_path / "c", resumed, other)
    step(straight, optimizer)
    step(resumed, other)

    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
        assert b.stride() == a.stride() == other.state[b]["momentum_buffer"].stride()


def test_a_rate_that_is_a_tensor_comes_back_as_one(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = make_optimizer(model.parameters(), RunConfig(), torch.tensor(0.25))
    save_checkpoint(tmp_path / "c", model, optimizer, {"epoch": 1})
    other = make_optimizer(model.parameters(), RunConfig(), torch.tensor(0.5))

    load_checkpoint(tmp_path / "c", model, other)

    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(0.25))
