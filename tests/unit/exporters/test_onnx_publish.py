"""An ONNX file of any origin, held against a Python callable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fitserve_contract.certificate import read_held_out, read_probe
from fitserve_contract.repository import CARD_FILE, verify_checksums
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters import publish_onnx
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.report import published_text

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(4, 3))
BIAS = RANDOM.normal(size=3)
X = RANDOM.normal(size=(60, 4)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 60)
NAMES = ["red", "green", "blue"]


def logistic(weights: np.ndarray[Any, Any] = WEIGHTS, *, batch: Any = None) -> onnx.ModelProto:
    """Builds a logistic regression as converters write it: an INT64 label and FP32 probabilities."""
    arrays = {"w": weights.astype(np.float32), "b": BIAS.astype(np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [batch]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 3]),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return finished(graph)


def finished(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def one_node(operator: str, outputs: list[Any], shape: list[Any], **attributes: Any) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    node = helper.make_node(operator, ["x"], [output.name for output in outputs], **attributes)
    return finished(helper.make_graph([node], "one", [value], outputs))


def probabilities(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    scores = x @ WEIGHTS + BIAS
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def reference(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return probabilities(x).argmax(axis=1), probabilities(x)


def test_file_becomes_a_version_with_a_certificate_and_a_task(tmp_path: Path) -> None:
    published = publish_onnx(
        logistic().SerializeToString(),
        reference,
        X[:5],
        tmp_path,
        "colours",
        held_out=(X, LABELS),
        task="classification",
        class_names=NAMES,
    )
    verify_checksums(published.folder)
    manifest = published.manifest
    assert manifest.task == Task(TaskKind.CLASSIFICATION, "probabilities", Scores.PROBABILITIES, tuple(NAMES))
    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("x", ("batch", 4))]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [
        ("label", ("batch",)),
        ("probabilities", ("batch", 3)),
    ]
    assert manifest.verification["reference"] == "a Python reference"
    assert manifest.verification["float64_gap"] is None
    assert manifest.verification["torch"]["metrics"]["accuracy"] == np.mean(reference(X)[0] == LABELS)
    held_out, probe = read_held_out(published.folder), read_probe(published.folder)
    assert held_out is not None
    assert probe is not None
    np.testing.assert_array_equal(held_out.inputs["x"], X)
    np.testing.assert_allclose(probe.fp64["probabilities"], probabilities(probe.inputs["x"]), rtol=1e-12)
    session = onnxruntime.InferenceSession(published.folder / "model.onnx")
    np.testing.assert_allclose(session.run(["probabilities"], {"x": X})[0], probabilities(X), atol=1e-6)
    text = published_text(published)
    assert "verified against the reference on 60 held-out examples" in text
    assert "torch" not in text
    assert "a Python reference" in (published.folder / CARD_FILE).read_text(encoding="utf-8")


def test_skl2onnx_converts_and_is_proved(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    file = skl2onnx.to_onnx(model, X[:1], options={id(model): {"zipmap": False}}).SerializeToString()
    published = publish_onnx(
        file,
        lambda x: (model.predict(x), model.predict_proba(x)),
        X[:5],
        tmp_path,
        "colours",
        float64=lambda x: (model.predict(x), model.predict_proba(x)),
        held_out=(X, LABELS),
        task="classification",
        class_names=NAMES,
    )
    assert published.manifest.verification["float64_gap"] is None


@pytest.mark.parametrize("moved", [(0, 0), (3, 2)])
def test_one_wrong_weight_is_refused_and_nothing_is_published(tmp_path: Path, moved: tuple[int, int]) -> None:
    wrong = WEIGHTS.copy()
    wrong[moved] *= 1.001
    with pytest.raises(NotVerifiedError, match="output 'probabilities' at batch size") as caught:
        publish_onnx(logistic(wrong).SerializeToString(), reference, X[:5], tmp_path / "repository", "colours")
    assert "torch" not in str(caught.value)
    assert not (tmp_path / "repository").exists()


def test_without_float64_the_answers_count_as_exact_and_the_bound_is_stated(tmp_path: Path) -> None:
    published = publish_onnx(
        logistic().SerializeToString(),
        lambda x: {"label": reference(x)[0], "probabilities": probabilities(x).astype(np.float32)},
        X[:5],
        tmp_path,
        "colours",
    )
    assert "answers are taken as exact" in published.manifest.verification["float64_gap"]
    assert published.manifest.verification["torch"]["metrics"] is None


def test_a_float64_reference_is_the_measure(tmp_path: Path) -> None:
    def rounded(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return reference(x)[0], probabilities(x).astype(np.float16).astype(np.float32)

    file = logistic().SerializeToString()
    with pytest.raises(NotVerifiedError, match="probabilities"):
        publish_onnx(file, rounded, X[:5], tmp_path, "colours")
    seen: list[Any] = []

    def exact(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        seen.append(x.dtype)
        return reference(x)

    assert publish_onnx(file, rounded, X[:5], tmp_path, "colours", float64=exact).version == 1
    assert set(seen) == {np.dtype(np.float64)}
    with pytest.raises(ExportError, match="float64, output 'probabilities': expected what reference answers"):
        publish_onnx(file, reference, X[:5], tmp_path, "colours", float64=lambda x: reference(-x))


def test_external_data_beside_the_file_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "given.onnx"
    onnx.save_model(logistic(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    published = publish_onnx(path, reference, X[:5], tmp_path / "repository", "colours")
    session = onnxruntime.InferenceSession((published.folder / "model.onnx").read_bytes())
    np.testing.assert_array_equal(session.run(["label"], {"x": X})[0], reference(X)[0])
    with pytest.raises(ExportError, match="lies in another file; give the path of the model instead of bytes"):
        publish_onnx(path.read_bytes(), reference, X[:5], tmp_path / "repository", "colours")
    (tmp_path / "weights.bin").write_bytes(b"12")
    with pytest.raises(ExportError, match=r"expected \d+ bytes in 'weights.bin', got"):
        publish_onnx(path, reference, X[:5], tmp_path / "repository", "colours")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"expected its content in 'weights.bin' beside the model"):
        publish_onnx(path, reference, X[:5], tmp_path / "repository", "colours")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_external_data_elsewhere_is_not_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = logistic()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "48"}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="tensor 'w': external data: "):
        publish_onnx(folder / "model.onnx", reference, X[:5], tmp_path / "repository", "colours")


def test_free_axes_beside_the_batch_are_proved(tmp_path: Path) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "time"])
    file = one_node("Relu", [output], ["n", "time"]).SerializeToString()
    published = publish_onnx(file, lambda x: np.maximum(x, 0), X[:5], tmp_path, "relu")
    assert published.manifest.inputs[0].shape == ("n", "time")
    (size,) = published.manifest.verification["sizes"]
    assert (size["axis"], size["minimum"]) == ("time", 1)
    assert max(size["verified"]) == 16
    fixed = publish_onnx(file, lambda x: np.maximum(x, 0), X[:5], tmp_path, "relu", free_axes={})
    assert fixed.manifest.inputs[0].shape == ("n", 4)


def test_rows_that_depend_on_each_other_are_refused_unless_accepted(tmp_path: Path) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    file = one_node("Softmax", [output], [None, 4], axis=0).SerializeToString()

    def mixing(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(axis=0))

    with pytest.raises(ExportError, match="rows depend on each other: in the reference"):
        publish_onnx(file, mixing, X[:5], tmp_path, "mixing")
    assert publish_onnx(file, mixing, X[:5], tmp_path, "mixing", allow_coupled_rows=True).version == 1


def test_outputs_can_be_left_out(tmp_path: Path) -> None:
    published = publish_onnx(
        logistic().SerializeToString(), probabilities, X[:5], tmp_path, "colours", outputs=["probabilities"]
    )
    assert [spec.name for spec in published.manifest.outputs] == ["probabilities"]


def zipmap() -> onnx.ModelProto:
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("maps", helper.make_sequence_type_proto(kind))
    model = one_node("ZipMap", [output], [None, 4], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def text_labels() -> onnx.ModelProto:
    output = helper.make_tensor_value_info("label", TensorProto.STRING, [None])
    return one_node("Cast", [output], [None, 4], to=TensorProto.STRING)


FP32_OUTPUT = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])

SLIPS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "zipmap": (zipmap, np.abs, {}, r"output 'maps': expected a tensor, got a sequence of maps .*'zipmap': False"),
    "text labels": (text_labels, np.abs, {}, r"output 'label': expected numbers, got strings.*outputs=\["),
    "fixed batch": (lambda: logistic(batch=1), reference, {}, r"'x': expected a free first axis.*FloatTensorType"),
    "no file": (lambda: "absent.onnx", reference, {}, r"file 'absent.onnx': expected an ONNX model, got No such file"),
    "no onnx": (lambda: b"nothing", reference, {}, r"file: expected an ONNX model, got 7 bytes"),
    "no bytes": (lambda: b"", reference, {}, r"file: expected an ONNX model with at least one output"),
    "a model object": (lambda: 3, reference, {}, r"file: expected the path or the bytes of an ONNX model, got int"),
    "no callable": (logistic, X, {}, r"reference: expected a callable.*for example model.predict_proba"),
    "one of two": (logistic, probabilities, {}, r"expected 2 arrays \(label, probabilities\), got 1;.*outputs=\["),
    "other names": (logistic, lambda x: {"p": x}, {}, r"expected the outputs label, probabilities, got p"),
    "swapped": (
        logistic,
        lambda x: reference(x)[::-1],
        {},
        r"output 'label': expected int64 as in the file, got float",
    ),
    "text": (logistic, lambda x: (np.array(["a"] * len(x)), x), {}, r"output 'label'.*np.searchsorted"),
    "no batch": (logistic, lambda _: reference(X[:2]), {}, r"expected one row per example, shape \(5, ...\)"),
    "raises": (logistic, lambda x: x @ x, {}, r"reference: fails on the examples: ValueError: matmul"),
    "random": (
        lambda: one_node("Relu", [FP32_OUTPUT], [None, 4]),
        lambda x: np.random.default_rng().normal(size=x.shape),
        {},
        r"expected the same answer to the same inputs",
    ),
    "other shape": (
        lambda: one_node("Relu", [FP32_OUTPUT], [None, 4]),
        lambda x: np.maximum(x, 0)[:, :3],
        {},
        r"expected shape \(1, 3\), got \(1, 4\)",
    ),
    "a kind alone": (logistic, reference, {"task": "classification"}, r"task: expected exactly one output of scores"),
    "names alone": (logistic, reference, {"class_names": NAMES}, r"class_names: expected a kind of task"),
    "unknown kind": (logistic, reference, {"task": "ranking"}, r"expected a Task or one of classification"),
    "unknown output": (logistic, reference, {"outputs": ["p"]}, r"outputs: expected some of label, probabilities"),
    "labels": (
        logistic,
        reference,
        {"task": "classification", "class_names": NAMES, "held_out": (X, LABELS + 1)},
        r"held_out: .*label",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_are_told_with_their_cure(tmp_path: Path, slip: str) -> None:
    make, function, settings, message = SLIPS[slip]
    made = make()
    file = made.SerializeToString() if isinstance(made, onnx.ModelProto) else made
    with pytest.raises((ExportError, NotVerifiedError), match=message):
        publish_onnx(file, function, X[:5], tmp_path / "repository", "colours", **settings)
    assert not (tmp_path / "repository").exists()


def word_scores() -> onnx.ModelProto:
    """Builds a lookup of words beside a number, as converters write pipelines of categories."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["word"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["ja", "Köln"],
            values_floats=[1.0, 2.0],
            default_float=-1.0,
        ),
        helper.make_node("Mul", ["code", "x"], ["score"]),
    ]
    inputs = [
        helper.make_tensor_value_info("word", TensorProto.STRING, [None, 1]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1]),
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "words", inputs, [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def scores_of(words: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    known = {"ja": 1.0, "Köln": 2.0}
    return np.asarray(np.array([[known.get(word, -1.0)] for word in words.reshape(-1)], np.float32) * x)


@pytest.mark.parametrize("dtype", [object, str])
def test_file_that_takes_texts_is_proved_with_them(dtype: Any, tmp_path: Path) -> None:
    words = np.array([["ja"], ["Köln"], [""], ["nein"]] * 5, dtype)
    x = np.arange(20, dtype=np.float32).reshape(20, 1)

    published = publish_onnx(
        word_scores().SerializeToString(),
        scores_of,
        {"word": words, "x": x},
        tmp_path,
        "words",
        held_out=({"word": words, "x": x}, scores_of(words, x)),
        task="regression",
    )

    held_out = read_held_out(published.folder)
    assert held_out is not None
    assert held_out.inputs["word"][:2].tolist() == [[b"ja"], ["Köln".encode()]]
    assert [(spec.name, spec.datatype) for spec in published.manifest.inputs] == [("word", "BYTES"), ("x", "FP32")]
    assert published.manifest.onnx["joining"] == "joinable"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.ones((4, 1), np.float32), "examples, input 'word': expected texts as in the file, got float32"),
        (np.array([["a"], [1], ["b"], ["c"]], object), "examples, input 'word': expected an array of str or bytes"),
    ],
)
def test_other_values_than_texts_are_refused(words: np.ndarray[Any, Any], message: str, tmp_path: Path) -> None:
    x = np.ones((4, 1), np.float32)
    with pytest.raises(ExportError, match=message):
        publish_onnx(word_scores().SerializeToString(), scores_of, {"word": words, "x": x}, tmp_path, "words")
    texts = np.array([["a"]] * 4)
    with pytest.raises(ExportError, match="examples, input 'x': expected float32 as in the file, got texts"):
        publish_onnx(word_scores().SerializeToString(), scores_of, {"word": texts, "x": texts}, tmp_path, "words")
