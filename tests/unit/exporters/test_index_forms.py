"""An index that torch refuses is refused while serving, too; others are looked up as in torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fitserve_exporters
from fitserve_contract.repository import MODEL_FILE
from fitserve_exporters.graph.onnx_forms import OnnxForms

TABLE = torch.arange(21.0).reshape(7, 3)

LOOK_UPS: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding": lambda index: functional.embedding(index, TABLE, padding_idx=0),
    "gather": lambda index: TABLE.T[:1].expand(index.shape[0], 7).gather(1, index),
    "one_hot": lambda index: functional.one_hot(index, 7).float(),
}


class LooksUp(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, index: Tensor) -> Tensor:
        return self.function(index)


@pytest.mark.parametrize("name", LOOK_UPS)
def test_index_that_torch_refuses_is_refused(tmp_path: Path, name: str) -> None:
    module, index = LooksUp(LOOK_UPS[name]), torch.tensor([[0, 6, 2], [1, 1, 5], [3, 4, 0]])
    published = fitserve_exporters.export(module, index, tmp_path, "m")
    assert published.manifest.onnx["joining"] == "joinable"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession((published.folder / MODEL_FILE).read_bytes(), options)
    np.testing.assert_array_equal(session.run(None, {"index": index.numpy()})[0], module(index).numpy())
    for wrong in (-1, -7, 7):
        with pytest.raises((IndexError, RuntimeError)):
            module(torch.full((1, 3), wrong))
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            session.run(None, {"index": np.full((1, 3), wrong)})


def test_index_that_torch_counts_from_the_end_is_looked_up() -> None:
    with OnnxForms():
        assert torch.take_along_dim(TABLE, torch.full((7, 1), 2), 1).tolist() == TABLE[:, 2:].tolist()
    assert torch.take_along_dim(TABLE, torch.full((7, 1), -1), 1).tolist() == TABLE[:, 2:].tolist()


def test_other_calls_are_torchs_own() -> None:
    index = torch.tensor([[0, 2], [1, 1]])
    with OnnxForms():
        assert torch.equal(functional.one_hot(index), torch.eye(3, dtype=torch.int64)[index])
        normed = functional.embedding(index, TABLE.clone(), max_norm=1.0)
        assert functional.embedding(index.int(), TABLE).dtype is torch.float32
        assert torch.equal(TABLE.gather(0, index.to(torch.int64)), torch.tensor([[0.0, 7.0], [3.0, 4.0]]))
    assert torch.equal(normed, functional.embedding(index, TABLE.clone(), max_norm=1.0))
