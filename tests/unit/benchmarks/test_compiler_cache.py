"""Each contestant's own compiler cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fitserve_benchmarks.compiler_cache import CACHE_VARIABLE, empty_compiler_cache


def test_each_contestant_has_a_new_folder_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the user's own")
    monkeypatch.setenv("TRITON_CACHE_DIR", "of the contestant before")
    found = []
    for _ in range(3):
        empty_compiler_cache()
        found.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        (found[-1] / "kernel").touch()
    assert len(set(found)) == 3
    assert {folder.parent for folder in found} == {tmp_path}
    assert all(list(folder.iterdir()) == [folder / "kernel"] for folder in found)
    assert "TRITON_CACHE_DIR" not in os.environ


def test_the_users_own_cache_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the user's own")
    empty_compiler_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "the user's own"
