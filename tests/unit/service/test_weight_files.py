"""Copies are made once, kept while they are used, and gone afterwards; only this user's own folder is trusted."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fitserve_service.weight_files import OwnedFolder, check_private, lease_copy, remove_unused


def fill(folder: Path) -> None:
    (folder / "content").write_bytes(b"weights")


def join_removals() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("remove-"):
            thread.join()


def test_a_copy_is_made_once_however_many_want_it_at_once(tmp_path: Path) -> None:
    owned, made, barrier = OwnedFolder(tmp_path), [], threading.Barrier(8)

    def make(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    def want() -> bytes:
        barrier.wait()
        lease = lease_copy(owned.path, "key", make)
        content = (lease.folder / "content").read_bytes()
        barrier.wait()
        lease.release()
        return content

    with ThreadPoolExecutor(8) as pool:
        assert [each.result() for each in [pool.submit(want) for _ in range(8)]] == [b"weights"] * 8
    assert len(made) == 1
    join_removals()
    assert not (owned.path / "key").exists()
    owned.close()


def test_the_last_lease_takes_the_copy_along(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    first, second = (lease_copy(owned.path, "key", fill) for _ in range(2))
    first.release()
    join_removals()
    assert (second.folder / "content").exists()
    second.release()
    join_removals()
    assert not second.folder.exists()
    again = lease_copy(owned.path, "key", fill)
    assert (again.folder / "content").exists()
    again.release()
    join_removals()
    owned.close()


def test_a_copy_that_is_being_made_is_not_removed_from_under_its_maker(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)

    def make(folder: Path) -> None:
        remove_unused(folder.with_name("key"))
        fill(folder)

    lease = lease_copy(owned.path, "key", make)
    remove_unused(lease.folder)
    assert (lease.folder / "content").read_bytes() == b"weights"
    owned.close()
    os.close(lease._lock)


def test_what_cannot_be_made_leaves_nothing_and_may_be_made_later(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)

    def fail(folder: Path) -> None:
        fill(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        lease_copy(owned.path, "key", fail)
    assert [path.name for path in owned.path.iterdir() if path.is_dir()] == []
    lease_copy(owned.path, "key", fill).release()
    join_removals()
    owned.close()


def test_what_a_killed_maker_left_is_made_anew(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    (owned.path / "key.new").mkdir()
    (owned.path / "key.new" / "half").write_bytes(b"")
    lease = lease_copy(owned.path, "key", fill)
    assert [path.name for path in lease.folder.iterdir()] == ["content"]
    lease.release()
    join_removals()
    owned.close()


def test_a_folder_is_gone_with_its_owner_and_one_that_lost_its_owner_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = OwnedFolder(tmp_path), OwnedFolder(tmp_path)
    assert first.path.is_dir()
    lost = second.path
    # As if its process had been killed: the kernel lets go of its locks.
    os.close(second._lock)
    third = OwnedFolder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "other", first.path, third.path])
    assert not lost.exists()
    first.close()
    third.close()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fitserve-weights-nascent").mkdir(mode=0o700)
    OwnedFolder(tmp_path).close()
    assert (tmp_path / "fitserve-weights-nascent").is_dir()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_not_trusted(tmp_path: Path, mode: int) -> None:
    owned = OwnedFolder(tmp_path)
    assert owned.path.stat().st_mode & 0o777 == 0o700
    owned.path.chmod(mode)
    with pytest.raises(PermissionError, match="expected a folder of user"):
        lease_copy(owned.path, "key", fill)
    owned.close()


def test_a_link_to_a_folder_is_not_trusted(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    (tmp_path / "link").symlink_to(owned.path)
    with pytest.raises(PermissionError):
        check_private(tmp_path / "link")
    owned.close()


@pytest.mark.parametrize("name", ["TMPDIR", "TEMP", "TMP"])
def test_the_folder_for_temporary_files_is_the_one_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    owned = OwnedFolder()
    assert owned.path.parent == tmp_path
    owned.close()
    monkeypatch.setenv(name, str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        OwnedFolder()


def test_a_full_disk_is_an_error_and_nothing_is_left_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        OwnedFolder(tmp_path)
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
