"""What a loader refuses and why, and that nothing outside a version's folder is ever read."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
from loader_world import load, refusal

from fitserve_contract.repository import VersionPath, verify_checksums, version_path
from fitserve_service.loading import version_reader

SECRET = b"secret" * 100


def swapped(path: VersionPath) -> None:
    (path.folder / "model.onnx").write_bytes(builders.scaled(3.0))


def flipped(path: VersionPath) -> None:
    content = bytearray((path.folder / "model.onnx").read_bytes())
    content[-9] ^= 1
    (path.folder / "model.onnx").write_bytes(content)


def removed(path: VersionPath) -> None:
    (path.folder / "model.onnx").unlink()


def unlisted(path: VersionPath) -> None:
    (path.folder / "extra.bin").write_bytes(b"1")


def forged_manifest(path: VersionPath) -> None:
    (path.folder / "manifest.json").write_bytes(builders.manifest("other").to_bytes())


def garbled_sums(path: VersionPath) -> None:
    (path.folder / "SHA256SUMS").write_text("garbage\n")


def emptied_sums(path: VersionPath) -> None:
    (path.folder / "SHA256SUMS").write_text("")


def linked_sums(path: VersionPath) -> None:
    (path.folder / "SHA256SUMS").unlink()
    (path.folder / "SHA256SUMS").symlink_to("/etc/hostname")


HEX = "[0-9a-f]{64}"


@pytest.mark.parametrize(
    ("tamper", "text"),
    [
        (swapped, f"file 'model.onnx': expected sha256 {HEX}, got {HEX}"),
        (flipped, f"file 'model.onnx': expected sha256 {HEX}, got {HEX}"),
        (removed, f"file 'model.onnx': expected sha256 {HEX}, got none: it is missing"),
        (unlisted, f"file 'extra.bin': expected sha256 none: it is not in SHA256SUMS, got {HEX}"),
        (forged_manifest, f"file 'manifest.json': expected sha256 {HEX}, got {HEX}"),
        (garbled_sums, "SHA256SUMS line 1: expected '<sha256>  <file>', got 'garbage'"),
        (emptied_sums, f"file 'manifest.json': expected sha256 none: it is not in SHA256SUMS, got {HEX}"),
        (linked_sums, "link 'm/1/SHA256SUMS' leads to '/etc/hostname', outside of the repository .*"),
    ],
)
def test_tampering_with_a_published_version_is_refused(
    tmp_path: Path, tamper: Callable[[VersionPath], None], text: str
) -> None:
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    tamper(path)

    assert re.fullmatch(text, refusal(path))


def test_a_file_swapped_between_the_check_and_the_reading_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    check = verify_checksums

    def check_then_swap(folder: Path) -> None:
        check(folder)
        swapped(path)

    monkeypatch.setattr(version_reader, "verify_checksums", check_then_swap)

    assert re.fullmatch(f"file 'model.onnx': expected sha256 {HEX}, got {HEX}", refusal(path))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "file 'model.onnx': expected an ONNX model, found no graph in it"),
        (b"garbage", "file 'model.onnx': expected"),
        (builders.scaled()[:-5], "file 'model.onnx': expected .* found .*: cut off?"),
        (builders.sequence_input(), r"input 's': expected a tensor of .*, got a sequence \(seq\(tensor\(float\)\)\)"),
        (builders.external("w.bin"), "file 'w.bin': expected it in the version, found none"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    assert re.match(text, refusal(builders.bare_version(tmp_path, "m", 1, content)))


def test_a_version_without_a_model_is_refused(tmp_path: Path) -> None:
    path = version_path(tmp_path, "m", 1)
    path.folder.mkdir(parents=True)

    assert refusal(path) == "file 'model.onnx': expected it in the version, found none"
    assert "expected it in the version" in refusal(version_path(tmp_path, "m", 2))


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        (b"{", "manifest: expected JSON, got"),
        (b"[" * 10_000, "manifest: expected JSON, got"),
        (b"[]", "manifest: expected an object, got list"),
        (b"\xff\xfe", "manifest: expected JSON"),
        (b"{}", "manifest.schema_version: expected 1, got None"),
        (
            builders.manifest("m").to_bytes().replace(b'"FP32"', b'"FP33"'),
            "manifest.inputs[0].datatype: expected one of",
        ),
        (
            builders.manifest("m", builders.classes_task("logits")).to_bytes(),
            "manifest.task.output: expected one of y, got 'logits'",
        ),
    ],
)
def test_a_manifest_that_cannot_be_taken_is_refused(tmp_path: Path, manifest: bytes, text: str) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    (path.folder / "manifest.json").write_bytes(manifest)

    assert refusal(path).startswith(text)


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_no_link_outside_fifo_socket_or_folder_is_taken_for_a_file(tmp_path: Path, file: str) -> None:
    path = builders.bare_version(tmp_path / "repository", "m", 1, builders.scaled())
    target = path.folder / file
    (tmp_path / "outside").write_bytes((path.folder / "model.onnx").read_bytes())
    makers: list[tuple[Callable[[], object], str]] = [
        (lambda: target.symlink_to(tmp_path / "outside"), f"link 'm/1/{file}' leads to '{tmp_path}/outside', outside"),
        (lambda: target.symlink_to("/dev/zero"), f"link 'm/1/{file}' leads to '/dev/zero', outside of the repository"),
        (lambda: target.hardlink_to(tmp_path / "outside"), f"file '{file}': expected 1 hard link, got 2"),
        (lambda: os.mkfifo(target), f"file '{file}': expected a regular file, got a pipe"),
        (target.mkdir, f"file '{file}': expected a regular file, got a folder"),
    ]
    for make, text in makers:
        target.unlink(missing_ok=True)
        make()
        assert refusal(path).startswith(text)
    target.rmdir()
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(path.folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{descriptor}/{file}")
        os.close(descriptor)
    assert refusal(path) == f"file '{file}': cannot be read: No such device or address"


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("../../../outside.bin", "file '../../../outside.bin': expected a relative path without '..'"),
        ("../model.onnx", "file '../model.onnx': expected a relative path without '..'"),
        ("/etc/hostname", "file '/etc/hostname': expected a relative path without '..'"),
        ("d/../../../../outside.bin", "file 'd/../../../../outside.bin': expected a relative path without '..'"),
        ("", "file '': expected a relative path without '..'"),
        ("\0", r"file '\x00': expected a relative path without '..'"),
        ("leaf", "link 'm/1/leaf' leads to '{root}/outside.bin', outside of the repository"),
        ("parent/outside.bin", "link 'm/1/parent' leads to '{root}', outside of the repository"),
        ("up/outside.bin", "link 'm/1/up' leads to '../../..', outside of the repository"),
        ("hard", "file 'hard': expected 1 hard link, got 2"),
        ("linked-hard", "file 'linked-hard': expected 1 hard link, got 2"),
        ("fifo", "file 'fifo': expected a regular file, got a pipe"),
        ("linked-fifo", "file 'linked-fifo': expected a regular file, got a pipe"),
        ("folder", "file 'folder': expected a regular file, got a folder"),
        ("device", "link 'm/1/device' leads to '/dev/zero', outside of the repository"),
        ("self/device", "link 'm/1/device' leads to '/dev/zero', outside of the repository"),
        ("loop", "link 'm/1/loop' leads to 'loop', in a circle"),
        ("dangling", "link 'm/1/dangling' leads to 'absent', which is not there"),
    ],
)
def test_external_data_never_leaves_the_version(tmp_path: Path, location: str, text: str) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(SECRET)
    path = builders.bare_version(tmp_path / "repository", "m", 1, builders.external(location))
    (path.folder / "leaf").symlink_to(outside)
    (path.folder / "parent").symlink_to(tmp_path)
    (path.folder / "hard").hardlink_to(outside)
    (path.folder / "folder").mkdir()
    os.mkfifo(path.folder / "fifo")
    links = {"up": "../../..", "linked-hard": "hard", "linked-fifo": "fifo", "device": "/dev/zero", "self": "."}
    for name, target in (links | {"loop": "loop", "dangling": "absent"}).items():
        (path.folder / name).symlink_to(target)

    assert refusal(path).startswith(text.format(root=tmp_path))


def test_external_data_inside_the_version_is_loaded_and_held_against_its_checksum(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"w.bin": builders.external_content()}
    path = builders.publish_version(tmp_path, "m", builders.external("w.bin"), **weights)

    assert load(path).signature.inputs[0].name == "x"
    (path.folder / "w.bin").write_bytes(builders.external_content()[::-1])
    assert refusal(path).startswith("file 'w.bin': expected sha256")
