"""Features of a frozen encoder: computed once, with the losses of the plain path, and only where a head can be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import coloured_pictures, picture_checkpoint

from fitserve_training import launch, rundir
from fitserve_training.data.dataset import Split
from fitserve_training.encoders.features import frozen_part
from fitserve_training.encoders.picture_classifier import HeadedEncoder
from fitserve_training.launch import Request, train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_pictures(tmp_path_factory.mktemp("pictures"), 10, 60)


@pytest.mark.parametrize(("kind", "precision"), [("vit", "float32"), ("resnet", "float32"), ("vit", "bfloat16")])
def test_losses_and_weights_are_those_of_the_plain_path(
    kind: str, precision: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    weights, said = picture_checkpoint(tmp_path / "weights", kind), []
    changes: dict[str, Any] = {"data.name": str(pictures), "model.weights": str(weights), "model.frozen": True}
    changes |= {"threads": 1, "batch_size": 4, "epochs": 3, "lr": 1e-2, "clip_norm": 0.5, "precision": precision}
    quick = train(Request("picture-encoder", tmp_path / "quick", changes=changes), said.append)
    monkeypatch.setattr(launch, "frozen_part", lambda _model, _split: None)
    plain = train(Request("picture-encoder", tmp_path / "plain", changes=changes), lambda _line: None)

    assert any("features of the frozen encoder are computed once" in line for line in said)
    tolerance = 1e-5 if precision == "float32" else 2e-2
    for found, expected in zip(*(rundir.read_lines(run / rundir.METRICS) for run in (quick, plain)), strict=True):
        for key in ("train_loss", "test_loss"):
            assert found[key] == pytest.approx(expected[key], rel=tolerance)
    states = [load_file(run / rundir.WEIGHTS) for run in (quick, plain)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=tolerance, atol=tolerance)


class Network(torch.nn.Module):
    """A body and a head, with something behind the head or not."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.body, self.head, self.factor = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) * self.factor


class Encoder(HeadedEncoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(x)
        return outputs


def test_only_a_head_that_makes_the_outputs_alone_is_cut_off() -> None:
    split = Split((torch.randn(9, 3),), torch.zeros(9, dtype=torch.int64))
    model = Encoder(Network(1.0), ("head",), True)
    part = frozen_part(model, split)
    assert part is not None
    features = part.encode(split, torch.autocast("cpu", enabled=False)).inputs[0]
    torch.testing.assert_close(part.head(features), model(split.inputs[0]))
    assert model.training
    assert frozen_part(Encoder(Network(2.0), ("head",), True), split) is None, "something follows the head"
    assert frozen_part(Encoder(Network(1.0), ("head",), False), split) is None, "the encoder is trained"
    assert frozen_part(Encoder(Network(1.0), ("head", "body"), True), split) is None, "two parts learn"
    assert frozen_part(Network(1.0), split) is None
    padded = Split(split.inputs, split.targets, torch.ones(9, dtype=torch.int64))
    assert frozen_part(model, padded) is None
