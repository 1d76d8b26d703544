"""Large .npz arrays: read by blocks into a mapped file, they are the data sets that they are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitserve_training.data.dataset import DataSet
from fitserve_training.data.own import array_rows
from fitserve_training.data.own.arrays import load_arrays
from fitserve_training.data.store import cache_folder
from fitserve_training.errors import UsageError
from fitserve_training.recipes.own_data import SETTINGS

COUNT = 30
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(array_rows, "_BLOCK_BYTES", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "fitserve/rows"
    cache_folder._usable.cache_clear()


def loaded(path: Path) -> DataSet:
    return load_arrays(path, "x", "auto", float(SETTINGS["data.hold_out"]), 0)


def told(path: Path) -> Any:
    """Gives what an array becomes, or what is said of it."""
    try:
        data = loaded(path)
    except UsageError as error:
        return str(error)
    wholes = [split.whole() for split in (data.train, data.held_out)]
    tensors = [[(x.dtype, x.numpy().tobytes()) for x in (*whole.inputs, whole.targets)] for whole in wholes]
    return data.source, data.note, data.class_names, data.train.input_shapes, data.train.input_dtypes, tensors


ARRAYS: dict[str, np.ndarray] = {
    "bytes": RANDOM.integers(0, 256, (COUNT, 3, 4, 5)).astype(np.uint8),
    "float64": RANDOM.normal(size=(COUNT, 7)),
    "big-endian": RANDOM.normal(size=(COUNT, 2)).astype(">f4"),
    "integers": RANDOM.integers(-(1 << 40), 1 << 40, (COUNT, 3)),
    "unsigned": RANDOM.integers(0, 1 << 16, (COUNT, 3)).astype(np.uint16),
    "truths": RANDOM.integers(0, 2, (COUNT, 3)).astype(bool),
    "half": RANDOM.normal(size=(COUNT, 3)).astype(np.float16),
    "by columns": np.asfortranarray(RANDOM.normal(size=(COUNT, 3))),
    "flat": RANDOM.normal(size=COUNT),
    "nan": np.where(np.arange(COUNT)[:, None] == 17, np.nan, 1.0),
    "texts": np.array(["a"] * COUNT),
    "too many": RANDOM.normal(size=(COUNT + 1, 2)),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_is_the_same_in_a_file_and_in_memory(
    name: str, save: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.npz", x=ARRAYS[name], labels=np.arange(COUNT) % 3)
    monkeypatch.setenv("FITSERVE_DATA_STORE", "memory")
    expected = told(tmp_path / "a.npz")
    monkeypatch.setenv("FITSERVE_DATA_STORE", "disk")
    assert told(tmp_path / "a.npz") == expected
    assert told(tmp_path / "a.npz") == expected, "found again"


def test_bytes_stay_bytes_in_the_file(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITSERVE_DATA_STORE", "disk")
    np.savez(tmp_path / "a.npz", x=ARRAYS["bytes"], labels=np.arange(COUNT) % 3)
    data = loaded(tmp_path / "a.npz")
    assert data.train.byte_count + data.held_out.byte_count == ARRAYS["bytes"].nbytes
    np.savez_compressed(tmp_path / "b.npz", x=ARRAYS["bytes"] ^ 1, labels=np.arange(COUNT) % 3)
    loaded(tmp_path / "b.npz")
    assert len(list(folder.glob("*.rows"))) == 2, "by content"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused(
    save: Callable[..., None], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITSERVE_DATA_STORE", "disk")
    save(tmp_path / "a.npz", x=ARRAYS["float64"], labels=np.arange(COUNT) % 3)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    place = content.index(b"x.npy") + 300  # in the rows
    (tmp_path / "flipped.npz").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for name in ("cut.npz", "flipped.npz"):
        assert "expected an .npz file of numpy" in str(told(tmp_path / name))
    assert not list(folder.glob("*.rows"))
