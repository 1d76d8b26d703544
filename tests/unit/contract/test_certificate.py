"""The probe and the held-out examples of a version."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from fitserve_contract.certificate import (
    HELD_OUT_FILE,
    PROBE_FILE,
    CertificateError,
    HeldOutExamples,
    Probe,
    read_held_out,
    read_probe,
)
from fitserve_contract.files import UnsafeFileError


def probe() -> Probe:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    return Probe({"x": x, "ids": np.arange(3)}, {"y": x * 2}, {"y": x.astype(np.float64) * 2})


def test_probe_that_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / PROBE_FILE).write_bytes(probe().to_bytes())
    found = read_probe(tmp_path)
    assert found is not None
    for part in ("inputs", "fp32", "fp64"):
        expected = getattr(probe(), part)
        assert getattr(found, part).keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(getattr(found, part)[name], array)
            assert getattr(found, part)[name].dtype == array.dtype


def test_held_out_examples_that_were_written_are_read(tmp_path: Path) -> None:
    examples = HeldOutExamples({"x": np.ones((4, 2), np.float32)}, np.array([0, 1, 2, 3]), np.array([5, 6, 9, 11]))
    (tmp_path / HELD_OUT_FILE).write_bytes(examples.to_bytes())
    found = read_held_out(tmp_path)
    assert found is not None
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert found.indices.tolist() == [5, 6, 9, 11]
    np.testing.assert_array_equal(found.inputs["x"], examples.inputs["x"])


def test_same_content_gives_the_same_bytes() -> None:
    assert probe().to_bytes() == probe().to_bytes()


def test_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2))
    (tmp_path / HELD_OUT_FILE).write_bytes(HeldOutExamples({"x": x}, np.zeros(3, bool), np.arange(3)).to_bytes())
    found = read_held_out(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found.inputs["x"], x)


def test_folder_without_a_certificate_has_none(tmp_path: Path) -> None:
    assert read_probe(tmp_path) is None
    assert read_held_out(tmp_path) is None


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"input/x": np.zeros(2)},
        {"input/x": np.zeros(2), "torch_fp32/y": np.zeros(2)},
        {"input/x": np.zeros(2), "torch_fp32/y": np.zeros(2), "torch_fp64/z": np.zeros(2)},
        {"input/x": np.zeros(2), "torch_fp32/y": np.zeros(3), "torch_fp64/y": np.zeros(2)},
        {"input/x": np.zeros(()), "torch_fp32/y": np.zeros(2), "torch_fp64/y": np.zeros(2)},
    ],
)
def test_probe_with_missing_or_unequal_parts_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    (tmp_path / PROBE_FILE).write_bytes(save(tensors))
    with pytest.raises(CertificateError, match=r"probe\.safetensors: expected"):
        read_probe(tmp_path)


@pytest.mark.parametrize("missing", ["input/x", "labels", "indices"])
def test_held_out_file_with_missing_parts_is_refused(tmp_path: Path, missing: str) -> None:
    tensors = {"input/x": np.zeros(2), "labels": np.zeros(2), "indices": np.zeros(2)}
    del tensors[missing]
    (tmp_path / HELD_OUT_FILE).write_bytes(save(tensors))
    with pytest.raises(CertificateError, match=r"held_out\.safetensors: expected"):
        read_held_out(tmp_path)


@given(st.binary(max_size=120) | st.tuples(st.integers(0, 400), st.integers(0, 255)))
def test_damaged_probe_is_refused_or_whole(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes | tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("probe")
    content = bytearray(probe().to_bytes())
    if isinstance(damage, bytes):
        content = bytearray(damage)
    else:
        content[damage[0] % len(content)] = damage[1]
    (folder / PROBE_FILE).write_bytes(bytes(content))
    try:
        found = read_probe(folder)
    except CertificateError:
        return
    assert found is not None
    assert {len(array) for array in found.inputs.values()} == {3}


def test_link_is_refused_as_unsafe(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(probe().to_bytes())
    (tmp_path / PROBE_FILE).symlink_to("elsewhere")
    with pytest.raises(UnsafeFileError):
        read_probe(tmp_path)


TEXTS = st.lists(st.binary(max_size=8), min_size=1, max_size=6)


def texts(elements: list[bytes]) -> np.ndarray[Any, Any]:
    array = np.empty((len(elements), 1), object)
    array[:, 0] = elements
    return array


@given(TEXTS)
def test_texts_that_were_written_are_read(elements: list[bytes]) -> None:
    inputs = {"a/b": texts(elements), "x": np.zeros((len(elements), 2), np.float32)}
    examples = HeldOutExamples(inputs, np.zeros(len(elements), np.int64), np.arange(len(elements)))

    found = HeldOutExamples.from_bytes(examples.to_bytes())

    assert found.inputs.keys() == inputs.keys()
    assert found.inputs["a/b"].tolist() == [[element] for element in elements]
    assert found.to_bytes() == examples.to_bytes()


@pytest.mark.parametrize(
    ("content", "lengths"),
    [
        (np.zeros(3, np.uint8), np.array([[1], [1]])),
        (np.zeros(3, np.uint8), np.array([[4], [-1]])),
        (np.zeros(3, np.uint8), np.array([[2**63 - 1], [2**63 - 1]])),
        (np.zeros((3, 1), np.uint8), np.array([[1], [2]])),
        (np.zeros(3, np.int8), np.array([[1], [2]])),
        (np.zeros(3, np.uint8), np.array([[1.0], [2.0]])),
        (np.zeros(3, np.uint8), None),
    ],
)
def test_texts_whose_lengths_do_not_fit_are_refused(
    content: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None
) -> None:
    tensors: dict[str, Any] = {
        "input_texts/a": content,
        "labels": np.zeros(2),
        "indices": np.arange(2),
        "input/x": np.zeros(2),
    }
    if lengths is not None:
        tensors["input_text_lengths/a"] = lengths
    with pytest.raises(CertificateError, match=r"held_out\.safetensors"):
        HeldOutExamples.from_bytes(save(tensors))


def test_texts_of_another_number_of_examples_are_refused() -> None:
    examples = HeldOutExamples({"a": texts([b"x", b"y"])}, np.zeros(3), np.arange(3))
    with pytest.raises(CertificateError, match="expected one number of examples"):
        HeldOutExamples.from_bytes(examples.to_bytes())
