"""The folder of mapped files: made once whoever asks, whole or not at all, and bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fitserve_training.data.store import cache_folder
from fitserve_training.data.store.array_file import ArrayPlan
from fitserve_training.data.store.rows import Writer, key_of, stored_rows
from fitserve_training.errors import UsageError

PLANS = {"x": ArrayPlan("uint8", (4, 1000))}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FITSERVE_DATA_STORE", "disk")
    yield tmp_path / "cache/fitserve/rows"
    cache_folder._usable.cache_clear()


def rows(name: str, fill: int = 7) -> np.ndarray:
    def write(writer: Writer) -> dict[str, int]:
        writer.write("x", 0, np.full((4, 1000), fill, np.uint8))
        return {"fill": fill}

    arrays, facts = stored_rows(key_of(name), PLANS, "tests", write)
    assert facts == {"fill": int(arrays["x"][0, 0])}
    return arrays["x"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def test_a_key_is_filled_once(folder: Path) -> None:
    first = rows("a", 7)
    assert (rows("a", 8) == 7).all()
    assert (rows("b", 8) == 8).all()
    assert isinstance(first, np.memmap)
    assert len(files(folder)) == 2


def test_in_memory_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in ("memory", "auto", ""):
        monkeypatch.setenv("FITSERVE_DATA_STORE", chosen)
        assert not isinstance(rows("a"), np.memmap)
    assert not folder.exists()
    monkeypatch.setenv("FITSERVE_DATA_STORE", "ram")
    with pytest.raises(UsageError, match="FITSERVE_DATA_STORE: expected auto, memory, disk, got 'ram'"):
        rows("a")


def test_a_damaged_file_is_made_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows("a", 7)
    (name,) = files(folder)
    os.truncate(folder / name, 5000)
    assert (rows("a", 9) == 9).all()
    assert "it is made anew" in capsys.readouterr().err


def test_changed_bytes_of_the_rows_are_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows("a", 7)
    (name,) = files(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"\x07" * 4000, b"\x07" * 3999 + b"\x06"))
    assert (rows("a", 9) == 9).all()
    assert "its content has another checksum; it is made anew" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_or_touched_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows("a", 7)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as of_another_user:
        of_another_user.setattr(os, "utime", refuse)
        assert (rows("a", 8) == 7).all()
    (name,) = files(folder)
    opened = cache_folder.open_arrays
    monkeypatch.setattr(
        cache_folder, "open_arrays", lambda path, **options: refuse() if path.name == name else opened(path, **options)
    )
    assert (rows("a", 9) == 9).all()


def test_rows_whose_file_makes_room_at_once_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = os.replace

    def replace_and_make_room(part: Path, path: Path) -> None:
        replaced(part, path)
        path.unlink()  # as another process may that needs the room

    monkeypatch.setattr(os, "replace", replace_and_make_room)
    assert (rows("a", 7) == 7).all()


def test_work_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(_writer: Writer) -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_rows(key_of("a"), PLANS, "tests", fail)
    assert files(folder) == []


def test_what_a_dead_process_left_is_removed_and_what_is_being_written_is_not(folder: Path) -> None:
    rows("a")
    (folder / ".unfinished-dead").write_bytes(b"x" * 100)

    def write(writer: Writer) -> dict[str, int]:
        rows("c")  # another key, made while this one is
        writer.write("x", 0, np.full((4, 1000), 1, np.uint8))
        return {}

    arrays, _ = stored_rows(key_of("b"), PLANS, "tests", write)
    assert (arrays["x"] == 1).all()
    assert len(files(folder)) == 3
    assert not (folder / ".unfinished-dead").exists()


def test_the_file_unused_for_longest_makes_room_and_its_map_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {name: rows(name, place) for place, name in enumerate("abc")}
    for place, name in enumerate("abc"):
        os.utime(folder / f"{key_of(name)}.rows", (place, place))
    rows("a")  # used again, so b is the oldest
    size = (folder / f"{key_of('a')}.rows").stat().st_size
    monkeypatch.setenv(cache_folder.LIMIT_VARIABLE, str(2 * size + 4000))
    rows("d")
    assert files(folder) == sorted(f"{key_of(name)}.rows" for name in "acd")
    assert (held["b"] == 1).all()
    monkeypatch.setenv(cache_folder.LIMIT_VARIABLE, "1 GB")
    with pytest.raises(UsageError, match="FITSERVE_CACHE_BYTES: expected a number of bytes, got '1 GB'"):
        rows("e")


def test_a_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    assert (rows("a", 7) == 7).all()
    assert (rows("a", 8) == 7).all()
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "temporary file" in said


def test_files_in_a_folder_that_cannot_be_written_are_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows("a", 7)
    # Permissions do not bind root, who runs tests in containers: another folder stands for the temporary one.
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(cache_folder, "_folder", lambda: tmp_path / "other")
    assert (rows("a", 8) == 7).all()
    assert (rows("b", 9) == 9).all()
    assert files(folder) == [f"{key_of('a')}.rows"]
    assert files(tmp_path / "other") == [f"{key_of('b')}.rows"]


CHILD = """
import resource, signal, sys, time
import numpy as np
from pathlib import Path
from fitserve_training.data.store.array_file import ArrayPlan
from fitserve_training.data.store.rows import key_of, stored_rows
from fitserve_training.errors import UsageError

def fill(writer):
    with Path(sys.argv[1]).open("a") as file:
        file.write("filled ")
    writer.write("x", 0, np.full((4, 100_000), 3, np.uint8))
    return {}

if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    arrays, _ = stored_rows(key_of("a"), {"x": ArrayPlan("uint8", (4, 100_000))}, "tests", fill)
    assert (arrays["x"] == 3).all()
except UsageError as error:
    print(error)
    sys.exit(2)
"""


def test_processes_that_want_the_same_rows_fill_them_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "log")]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    assert (tmp_path / "log").read_text() == "filled "


def test_a_full_disk_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "log"), "100000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert "expected room for 0.00 GB of tests" in ended.stdout
    assert "XDG_CACHE_HOME" in ended.stdout
    assert not (tmp_path / "log").exists(), "it is refused before the work"
    assert files(folder) == []
