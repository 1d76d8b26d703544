"""The probe and the held-out examples of a version."""

from pathlib import Path

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
