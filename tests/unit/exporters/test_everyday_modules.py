"""Modules as people write them: published, served as torch answers, and left as they were."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from everyday_modules import MODULES, Everyday, Keeps, check_served, publish, rows
from torch import nn

import fitserve_exporters
from fitserve_contract.repository import MODEL_FILE
from fitserve_exporters.candidate.module_copy import on_cpu
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.names import name_ends
from fitserve_exporters.graph.quiet import quiet

QUICK = ("LSTM with states", "padded encoder", "keyword-only", "keeps", "half inside")
"""The rest are in tests/slow."""


@pytest.mark.filterwarnings("ignore")  # torch's own on nested tensors
@pytest.mark.parametrize("name", QUICK)
def test_module_is_served_as_torch_answers(tmp_path: Path, name: str) -> None:
    published, module = publish(MODULES[name], tmp_path)
    check_served(MODULES[name], published, module)


def test_moved_batches_and_dropped_outputs_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published, _ = publish(MODULES["keyword-only"], tmp_path)
    assert published.manifest.onnx["notes"] == ["output 'masked' is None and left out"]
    assert "Keyword: output 'masked' is None and left out" in caplog.text


def test_bfloat16_weights_become_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3).bfloat16()
    case = Everyday(lambda: module, rows(4).bfloat16())
    published, _ = publish(case, tmp_path)
    assert "bfloat16 weights are exported as float32" in published.manifest.onnx["notes"][0]
    check_served(Everyday(lambda: module, rows(4)), published, module.float())


def test_module_and_torch_are_left_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Keeps().train()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kept, lock, state = module.last, module.lock, torch.get_rng_state()
    hooks = dict(module.layer._forward_hooks)
    fitserve_exporters.export(module, rows(4), tmp_path, "m")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() is torch.float32
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()
    assert module.training
    assert module.last is kept
    assert module.lock is lock
    assert dict(module.layer._forward_hooks) == hooks
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert nn.utils.parametrize.is_parametrized(module.layer)
    assert {name: torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items()} == dict.fromkeys(
        weights, True
    )
    module(rows(4)).sum().backward()


def test_hooks_that_change_nothing_never_meet_the_tracer(tmp_path: Path) -> None:
    features: list[torch.Tensor] = []
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    module[0].register_forward_hook(lambda _, __, output: features.append(output))
    fitserve_exporters.export(module, rows(4), tmp_path, "m")
    assert [type(feature) for feature in features] == [torch.Tensor]


def test_hooks_that_change_the_answer_are_exported(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda _, __, output: output + 1)
    published = fitserve_exporters.export(module, rows(4), tmp_path, "m")
    check_served(Everyday(lambda: module, rows(4)), published, module.eval())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own on the old norms
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ],
)
def test_normalized_weights_are_baked_into_the_copy_alone(norm: Any) -> None:
    torch.manual_seed(0)
    module = norm(nn.Linear(4, 4))
    module(rows(4))
    names = [name for name, _ in module.named_parameters()]
    copied = on_cpu(module)
    assert sorted(name for name, _ in copied.named_parameters()) == ["bias", "weight"]
    torch.testing.assert_close(copied(rows(4)), module.eval()(rows(4)))
    assert [name for name, _ in module.named_parameters()] == names


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (nn.LSTM(4, 8, proj_size=3, batch_first=True), rows(6, 4), "an LSTM with proj_size has no ONNX form; use"),
        (None, rows(6, 4), "a packed sequence has no ONNX form; give the recurrent layer the padded"),
    ],
)
def test_layers_without_onnx_form_are_refused_with_the_way_round(
    tmp_path: Path, module: nn.Module | None, example: torch.Tensor, message: str
) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 8, batch_first=True)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.gru(packed)[1][-1]

    given: Any = example if module else [example, torch.tensor([6, 2, 3, 1, 6])]
    with pytest.raises(ExportError, match=message):
        fitserve_exporters.export(module or Packed(), given, tmp_path, "m")


def test_values_give_way_to_the_names_of_inputs_and_outputs() -> None:
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Neg", ["in"], ["y"]),
        onnx.helper.make_node("Add", ["y", "module.module.w"], ["out"]),
    ]
    ends = value("in", 1, ["n", 1]), value("out", 1, ["n", 1])
    weight = onnx.numpy_helper.from_array(np.ones(1, np.float32), "module.module.w")
    graph = onnx.helper.make_graph(nodes, "g", [ends[0]], [ends[1]], [weight])
    model = onnx.helper.make_model(graph, ir_version=10)
    name_ends(model, ["w"], ["y"])
    assert [list(node.input) + list(node.output) for node in model.graph.node] == [["w", "y__1"], ["y__1", "w__1", "y"]]
    assert [tensor.name for tensor in model.graph.initializer] == ["w__1"]
    onnx.checker.check_model(model, full_check=True)


def test_weights_keep_the_names_of_the_module(tmp_path: Path) -> None:
    published = fitserve_exporters.export(nn.Sequential(nn.Linear(4, 2)), rows(4), tmp_path, "m")
    names = [tensor.name for tensor in onnx.load(published.folder / MODEL_FILE).graph.initializer]
    assert names == ["0.weight", "0.bias"]


def test_nothing_of_torch_reaches_the_terminal_while_a_graph_is_made(capfd: pytest.CaptureFixture[str]) -> None:
    loud, streams = logging.getLogger("torch.fx.loud"), io.StringIO()
    for name in ("torch", "torch.fx.loud"):
        logging.getLogger(name).addHandler(logging.StreamHandler(streams))
    try:
        with quiet():
            loud.error("log")
            logging.getLogger("torch.made_meanwhile").error("log")
            print("python")
            os.write(1, b"c++")
            os.write(2, b"c++")
            print("error", file=sys.stderr)
        assert streams.getvalue() == ""
        loud.error("after")
        assert streams.getvalue() == "after\nafter\n"
    finally:
        for name in ("torch", "torch.fx.loud"):
            logging.getLogger(name).handlers.pop()
    print("heard")
    printed = capfd.readouterr()
    assert (printed.out, "c++" in printed.err, "error" in printed.err) == ("heard\n", False, False)


@pytest.fixture(autouse=True)
def _no_numbers_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob(".staging-*"))
