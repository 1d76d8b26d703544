"""publish_onnx names a cure for a file without shapes, and for a reference that alone mixes rows."""

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from fitserve_exporters import publish_onnx
from fitserve_exporters.errors import ExportError

HEAD = '<ir_version: 8, opset_import: ["": 18]>\nagraph (float[N,3] x) => (float[N,3] y) '
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def test_output_without_a_shape_is_to_be_inferred(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEAD + "{ y = Identity(x) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ExportError, match=r"declare the shape of each input and output, as onnx\.shape_inference"):
        publish_onnx(model.SerializeToString(), lambda x: x, X, tmp_path, "m")


def test_reference_that_alone_mixes_rows_is_named(tmp_path: Path) -> None:
    content = onnx.parser.parse_model(HEAD + "{ y = Identity(x) }").SerializeToString()
    with pytest.raises(ExportError, match=r"in the reference, .*the graph itself does not do so: take what mixes"):
        publish_onnx(content, lambda x: x + 0 * x.mean(), X, tmp_path, "m")


def test_class_names_may_be_an_array(tmp_path: Path) -> None:
    content = onnx.parser.parse_model(HEAD + "{ y = Softmax(x) }").SerializeToString()

    def softmax(x: np.ndarray) -> np.ndarray:
        exponentials = np.exp(x - x.max(1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))

    names = np.array(["a", "b", "c"])
    task = publish_onnx(
        content,
        softmax,
        X,
        tmp_path,
        "m",
        task="classification",
        class_names=names,  # type: ignore[arg-type]
    ).manifest.task
    assert task is not None
    assert task.class_names == ("a", "b", "c")
