"""From a module to one ONNX file."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec
from fitserve_exporters.candidate.module_copy import on_cpu
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.onnx_export import IR_VERSION, OPSET, describe, export_onnx


def candidate(module: nn.Module, arrays: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)) -> Candidate:
    inputs = tuple(
        InputSpec(name, torch.from_numpy(array[:0]).dtype, ("batch", *array.shape[1:]))
        for name, array in arrays.items()
    )
    return Candidate(module, inputs, outputs, HeldOut(arrays, None, "made up"))


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * k, (x + k).sum(dim=1)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_exported_model_has_the_names_a_free_batch_and_our_versions() -> None:
    content = export_onnx(candidate(nn.Linear(3, 2), {"x": rows(5, 3)}))
    model = onnx.load_model_from_string(content)
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("x", ["batch", 3])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("y", ["batch", 2])]
    assert session.run(None, {"x": rows(9, 3)})[0].shape == (9, 2)


def test_same_weights_give_the_same_bytes() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    given = candidate(module, {"image": rows(3, 1, 8, 8)})
    assert export_onnx(given) == export_onnx(given)


def test_file_names_nothing_of_the_exporting_machine() -> None:
    content = export_onnx(candidate(nn.Linear(3, 2), {"x": rows(5, 3)}))
    for trace in (b".py", b"stack_trace", b"torch/", torch.__file__.rpartition("/")[0].encode()):
        assert trace not in content


def test_several_inputs_and_outputs_keep_their_order() -> None:
    given = candidate(TwoInputs(), {"x": rows(4, 3), "k": rows(4, 3)}, ("product", "total"))
    session = onnxruntime.InferenceSession(export_onnx(given), providers=["CPUExecutionProvider"])
    x, k = rows(6, 3), rows(6, 3) + 1
    product, total = session.run(["product", "total"], {"k": k, "x": x})
    np.testing.assert_allclose(product, x * k, rtol=1e-6)
    np.testing.assert_allclose(total, (x + k).sum(1), rtol=1e-6)


def test_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    export_onnx(candidate(module, {"x": rows(5, 3)}))
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_dropout_is_not_exported() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9)).train()
    assert describe(export_onnx(candidate(module, {"x": rows(5, 3)})))["operators"] == {"Gemm": 1}


def test_single_example_is_enough_to_trace() -> None:
    content = export_onnx(candidate(nn.Linear(3, 2), {"x": rows(1, 3)}))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": rows(7, 3)})[0].shape == (7, 2)


def test_wrapper_of_torch_compile_is_unwrapped() -> None:
    compiled = torch.compile(nn.Linear(3, 2), backend="eager")
    assert isinstance(compiled, nn.Module)
    assert isinstance(on_cpu(compiled), nn.Linear)


def test_data_dependent_branch_is_one_sentence_with_the_cure() -> None:
    with pytest.raises(ExportError, match=r"cannot trace Branches: .*torch\.where or torch\.cond") as caught:
        export_onnx(candidate(Branches(), {"x": rows(5, 3)}))
    assert "\n" not in str(caught.value)


def test_module_that_fixes_its_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3) * torch.ones(2, 3)

    with pytest.raises(ExportError, match=r"the first axis of .* the constant 2") as caught:
        export_onnx(candidate(Fixed(), {"x": rows(5, 3)}))
    assert "\n" not in str(caught.value)


def test_wrong_number_of_outputs_is_refused() -> None:
    with pytest.raises(ExportError):
        export_onnx(candidate(TwoInputs(), {"x": rows(4, 3), "k": rows(4, 3)}, ("only",)))


def test_description_counts_parameters_and_operators() -> None:
    facts = describe(export_onnx(candidate(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), {"x": rows(4, 2, 3)})))
    assert facts["parameter_count"] == 14
    assert facts["opset"] == {"ai.onnx": OPSET}
    assert facts["operators"]["Gemm"] == 1


def test_free_axes_beside_the_batch_keep_their_names() -> None:
    class Pooled(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (ids * mask).sum(dim=1, keepdim=True).float()

    shape = ("batch", "sequence")
    inputs = tuple(InputSpec(name, torch.int64, shape) for name in ("ids", "mask"))
    held_out = HeldOut({"ids": np.ones((4, 6), np.int64), "mask": np.ones((4, 6), np.int64)}, None, "ones")
    content = export_onnx(Candidate(Pooled(), inputs, ("y",), held_out))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [value.shape for value in session.get_inputs()] == [["batch", "sequence"]] * 2
    assert [value.shape for value in session.get_outputs()] == [["batch", 1]]
    ids = np.ones((3, 11), np.int64)
    assert session.run(None, {"ids": ids, "mask": ids})[0].tolist() == [[11.0]] * 3


def test_free_axis_may_end_at_a_table_of_the_model() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[1] <= 32
            return (x.unsqueeze(2) + self.table.weight[: x.shape[1]]).mean(dim=1)

    inputs = (InputSpec("x", torch.float32, ("batch", "sequence")),)
    content = export_onnx(Candidate(Positions(), inputs, ("y",), HeldOut({"x": rows(4, 6)}, None, "made up")))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": rows(3, 20)})[0].shape == (3, 4)


def test_branch_on_the_number_of_examples_is_refused() -> None:
    class Few(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[0] > 3 else x + 1

    with pytest.raises(ExportError, match="cannot trace Few: UserError: Not all values of batch"):
        export_onnx(candidate(Few(), {"x": rows(5, 3)}))


def test_module_that_gives_its_input_back_is_served_with_two_names() -> None:
    content = export_onnx(candidate(nn.Identity(), {"x": rows(5, 3)}))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["y"], {"x": rows(4, 3)})[0], rows(4, 3))


def test_an_onnx_that_is_unsafe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "__version__", "1.20.1")
    with pytest.raises(ExportError, match=r"^onnx: expected at least 1\.21, got 1\.20\.1$"):
        export_onnx(candidate(nn.Linear(3, 2), {"x": rows(5, 3)}))
