"""Examples from .npy, .npz and .png files."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitserve_client.errors import FileError
from fitserve_client.example_files import labels_of, read_examples
from fitserve_client.models import ModelVersion, VersionDetails
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import Scores, Task, TaskKind


def _details(*inputs: TensorSpec) -> VersionDetails:
    version = ModelVersion(1, "READY", "", True, "CPUExecutionProvider", (), "", 8, 1.0)
    return VersionDetails("m", version, inputs, (), None)


GREY = TensorSpec("image", "FP32", ("B", 1, 28, 28))


def test_an_npy_file_is_one_array(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.eye(3))
    examples = read_examples(tmp_path / "x.npy", _details(GREY))
    assert np.array_equal(examples.inputs, np.eye(3))
    with pytest.raises(FileError, match="found no 'labels'"):
        labels_of(examples, tmp_path / "x.npy")


def test_an_npz_file_has_an_array_per_input_and_labels(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, image=np.eye(2), labels=np.array([1, 0]))
    examples = read_examples(path, _details(GREY))
    assert list(examples.inputs) == ["image"]
    assert labels_of(examples, path).tolist() == [1, 0]
    with_input = read_examples(path, _details(GREY, TensorSpec("labels", "INT64", ("B",))))
    assert set(with_input.inputs) == {"image", "labels"}


CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("0", "1", "2"))
SEVERAL = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("0", "1", "2"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (CLASSES, np.eye(3)[[2, 0, 1]], np.array([2, 0, 1])),
        (CLASSES, np.eye(3, dtype=bool)[[2, 0, 1]], np.array([2, 0, 1])),
        (CLASSES, np.array([2.0, 0.0, 1.0], np.float16), np.array([2, 0, 1])),
        (CLASSES, np.array([[2], [0], [1]], np.uint8), np.array([2, 0, 1], np.uint8)),
        (CLASSES, np.array([True, False, True]), np.array([1, 0, 1])),
        (CLASSES, np.array([0.5, 0.0, 1.0]), np.array([0.5, 0.0, 1.0])),
        (CLASSES, np.array([[1.0, 1.0, 0.0]] * 3), None),
        (SEVERAL, np.array([[1.0, 1.0, 0.0]] * 3), np.array([[True, True, False]] * 3)),
        (VALUES, np.array([3, 4, 5]), np.array([[3.0], [4.0], [5.0]], np.float32)),
    ],
)
def test_labels_that_training_takes_are_scored(
    task: Task, labels: np.ndarray, expected: np.ndarray | None, tmp_path: Path
):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2)), labels=labels)
    outputs = (TensorSpec("y", "FP32", ("B", 3 if task.class_names else 1)),)
    details = replace(_details(TensorSpec("image", "FP32", ("B", 2))), outputs=outputs, task=task)
    examples = read_examples(tmp_path / "x.npz", details)
    assert list(examples.inputs) == ["image"], "x and image are each other"
    found = labels_of(examples, tmp_path / "x.npz")
    if expected is not None:
        assert (found.dtype, found.shape, found.tolist()) == (expected.dtype, expected.shape, expected.tolist())
    else:
        assert found.ndim == 2, "what is no class is for the server to refuse"


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04 broken"])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=rf"{name}': expected a \.np"):
        read_examples(tmp_path / name, _details(GREY))


def test_a_pickled_array_is_refused_unread(tmp_path: Path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(FileError, match=r"expected a \.npy file"):
        read_examples(path, _details(GREY))


def test_a_file_named_as_another_kind_is_refused(tmp_path: Path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=np.eye(2))
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(FileError, match=r"expected a \.npy file of numpy, got a \.npz file"):
        read_examples(tmp_path / "x.npy", _details(GREY))
    with pytest.raises(FileError, match=r"expected a \.npz file of numpy, got a \.npy file"):
        read_examples(tmp_path / "x.npz", _details(GREY))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing.npy", "expected a file, found none"),
        ("missing.png", "expected a file, found none"),
        ("x.txt", r"expected one of \.npy, \.npz, \.png, \.csv, got '\.txt'"),
    ],
)
def test_a_file_that_is_not_there_or_of_no_known_kind(tmp_path: Path, name: str, text: str):
    with pytest.raises(FileError, match=text):
        read_examples(tmp_path / name, _details(GREY))


def test_only_pictures_are_inverted(tmp_path: Path):
    with pytest.raises(FileError, match=r"expected a \.png file for --invert"):
        read_examples(tmp_path / "x.npy", _details(GREY), is_inverted=True)


def test_a_grey_picture_of_the_right_size_comes_unchanged(tmp_path: Path):
    pixels = (np.arange(784, dtype=np.uint8) % 90).reshape(28, 28)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    examples = read_examples(tmp_path / "x.png", _details(GREY))
    assert examples.inputs.dtype == np.float32
    assert np.array_equal(examples.inputs, pixels[None, None].astype(np.float32) / np.float32(255))
    assert examples.notes == ()


def test_inverting_exchanges_light_and_dark(tmp_path: Path):
    pixels = np.full((28, 28), 250, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    inverted = read_examples(tmp_path / "x.png", _details(GREY), is_inverted=True)
    assert inverted.inputs == pytest.approx(np.full((1, 1, 28, 28), 5 / 255))
    assert inverted.notes == ()
    plain = read_examples(tmp_path / "x.png", _details(GREY))
    assert "--invert" in plain.notes[0]


def test_another_size_is_resized_and_said(tmp_path: Path):
    Image.new("L", (56, 14), 60).save(tmp_path / "x.png")
    examples = read_examples(tmp_path / "x.png", _details(GREY))
    assert examples.inputs.shape == (1, 1, 28, 28)
    assert examples.notes == (f"file '{tmp_path / 'x.png'}': resized from 56x14 to 28x28",)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, 0.2),
        ("1", 1, 1.0),
        ("P", 0, None),
        ("RGB", (51, 51, 51), 0.2),
        ("RGBA", (0, 0, 0, 0), 1.0),
        ("LA", (51, 255), 0.2),
        ("I;16", 13107, 0.2),
    ],
)
def test_every_kind_of_png_becomes_grey(tmp_path: Path, mode: str, colour: int, expected: float | None):
    Image.new(mode, (28, 28), colour).save(tmp_path / "x.png")
    image = read_examples(tmp_path / "x.png", _details(GREY)).inputs
    assert image.shape == (1, 1, 28, 28)
    assert image.min() == image.max()
    assert expected is None or image.max() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        (TensorSpec("x", "FP32", ("B", 3, None, None)), (1, 3, 5, 7), np.float32),
        (TensorSpec("x", "FP32", ("B", None, "H", "W")), (1, 1, 5, 7), np.float32),
        (TensorSpec("x", "FP32", ("B", 28, 28)), (1, 28, 28), np.float32),
        (TensorSpec("x", "UINT8", (1, 1, 4, 4)), (1, 1, 4, 4), np.uint8),
        (TensorSpec("x", "BF16", (1, 1, 4, 4)), (1, 1, 4, 4), np.float32),
    ],
)
def test_a_picture_takes_the_inputs_form(tmp_path: Path, spec: TensorSpec, shape: tuple[int, ...], dtype: type):
    Image.new("RGB", (7, 5), (10, 20, 30)).save(tmp_path / "x.png")
    image = read_examples(tmp_path / "x.png", _details(spec)).inputs
    assert (image.shape, image.dtype) == (shape, dtype)


@pytest.mark.parametrize("shape", [None, (), ("B", 784), ("B", 2, 28, 28), (4, 1, 28, 28)])
def test_an_input_that_takes_no_picture_is_named(tmp_path: Path, shape: tuple[int | str, ...] | None):
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    with pytest.raises(FileError, match=r"input 'x': expected pictures \(B, 1 or 3, H, W\)"):
        read_examples(tmp_path / "x.png", _details(TensorSpec("x", "FP32", shape)))


def test_a_model_with_two_inputs_takes_no_picture(tmp_path: Path):
    with pytest.raises(FileError, match=r"expected one input for a \.png file, got 'image', 'y'"):
        read_examples(tmp_path / "x.png", _details(GREY, TensorSpec("y", "FP32", ())))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_png_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(FileError, match="expected a PNG picture"):
        read_examples(tmp_path / "x.png", _details(GREY))


def test_missing_pillow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(FileError, match=r"pip install 'fitserve\[images\]'"):
        read_examples(tmp_path / "x.png", _details(GREY))
