"""Models of the onnx package whose first axis is freed, and files of folders."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from fitserve_benchmarks.joining.labelled import from_text
from fitserve_benchmarks.joining.subjects import FILES, files, freed


def test_a_shared_first_axis_is_freed() -> None:
    model = onnx.load_from_string(
        from_text("g (float[3,4] x, float[3,2] z) => (float[3,6] y) { y = Concat<axis=1>(x, z) }")
    )
    values = [np.ones((3, 4), np.float32), np.ones((3, 2), np.float32)]
    (subject,) = freed("concat", model, values)
    read = onnx.load_from_string(subject.content)
    axes = [value.type.tensor_type.shape.dim[0].dim_param for value in [*read.graph.input, *read.graph.output]]
    assert axes == ["N", "N", "N"]
    assert subject.example["z"].shape == (3, 2)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[3,4] x, float[2,4] z) => (float[5,4] y) { y = Concat<axis=0>(x, z) }",
        "g (float[3,4] x) => (float y) { y = ReduceMax<keepdims=0>(x) }",
        "g (float[3,4] x, float z) => (float[3,4] y) { y = Add(x, z) }",
    ],
)
def test_other_first_axes_are_left_out(text: str) -> None:
    model = onnx.load_from_string(from_text(text))
    inputs = [np.ones([axis.dim_value for axis in value.type.tensor_type.shape.dim]) for value in model.graph.input]
    assert list(freed("other", model, inputs)) == []


def test_files_are_found_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "model.onnx").write_bytes(b"model")
    (tmp_path / "large.onnx").write_bytes(b"x" * 100)
    (tmp_path / "note.txt").write_text("none")
    found = list(files([tmp_path], largest=50))
    assert [(one.name, one.origin, one.content) for one in found] == [("a/b/model.onnx", FILES, b"model")]
