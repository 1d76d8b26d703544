"""The model repository: `<root>/<model>/<version>/model.onnx`, beside it the manifest and the checksums.

A version appears atomically (written aside, flushed, renamed) and never changes afterwards.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fitserve_contract.files import (
    UnsafeFileError,
    open_beneath,
    read_beneath,
    sha256_beneath,
    sync_folder,
    write_durably,
)

MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "manifest.json"
CHECKSUMS_FILE: Final = "SHA256SUMS"
CARD_FILE: Final = "model_card.html"
LABELS_FILE: Final = "labels.json"
OVERRIDES_FILE: Final = "model.toml"

MAX_TEXT_BYTES: Final = 16 << 20
"""Largest manifest, label file or checksum file that is read."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")
_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_STAGING_PREFIX = ".staging-"


class ChecksumError(ValueError):
    """A version whose files are not those that were published."""


@dataclass(frozen=True, slots=True, order=True)
class VersionPath:
    """Where one version lies."""

    model: str
    version: int
    folder: Path


def is_model_name(name: str) -> bool:
    """Tells whether a string may name a model: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`."""
    return _MODEL_NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """Gives the name back.

    Raises:
        ValueError: it may not name a model.
    """
    if not is_model_name(name):
        raise ValueError(f"model name: expected [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}, got {name[:128]!r}")
    return name


def models(root: Path) -> list[str]:
    """Lists the model names in a repository, sorted; other folders are ignored. OSError: the root is not there."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if is_model_name(entry.name) and entry.is_dir())


def versions(root: Path, model: str) -> list[int]:
    """Lists a model's versions, ascending: folders named by a positive integer without a leading zero.

    A version that is a symbolic link is no version. A model that is not there has none.
    """
    try:
        with os.scandir(root / check_model_name(model)) as entries:
            names = [e.name for e in entries if _VERSION_NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(map(int, names))


def version_path(root: Path, model: str, version: int) -> VersionPath:
    """Names a version's folder, whether it is there or not."""
    return VersionPath(check_model_name(model), version, root / model / str(version))


@contextmanager
def publishing(root: Path, model: str) -> Iterator[Path]:
    """Gives an empty folder aside, to be filled and handed to `publish`; whatever is left of it is removed at the end.

    It lies in the model's own folder, under a name that no reader takes for a version, so that the rename stays
    within one file system.
    """
    model_folder = root / check_model_name(model)
    is_new = not model_folder.exists()
    model_folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=model_folder))
    aside.chmod(0o755)
    try:
        with _held(aside):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if is_new:
            _remove_if_empty(model_folder)


def publish(root: Path, model: str, aside: Path) -> VersionPath:
    """Writes the checksums of a filled folder and makes it the model's next version, atomically.

    Two publishers that race for a number get two numbers: the loser of a rename takes the next one.

    Args:
        root: The repository.
        model: Model name.
        aside: Folder from `publishing` that holds model.onnx and all that goes with it.

    Raises:
        ValueError: there is no model.onnx in it.
        OSError: disk full, no permission; nothing appears in the repository.
    """
    if not (aside / MODEL_FILE).is_file():
        raise ValueError(f"publish: expected {MODEL_FILE} in the folder to publish, found none")
    write_durably(aside / CHECKSUMS_FILE, checksum_text(checksums(aside)).encode())
    for folder, _, names in os.walk(aside):
        for name in names:
            _flush(Path(folder, name))
        sync_folder(Path(folder))
    number = max(versions(root, model), default=0) + 1
    while True:
        target = version_path(root, model, number)
        try:
            aside.rename(target.folder)
        except OSError:
            if not target.folder.exists():
                raise
            number += 1
        else:
            sync_folder(target.folder.parent)
            return target


def remove_leftovers(root: Path, *, older_than_s: float, now_s: float) -> list[Path]:
    """Removes folders that a publisher that died left aside; gives those removed.

    A publisher that lives holds a lock on its folder, which goes with its process.

    Args:
        root: The repository.
        older_than_s: Younger ones stay: they may not be locked yet.
        now_s: Time of the file system's clock, seconds since the epoch.

    Raises:
        OSError: the repository cannot be read.
    """
    removed = []
    for model in models(root):
        for entry in list((root / model).glob(f"{_STAGING_PREFIX}*")):
            if _is_abandoned(entry, now_s - older_than_s):
                shutil.rmtree(entry, ignore_errors=True)
                removed.append(entry)
    return removed


def checksums(folder: Path) -> dict[str, str]:
    """Computes the SHA-256 of every file of a version but the checksum file itself; relative path to hexadecimal."""
    paths = (Path(base, name) for base, _, names in os.walk(folder) for name in names)
    relative = sorted(path.relative_to(folder).as_posix() for path in paths)
    return {name: sha256_beneath(folder, name) for name in relative if name != CHECKSUMS_FILE}


def checksum_text(sums: Mapping[str, str]) -> str:
    """Writes checksums as `sha256sum` does, so that `sha256sum -c SHA256SUMS` reads them."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def read_checksums(folder: Path) -> dict[str, str]:
    """Reads a version's checksum file; relative path to hexadecimal.

    Raises:
        FileNotFoundError: it has none.
        ChecksumError: a line is not one of `sha256sum`.
    """
    sums = {}
    text = read_beneath(folder, CHECKSUMS_FILE, max_bytes=MAX_TEXT_BYTES).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        match = _CHECKSUM_LINE.fullmatch(line)
        if match is None:
            raise ChecksumError(f"{CHECKSUMS_FILE} line {number}: expected '<sha256>  <file>', got {line[:80]!r}")
        sums[match[2]] = match[1]
    return sums


def verify_checksums(folder: Path) -> None:
    """Holds every file of a version against its checksums; files that the checksums do not name are refused too.

    Raises:
        ChecksumError: names the first file that differs, expected and found.
        FileNotFoundError: the version has no checksum file.
    """
    expected = read_checksums(folder)
    try:
        found = checksums(folder)
    except UnsafeFileError as error:
        raise ChecksumError(str(error)) from None
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ChecksumError(
                f"file '{name}': expected sha256 {expected.get(name, 'none: it is not in ' + CHECKSUMS_FILE)}, "
                f"got {found.get(name, 'none: it is missing')}"
            )


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Locks a folder until the end, or until this process ends in whatever way; gives whether that could be done."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Another holds it, or the file system knows no locks: then nothing is ever taken to be abandoned.
        return False
    return True


def _is_abandoned(folder: Path, before_s: float) -> bool:
    try:
        if folder.stat().st_mtime > before_s:
            return False
        with _held(folder) as is_free:
            return is_free
    except OSError:
        # Gone meanwhile, or not ours to remove.
        return False


def _flush(path: Path) -> None:
    with open_beneath(path.parent, path.name) as descriptor:
        os.fsync(descriptor)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
