"""Files of arrays that are mapped: what is written is read, and anything else is no such file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_training.data.store.array_file import ArrayFileWriter, ArrayPlan, DamagedFileError, open_arrays

SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


def write(path: Path, arrays: dict[str, np.ndarray], rows_at_once: int = 2) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    writer = ArrayFileWriter(descriptor, {name: ArrayPlan(x.dtype.str, x.shape) for name, x in arrays.items()})
    for name, array in arrays.items():
        for start in reversed(range(0, len(array), rows_at_once)):
            writer.write(name, start, array[start : start + rows_at_once])
    writer.finish({"names": sorted(arrays)})
    os.close(descriptor)


@given(st.lists(SHAPES, min_size=1, max_size=3), st.sampled_from(["u1", "<i8", "<f4"]), st.integers(0, 99))
@settings(deadline=None)
def test_what_was_written_is_read(shapes: list[tuple[int, ...]], dtype: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = {str(place): random.integers(0, 100, shape).astype(dtype) for place, shape in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a", arrays)
        found, facts = open_arrays(Path(folder) / "a")
        assert facts == {"names": sorted(arrays)}
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_rows_outside_of_the_array_are_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    writer = ArrayFileWriter(descriptor, {"x": ArrayPlan("u1", (3, 2))})
    for first, shape in ((2, (2, 2)), (0, (1, 3))):
        with pytest.raises(ValueError, match="array 'x': expected rows of"):
            writer.write("x", first, np.zeros(shape, np.uint8))
    os.close(descriptor)


@given(st.floats(0, 1), st.integers(1, 255))
@settings(deadline=None, max_examples=60)
def test_a_file_that_is_cut_or_whose_description_changed_is_damaged(share: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write(path, {"x": np.ones((3, 7), np.uint8)})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * (len(whole) - 1))])
        with pytest.raises(DamagedFileError):
            open_arrays(path)
        description = whole.index(b'{"arrays"')
        for first, length in ((0, 64), (description, len(whole) - description)):
            place = first + int(share * (length - 1))
            changed = bytearray(whole)
            changed[place] ^= flip
            path.write_bytes(changed)
            with pytest.raises(DamagedFileError):
                open_arrays(path)


def test_a_file_that_was_not_finished_is_damaged(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    ArrayFileWriter(descriptor, {"x": ArrayPlan("u1", (3, 2))}).write("x", 0, np.ones((3, 2), np.uint8))
    os.close(descriptor)
    with pytest.raises(DamagedFileError):
        open_arrays(tmp_path / "a")


@given(st.lists(st.integers(1, 9), min_size=2, max_size=2).map(tuple), st.floats(0, 1), st.integers(1, 255))
@settings(deadline=None, max_examples=30)
def test_any_byte_of_the_arrays_that_changed_is_damage(shape: tuple[int, ...], share: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write(path, {"x": np.full(shape, 200, np.uint8), "y": np.full(shape, 200, np.uint8)})
        content = bytearray(path.read_bytes())
        places = [place for place, byte in enumerate(content) if place >= 4096 and byte == 200]
        content[places[int(share * (len(places) - 1))]] ^= flip
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="its content has another checksum"):
            open_arrays(path)
