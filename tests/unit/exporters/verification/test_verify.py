"""ONNX Runtime against eager torch: the figures, and what speaks against a version."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.graph.onnx_export import export_onnx
from fitserve_exporters.reference import TorchReference
from fitserve_exporters.report import verification_text
from fitserve_exporters.sessions import CPU, sessions_here
from fitserve_exporters.verification.judge import objections
from fitserve_exporters.verification.sampling import batch_sizes, sampled_indices
from fitserve_exporters.verification.verify import Verification, verify

CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b", "c"))


def classifier(example_count: int = 300, *, task: Task | None = CLASSES, module: nn.Module | None = None) -> Candidate:
    torch.manual_seed(0)
    module = module or nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    x = np.random.default_rng(0).standard_normal((example_count, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, example_count)
    held_out = HeldOut({"x": x}, labels, "made up", "ab" * 32)
    return Candidate(module, (InputSpec("x", torch.float32, ("batch", 5)),), ("y",), held_out, task)


def verified(candidate: Candidate, *changes: Callable[[onnx.ModelProto], None]) -> Verification:
    model = onnx.load_model_from_string(export_onnx(candidate))
    for change in changes:
        change(model)
    return verify(candidate, sessions_here(model.SerializeToString()))


def scale_last_weights(factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [3, 16])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))

    return change


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 5, 6]), (11, [1, 2, 7, 11]), (10_000, [1, 2, 7, 256])],
)
def test_batch_sizes_are_one_two_odd_and_the_largest(count: int, sizes: list[int]) -> None:
    assert batch_sizes(min(count, 256)) == sizes


def test_faithful_export_is_verified_at_every_batch_size() -> None:
    record = verified(classifier())
    assert objections(record) == []
    figures = record.providers[0]
    assert figures.provider == CPU
    assert [(batch.batch_size, batch.example_count) for batch in figures.batches] == [
        (1, 16),
        (2, 32),
        (7, 112),
        (256, 256),
    ]
    assert all(batch.outputs["y"].max_abs_diff < 1e-6 for batch in figures.batches)
    assert figures.agreement is not None
    assert figures.agreement.same_count == 300


def test_accuracy_of_both_is_counted_on_the_full_held_out_set() -> None:
    candidate = classifier(700)
    record = verified(candidate)
    with torch.inference_mode():
        scores = candidate.module(torch.from_numpy(candidate.held_out.inputs["x"])).numpy()
    expected = int((scores.argmax(1) == candidate.held_out.labels).sum())
    for metrics in (record.torch_metrics, record.providers[0].metrics):
        assert metrics is not None
        assert (metrics["correct_count"], metrics["example_count"]) == (expected, 700)


def test_changed_weights_are_over_the_tolerance() -> None:
    record = verified(classifier(), scale_last_weights(1.001))
    reasons = objections(record)
    assert len(reasons) >= 4
    assert "output 'y' at batch size 1 on CPUExecutionProvider: expected |onnxruntime - float64| <= " in reasons[0]
    assert "elements are beyond" in reasons[0]


def test_answers_that_differ_beyond_ties_are_an_objection() -> None:
    def swap_classes(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if list(tensor.dims)[:1] == [3]:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))

    record = verified(classifier(), swap_classes)
    agreement = record.providers[0].agreement
    assert agreement is not None
    assert len(agreement.differences) > 100
    assert agreement.same_count + len(agreement.differences) + len(agreement.tie_differences) == 300
    assert any("expected torch's on every example but ties" in reason for reason in objections(record))


class Tied(nn.Module):
    """Gives its first two classes the same score but for rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = x.sum(dim=1, keepdim=True)
        return torch.cat([top, top, top - 1], dim=1)


def test_ties_are_listed_and_no_objection() -> None:
    def lift_second_class(model: onnx.ModelProto) -> None:
        output = model.graph.node[-1]
        output.output[0] = "before"
        shift = numpy_helper.from_array(np.array([[0, 2e-6, 0]], np.float32), "shift")
        model.graph.initializer.append(shift)
        model.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], ["y"]))

    record = verified(classifier(40, module=Tied()), lift_second_class)
    agreement = record.providers[0].agreement
    assert agreement is not None
    assert agreement.ties == tuple(range(40))
    assert len(agreement.tie_differences) > 20
    assert agreement.differences == ()
    assert objections(record) == []


def test_regression_has_figures_but_no_answers_to_agree_on() -> None:
    task = Task(TaskKind.REGRESSION, "y", Scores.VALUES)
    x = np.random.default_rng(0).random((20, 5), np.float32)
    held_out = HeldOut({"x": x}, x.sum(1, keepdims=True), "made up")
    record = verified(
        Candidate(nn.Linear(5, 1), (InputSpec("x", torch.float32, ("batch", 5)),), ("y",), held_out, task)
    )
    assert record.providers[0].agreement is None
    assert set(record.providers[0].metrics or {}) == {"example_count", "mse", "mae", "r_squared"}


def test_multi_label_ties_lie_at_the_threshold() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(torch.stack([x[:, 0] * 0, x[:, 1] + 5], dim=1))

    task = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b"))
    x = np.random.default_rng(0).random((9, 5), np.float32)
    held_out = HeldOut({"x": x}, np.ones((9, 2), bool), "made up")
    record = verified(Candidate(Half(), (InputSpec("x", torch.float32, ("batch", 5)),), ("y",), held_out, task))
    agreement = record.providers[0].agreement
    assert agreement is not None
    assert agreement.ties == tuple(range(9))
    assert objections(record) == []


def test_record_is_json_and_text() -> None:
    record = verified(classifier())
    document = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert document["providers"][CPU]["agreement"]["example_count"] == 300
    assert document["tolerance"]["per_output"]["y"] == pytest.approx(1e-5, rel=0.5)
    assert document["data"] == {"source": "made up", "sha256": "ab" * 32, "example_count": 300}
    text = verification_text(record)
    assert "300 of 300 the same as torch's" in text
    assert "accuracy" in text


def test_model_that_takes_one_batch_size_only_is_not_verified() -> None:
    def fix_batch(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(NotVerifiedError, match="CPUExecutionProvider fails at batch size 2"):
        verified(classifier(), fix_batch)


def test_labels_outside_the_classes_are_refused() -> None:
    candidate = classifier()
    assert candidate.held_out.labels is not None
    candidate.held_out.labels[3] = 7
    with pytest.raises(ExportError, match=r"labels: expected 0\.\.2, got 7"):
        verified(candidate)


def test_module_that_insists_on_fp32_is_held_against_fp32_and_says_so() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.full((5, 3), 0.5)  # no buffer: stays as it is in a module of float64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.table

    record = verified(classifier(module=Insists()))
    assert "does not run in float64" in record.fp64_gap
    assert objections(record) == []
    assert "no float64 reference" in verification_text(record)


def test_float64_reference_has_tensors_of_its_own_in_float64() -> None:
    class Makes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.full((1,), 0.1)

    before = torch.get_default_dtype()
    reference = TorchReference(Makes(), ("x",), ("y",))
    assert reference.fp64({"x": np.zeros((1, 1), np.float32)})["y"].item() == 0.1
    assert torch.get_default_dtype() is before


def test_outputs_other_than_named_are_refused() -> None:
    reference = TorchReference(nn.Identity(), ("x",), ("y", "z"))
    with pytest.raises(ExportError, match=r"expected 2 tensors \(y, z\), got 1"):
        reference.fp32({"x": np.zeros((1, 1), np.float32)})


def test_sample_is_the_seeds_own() -> None:
    candidate = classifier(1000)
    drawn = sampled_indices(candidate, 32)
    assert len(set(drawn.tolist())) == 32
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == sampled_indices(candidate, 32).tolist()
    assert sampled_indices(candidate, 5000).tolist() == list(range(1000))


def test_model_that_the_runtime_refuses_is_not_verified() -> None:
    with pytest.raises(NotVerifiedError, match="CPUExecutionProvider refuses the model"):
        sessions_here(b"no model")


@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_module_that_draws_numbers_is_refused(noise: float) -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] + noise * torch.rand_like(x[:, :3])

    with pytest.raises(ExportError, match="expected the same answer to the same inputs"):
        verified(classifier(module=Noisy()))


def test_float64_reference_computes_with_weights_in_float64() -> None:
    module = nn.Linear(3, 1)
    x = np.random.default_rng(0).random((4, 3), np.float32)
    reference = TorchReference(module, ("x",), ("y",))
    weights, bias = (parameter.detach().numpy().astype(np.float64) for parameter in module.parameters())
    np.testing.assert_allclose(reference.fp64({"x": x})["y"], x.astype(np.float64) @ weights.T + bias, rtol=1e-14)
    assert reference.fp64_gap == ""
