"""The gate at load: what has passed the checksums meets the replay, and is refused with figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fitserve_contract.certificate import HELD_OUT_FILE, PROBE_FILE, HeldOutExamples, Probe, read_probe
from fitserve_contract.repository import MANIFEST_FILE, MODEL_FILE, VersionPath
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array
from fitserve_service.loader import Loader
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion

PIXELS = (np.arange(32, dtype=np.float32).reshape(8, 4) * 7) % 256


def preprocessed(scale: float = 1 / 255, seed: int = 0) -> bytes:
    """x FP32 (B, 4) of pixels in 0..255 -> y FP32 (B, 2): scaled, then a matrix product."""
    weights = np.random.default_rng(seed).standard_normal((4, 2)).astype(np.float32)
    return builders.model(
        [helper.make_node("Mul", ["x", "scale"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
        [builders.value("x", ("B", 4))],
        [builders.value("y", ("B", 2))],
        {"scale": np.array(scale, np.float32), "w": weights},
    )


def certified(root: Path, content: bytes | None = None, **changes: Any) -> VersionPath:
    return builders.certified_version(root, "m", content or preprocessed(), {"x": PIXELS}, **changes)


def load(path: VersionPath, *, is_proof_required: bool = False) -> ServedVersion:
    return Loader("cpu", is_proof_required=is_proof_required).load(path, Overrides({}))


def refusal(path: VersionPath, *, is_proof_required: bool = False) -> str:
    with pytest.raises(LoadError) as caught:
        load(path, is_proof_required=is_proof_required)
    return str(caught.value)


def weights_of(content: bytes) -> tuple[onnx.ModelProto, Array]:
    loaded = onnx.load_model_from_string(content)
    return loaded, numpy_helper.to_array(loaded.graph.initializer[1]).copy()


def with_weights(loaded: onnx.ModelProto, weights: Array) -> bytes:
    loaded.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "w"))
    return bytes(loaded.SerializeToString())


def flipped_exponent_bit(content: bytes) -> bytes:
    loaded, weights = weights_of(content)
    weights.view(np.uint32)[1, 1] ^= 1 << 24
    return with_weights(loaded, weights)


def halved_precision(content: bytes) -> bytes:
    """The weights as an fp16 variant has them: another result of an optimization, right to three digits."""
    loaded, weights = weights_of(content)
    return with_weights(loaded, weights.astype(np.float16).astype(np.float32))


def fp16_graph(content: bytes) -> bytes:
    """The product itself in fp16, between casts, as a mixed-precision pass makes it."""
    _, weights = weights_of(content)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["h"]),
        helper.make_node("Cast", ["h"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    initializers = {"scale": np.array(1 / 255, np.float32), "w": weights.astype(np.float16)}
    return builders.model(nodes, [builders.value("x", ("B", 4))], [builders.value("y", ("B", 2))], initializers)


def without_division(_: bytes) -> bytes:
    return preprocessed(scale=1.0)


def test_a_version_whose_replay_holds_is_verified_and_says_how_near_it_came(tmp_path: Path) -> None:
    served = load(certified(tmp_path), is_proof_required=True)
    assert served.is_verified
    assert served.replay is not None
    assert [(gap.output, gap.batch_size, gap.allowed) for gap in served.replay.gaps] == [("y", 1, 1e-5), ("y", 8, 1e-5)]
    assert all(gap.max_abs_diff <= 1e-6 for gap in served.replay.gaps)
    assert 0 < served.replay.replay_ms < served.load_ms


def test_one_flipped_weight_bit_is_refused_by_its_checksum(tmp_path: Path) -> None:
    path = certified(tmp_path)
    content = bytearray((path.folder / MODEL_FILE).read_bytes())
    place = bytes(content).index(weights_of(bytes(content))[1].tobytes())
    content[place] ^= 1
    (path.folder / MODEL_FILE).write_bytes(content)
    text = refusal(path)
    assert text.startswith("file 'model.onnx': expected sha256 ")
    assert ", got " in text


@pytest.mark.parametrize("tamper", [flipped_exponent_bit, halved_precision, fp16_graph, without_division])
def test_what_passes_the_checksums_meets_the_replay(tmp_path: Path, tamper: Callable[[bytes], bytes]) -> None:
    path = certified(tmp_path)
    builders.rewrite(path, MODEL_FILE, tamper((path.folder / MODEL_FILE).read_bytes()))
    text = refusal(path)
    assert text.startswith("replay of the probe on CPUExecutionProvider: output 'y' at batch size ")
    assert "expected max|answer - torch float64| <= 1e-05, got " in text
    found = float(text.rsplit("got ", 1)[1])
    assert found > 1e-5


def test_an_fp16_variant_within_the_tolerance_of_its_recipe_is_served(tmp_path: Path) -> None:
    path = certified(tmp_path, tolerance=0.05)
    builders.rewrite(path, MODEL_FILE, fp16_graph((path.folder / MODEL_FILE).read_bytes()))
    assert load(path).is_verified


def test_nan_where_torch_has_none_is_refused_and_where_it_has_some_is_not(tmp_path: Path) -> None:
    def root(factor: float) -> bytes:
        nodes = [helper.make_node("Mul", ["x", "f"], ["h"]), helper.make_node("Sqrt", ["h"], ["y"])]
        x, y = builders.value("x", ("B", 4)), builders.value("y", ("B", 4))
        return builders.model(nodes, [x], [y], {"f": np.array(factor, np.float32)})

    with np.errstate(invalid="ignore"):
        with_nan = builders.certified_version(tmp_path, "nan", root(1.0), {"x": PIXELS - 100})
    assert load(with_nan).is_verified
    path = certified(tmp_path, root(1.0), tolerance=100.0)
    builders.rewrite(path, MODEL_FILE, root(-1.0))
    assert "got NaN or infinities where torch has none" in refusal(path)


def test_a_model_that_takes_other_inputs_or_gives_other_outputs_than_its_probe_is_refused(tmp_path: Path) -> None:
    path = certified(tmp_path)
    builders.rewrite(path, MODEL_FILE, builders.linear(3, 2))
    assert "input 'x': expected shape (B, 3), got (1, 4)" in refusal(path)
    builders.rewrite(path, MODEL_FILE, builders.linear(4, 3))
    assert "output 'y': expected shape (1, 2), got (1, 3)" in refusal(path)
    builders.rewrite(path, MODEL_FILE, builders.two_in_two_out())
    assert refusal(path) == "probe.safetensors: expected outputs ['difference', 'total'], got ['y']"


def changed_manifest(path: VersionPath, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((path.folder / MANIFEST_FILE).read_bytes())
    change(document)
    builders.rewrite(path, MANIFEST_FILE, json.dumps(document).encode())


@pytest.mark.parametrize("bound", [None, -1, True, "1", 1e999])
def test_a_tolerance_that_is_none_is_refused(tmp_path: Path, bound: object) -> None:
    path = certified(tmp_path)
    changed_manifest(path, lambda document: document["verification"]["tolerance"].update(per_output={"y": bound}))
    assert "manifest.verification.tolerance.per_output['y']: expected a number >= 0" in refusal(path)


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    path = certified(tmp_path)
    changed_manifest(path, lambda document: document.update(verification={}))
    assert "expected a tolerance for each output of probe.safetensors, found none" in refusal(path)
    path = certified(tmp_path)
    (path.folder / PROBE_FILE).unlink()
    builders.rewrite(path, MODEL_FILE, (path.folder / MODEL_FILE).read_bytes())
    assert refusal(path) == "file 'probe.safetensors': expected it, as manifest.files names it, found none"


def test_a_probe_that_is_not_the_one_the_manifest_names_is_refused(tmp_path: Path) -> None:
    path = certified(tmp_path)
    tampered = without_division(b"")
    other = certified(tmp_path, tampered)
    builders.rewrite(path, MODEL_FILE, tampered)
    builders.rewrite(path, PROBE_FILE, (other.folder / PROBE_FILE).read_bytes())
    assert refusal(path).startswith("file 'probe.safetensors': expected sha256 ")
    assert "of manifest.files" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_a_probe_that_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = certified(tmp_path)
    changed_manifest(path, lambda document: document.update(files={}))
    builders.rewrite(path, PROBE_FILE, content)
    assert refusal(path).startswith("probe.safetensors: expected safetensors, got ")


def test_proof_can_be_required(tmp_path: Path) -> None:
    bare = builders.bare_version(tmp_path, "bare", 1, builders.scaled())
    asked = "certificate: expected manifest, checksums and probe (--require-proof), found no "
    assert refusal(bare, is_proof_required=True) == f"{asked}manifest and no checksums and no probe"
    published = builders.publish_version(tmp_path, "plain", builders.scaled())
    assert refusal(published, is_proof_required=True) == f"{asked}probe"
    unsummed = certified(tmp_path)
    (unsummed.folder / "SHA256SUMS").unlink()
    assert refusal(unsummed, is_proof_required=True) == f"{asked}checksums"
    assert not load(unsummed).is_verified
    assert load(unsummed).replay is not None


TASK = builders.classes_task()


def held_out(**changes: Array) -> HeldOutExamples:
    parts: dict[str, Array] = {"inputs": PIXELS[:3], "labels": np.array([0, 1, 1]), "indices": np.array([2, 5, 9])}
    parts |= changes
    return HeldOutExamples({"x": parts["inputs"]}, parts["labels"], parts["indices"])


def test_held_out_examples_are_read_with_the_version(tmp_path: Path) -> None:
    served = load(certified(tmp_path, task=TASK, held_out=held_out()))
    assert served.held_out is not None
    assert np.array_equal(served.held_out.inputs["x"].array, PIXELS[:3])
    assert (served.held_out.labels.datatype, served.held_out.indices.tolist()) == ("INT64", [2, 5, 9])
    assert load(certified(tmp_path, held_out=held_out())).held_out is None


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        (held_out(inputs=PIXELS[:3, :2]), "input 'x': expected shape (B, 4), got (3, 2)"),
        (held_out(inputs=PIXELS[:3].astype(np.float64)), "input 'x': expected datatype FP32, got FP64"),
        (held_out(labels=np.array([0, 1, 2])), "labels: expected 0..1, got 2"),
        (held_out(labels=np.array([0, -1, 1])), "labels: expected 0..1, got -1"),
        (held_out(labels=np.zeros((3, 2), np.int64)), "labels: expected shape (3,), got (3, 2)"),
        (held_out(labels=np.zeros(2, np.int64)), "expected one number of examples in all tensors"),
        (held_out(indices=np.zeros((3, 1), np.int64)), "expected one integer index per example, got int64 (3, 1)"),
    ],
)
def test_held_out_examples_that_do_not_fit_are_refused(tmp_path: Path, examples: HeldOutExamples, text: str) -> None:
    found = refusal(certified(tmp_path, task=TASK, held_out=examples))
    assert found.startswith(f"{HELD_OUT_FILE}: ")
    assert text in found


def test_held_out_labels_of_a_regression_have_the_outputs_datatype(tmp_path: Path) -> None:
    task = Task(TaskKind.REGRESSION, "y", Scores.VALUES)
    found = refusal(certified(tmp_path, task=task, held_out=held_out(labels=np.zeros((3, 2)))))
    assert found == "held_out.safetensors: labels: expected datatype FP32, got FP64"


def test_the_probe_itself_is_what_was_published(tmp_path: Path) -> None:
    probe = read_probe(certified(tmp_path).folder)
    assert isinstance(probe, Probe)
    assert np.array_equal(probe.inputs["x"], PIXELS)
