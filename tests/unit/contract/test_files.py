"""Nothing outside a folder is read, and nothing is seen half written."""

import os
import threading
from pathlib import Path

import pytest

from fitserve_contract.files import (
    UnsafeFileError,
    open_beneath,
    read_beneath,
    replace_durably,
    write_durably,
)


def test_file_in_the_folder_or_below_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"content")
    assert read_beneath(tmp_path, "sub/file", max_bytes=7) == b"content"


def test_link_to_the_folder_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_beneath(tmp_path / "link", "file", max_bytes=1) == b"x"


@pytest.mark.parametrize("relative", ["", "/etc/passwd", "../secret", "sub/../../secret", "a\0b", "."])
def test_path_that_leads_outside_is_refused(tmp_path: Path, relative: str) -> None:
    folder = tmp_path / "version"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(UnsafeFileError, match="expected a relative path"):
        read_beneath(folder, relative, max_bytes=100)


@pytest.mark.parametrize("form", ["link to a file", "link to a folder", "hard link", "folder", "pipe"])
def test_everything_but_a_file_of_its_own_is_refused(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "version"
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    relative = "file"
    if form == "link to a file":
        (folder / "file").symlink_to(outside / "file")
    elif form == "link to a folder":
        (folder / "sub").symlink_to(outside)
        relative = "sub/file"
    elif form == "hard link":
        os.link(outside / "file", folder / "file")
    elif form == "folder":
        (folder / "file").mkdir()
    else:
        os.mkfifo(folder / "file")
    with pytest.raises(UnsafeFileError, match="file '"):
        read_beneath(folder, relative, max_bytes=100)


def test_link_within_the_folder_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(UnsafeFileError, match="expected no symbolic link, got one at 'link'"):
        read_beneath(tmp_path, "link", max_bytes=1)


def test_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(UnsafeFileError, match="at most 4 bytes, got 5"):
        read_beneath(tmp_path, "file", max_bytes=4)


def test_missing_file_and_folder_are_not_found(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError):
            read_beneath(folder, "file", max_bytes=1)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    before = len(os.listdir("/proc/self/fd"))
    for relative in ("a/b/file", "link", "a/b/absent", "a/b"):
        try:
            with open_beneath(tmp_path, relative):
                pass
        except (UnsafeFileError, OSError):
            continue
    assert len(os.listdir("/proc/self/fd")) <= before


def test_replacement_is_never_seen_half_done(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    contents = [bytes([number]) * 50_000 for number in range(8)]
    write_durably(path, contents[0])
    is_done, seen = threading.Event(), []

    def read() -> None:
        while not is_done.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents * 5:
        replace_durably(path, content)
    is_done.set()
    reader.join()
    assert set(seen) <= set(contents)
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.json"]


def test_failed_replacement_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_durably(target, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_is_replaced_while_it_is_open_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(b"old")
    with open_beneath(tmp_path, "labels.json") as descriptor:
        replace_durably(tmp_path / "labels.json", b"new")
        assert os.read(descriptor, 9) == b"old"
        assert os.fstat(descriptor).st_nlink == 0
    assert read_beneath(tmp_path, "labels.json", max_bytes=9) == b"new"


def test_a_file_that_is_replaced_as_it_is_opened_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.json").write_bytes(b"old")
    fstat = os.fstat

    def replaced(descriptor: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        replace_durably(tmp_path / "labels.json", b"new")
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", replaced)
    assert read_beneath(tmp_path, "labels.json", max_bytes=9) == b"old"


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_nothing_is_replaced_through_a_link(tmp_path: Path, linked: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "labels.json").write_bytes(b"old")
    folder = tmp_path / "m"
    if linked == "folder":
        folder.symlink_to("kept")
    else:
        folder.mkdir()
        (folder / "labels.json").symlink_to("../kept/labels.json")
    with pytest.raises(UnsafeFileError, match=r"expected no symbolic link, got one to '.*kept.*'; nothing is written"):
        replace_durably(folder / "labels.json", b"new")
    assert (kept / "labels.json").read_bytes() == b"old"
    assert [entry.name for entry in kept.iterdir()] == ["labels.json"]
    # A link on the way to the folder is the operator's.
    (tmp_path / "alias").symlink_to(".")
    replace_durably(tmp_path / "alias" / "kept" / "labels.json", b"new")
    assert (kept / "labels.json").read_bytes() == b"new"
