"""The Python call: a user's own module to a verified version, and the certificate that it carries."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import fitserve_exporters
from fitserve_contract.certificate import HELD_OUT_FILE, PROBE_FILE, read_held_out, read_probe
from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import CHECKSUMS_FILE, MANIFEST_FILE, MODEL_FILE, verify_checksums
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Tolerance
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.module_export import drawn_inputs
from fitserve_exporters.publishing import publish
from fitserve_exporters.report import published_text

TASK = Task(TaskKind.CLASSIFICATION, "output", Scores.LOGITS, ("a", "b", "c"))


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_module_becomes_a_version_with_its_certificate(tmp_path: Path) -> None:
    x, labels = torch.randn(150, 4), torch.randint(0, 3, (150,))
    published = fitserve_exporters.export(
        classifier(), x[:2], tmp_path / "repository", "mine", held_out=(x, labels), task=TASK, seed=3
    )
    assert (published.model, published.version) == ("mine", 1)
    expected = {MODEL_FILE, MANIFEST_FILE, PROBE_FILE, HELD_OUT_FILE, CHECKSUMS_FILE}
    assert {path.name for path in published.folder.iterdir()} >= expected
    verify_checksums(published.folder)
    manifest = read_manifest(published.folder)
    assert manifest == published.manifest
    assert manifest is not None
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.inputs] == [("input", "FP32", ("batch", 4))]
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.outputs] == [("output", "FP32", ("batch", 3))]
    facts = manifest.files[HELD_OUT_FILE]
    assert facts["sha256"] == hashlib.sha256((published.folder / HELD_OUT_FILE).read_bytes()).hexdigest()
    assert (facts["example_count"], facts["sampled_from"], facts["sampling_seed"]) == (150, 150, 3)
    assert manifest.environment["packages"]["torch"]
    assert "published mine version 1" in published_text(published)
    json.dumps(published.to_json(), allow_nan=False)


def test_probe_holds_what_torch_and_the_model_answer(tmp_path: Path) -> None:
    module = classifier()
    published = fitserve_exporters.export(module, torch.randn(50, 4), tmp_path, "mine")
    probe = read_probe(published.folder)
    assert probe is not None
    with torch.inference_mode():
        eager = module.eval()(torch.from_numpy(probe.inputs["input"])).numpy()
    np.testing.assert_array_equal(probe.fp32["output"], eager)
    np.testing.assert_allclose(probe.fp64["output"], eager, rtol=1e-4, atol=1e-6)
    assert probe.fp64["output"].dtype == np.float64
    session = onnxruntime.InferenceSession(published.folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    served = session.run(None, dict(probe.inputs))[0]
    tolerance = published.manifest.verification["tolerance"]["per_output"]["output"]
    assert np.abs(served - probe.fp64["output"]).max() <= tolerance


def test_held_out_sample_is_bounded_and_points_into_its_source(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, 3000)
    published = fitserve_exporters.export(classifier(), x[:2], tmp_path, "mine", held_out=(x, labels), task=TASK)
    sample = read_held_out(published.folder)
    assert sample is not None
    assert len(sample.labels) == publish.MAX_HELD_OUT_EXAMPLES
    np.testing.assert_array_equal(sample.inputs["input"], x[sample.indices])
    np.testing.assert_array_equal(sample.labels, labels[sample.indices])


def test_held_out_sample_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MAX_HELD_OUT_BYTES", 160)
    x, labels = torch.randn(40, 4), torch.randint(0, 3, (40,))
    published = fitserve_exporters.export(classifier(), x[:2], tmp_path, "mine", held_out=(x, labels), task=TASK)
    assert published.manifest.files[HELD_OUT_FILE]["example_count"] == 10


def test_second_export_is_the_next_version_with_the_same_model(tmp_path: Path) -> None:
    first, second = (fitserve_exporters.export(classifier(), torch.ones(2, 4), tmp_path, "mine") for _ in range(2))
    assert (first.version, second.version) == (1, 2)
    assert (first.folder / MODEL_FILE).read_bytes() == (second.folder / MODEL_FILE).read_bytes()


def test_without_held_out_data_the_version_says_so(tmp_path: Path) -> None:
    published = fitserve_exporters.export(classifier(), torch.randn(1, 4), tmp_path, "mine")
    assert "no held-out set was given" in published.manifest.verification["data"]["source"]
    assert read_held_out(published.folder) is None


def test_mapping_and_names_are_kept(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a * b

    example = {"b": np.ones((2, 3), np.float32), "a": np.full((2, 3), 2, np.float32)}
    published = fitserve_exporters.export(Two(), example, tmp_path, "two", output_names=["sum", "product"])
    assert [spec.name for spec in published.manifest.inputs] == ["a", "b"]
    assert [spec.name for spec in published.manifest.outputs] == ["sum", "product"]
    unnamed = fitserve_exporters.export(Two(), [example["a"], example["b"]], tmp_path, "two", input_names=["p", "q"])
    assert [spec.name for spec in unnamed.manifest.inputs] == ["p", "q"]
    assert [spec.name for spec in unnamed.manifest.outputs] == ["output_0", "output_1"]


def test_free_axes_beside_the_batch(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=1)

    published = fitserve_exporters.export(Mean(), torch.rand(3, 5), tmp_path, "mean", free_axes={"x": {1: "length"}})
    assert published.manifest.inputs[0].shape == ("batch", "length")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "a" * 129, "a\0b"])
def test_name_that_is_not_allowed(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="model name: expected"):
        fitserve_exporters.export(classifier(), torch.ones(2, 4), tmp_path / "repository", name)
    assert list(tmp_path.iterdir()) == []


def test_version_over_its_tolerance_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(NotVerifiedError, match=r"(?s)allowed.*not published:.*expected \|onnxruntime - float64\|"):
        fitserve_exporters.export(
            classifier(),
            torch.randn(64, 4),
            tmp_path / "repository",
            "mine",
            tolerance=Tolerance(0.0, 0.0, 0.0, "none"),
        )
    assert list(tmp_path.iterdir()) == []


def test_repository_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"repository '.*file': expected a folder to write in"):
        fitserve_exporters.export(classifier(), torch.ones(2, 4), tmp_path / "file", "mine")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.tensor(1.0), r"expected shape \(B, \.\.\.\)"),
        (np.zeros((0, 4), np.float32), "at least 1 example"),
        (torch.ones(2, 4, dtype=torch.bfloat16), "expected a dtype that numpy has, got torch.bfloat16"),
        (torch.ones(2, 5), "forward fails on the example: RuntimeError: mat1 and mat2"),
        ({"nothing": np.ones((2, 4), np.float32)}, r"forward \(input\), got \['nothing'\]"),
    ],
)
def test_example_that_is_none(tmp_path: Path, example: object, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        fitserve_exporters.export(classifier(), example, tmp_path, "mine")  # type: ignore[arg-type]


def test_drawn_inputs_stay_among_the_examples_values() -> None:
    arrays = {"x": np.random.default_rng(0).random((3, 4), np.float32), "ids": np.array([[1, 50], [2, 60]])}
    drawn = drawn_inputs(arrays, 0)
    assert set(drawn["x"].ravel().tolist()) <= set(arrays["x"].ravel().tolist())
    assert set(drawn["ids"][2:, 0].tolist()) == {1, 2}
    assert set(drawn["ids"][2:, 1].tolist()) == {50, 60}
    np.testing.assert_array_equal(drawn["x"][:3], arrays["x"])
    np.testing.assert_array_equal(drawn_inputs(arrays, 0)["x"], drawn["x"])
