"""A version is written whole or not at all, also where a signal comes meanwhile."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitserve_contract.repository import MODEL_FILE, versions
from fitserve_exporters.errors import ExportError
from fitserve_exporters.publishing import writing
from fitserve_exporters.publishing.writing import WRITING, write_version

FILES = {MODEL_FILE: b"model", "card.html": b"card", "manifest.json": b"{}"}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled_at(monkeypatch: pytest.MonkeyPatch, file: str, *numbers: int) -> None:
    """Sends this process signals when a file is about to be written."""
    write = writing.write_durably

    def write_and_signal(path: Path, content: bytes) -> None:
        write(path, content)
        if path.name == file:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(writing, "write_durably", write_and_signal)


def test_files_become_a_version(tmp_path: Path) -> None:
    path = write_version(tmp_path / "new" / "repository", "m", FILES)
    assert {entry.name for entry in path.folder.iterdir()} == {*FILES, "SHA256SUMS"}
    assert not WRITING.lock.locked()


@pytest.mark.parametrize("file", list(FILES))
@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, count: int
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signalled_at(monkeypatch, file, *[signal.SIGINT] * count)
    with pytest.raises(KeyboardInterrupt):
        write_version(tmp_path / "new" / "repository", "m", FILES)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not WRITING.lock.locked()


def test_other_versions_and_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(tmp_path, "m", FILES)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signalled_at(monkeypatch, MODEL_FILE, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        write_version(tmp_path, "m", FILES)
    assert versions(tmp_path, "m") == [1]
    assert [entry.name for entry in (tmp_path / "m").iterdir()] == ["1"]


def test_sigterm_goes_to_the_handler_of_the_program_once_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    signal.signal(signal.SIGTERM, lambda number, _: found.append((number, list(tmp_path.iterdir()))))
    signalled_at(monkeypatch, MODEL_FILE, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(ExportError, match="ended by a signal before the version was published"):
        write_version(tmp_path / "repository", "m", FILES)
    assert found == [(signal.SIGTERM, [])]


def test_signal_that_the_program_ignores_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signalled_at(monkeypatch, MODEL_FILE, signal.SIGTERM)
    assert write_version(tmp_path, "m", FILES).version == 1


def test_failure_of_the_disk_removes_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_durably", full)
    with pytest.raises(ExportError, match="got No space left on device"):
        write_version(tmp_path / "repository", "m", FILES)
    assert list(tmp_path.iterdir()) == []
