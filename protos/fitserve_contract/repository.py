"""The model repository: `<root>/<model>/<version>/model.onnx`, beside it the manifest and the checksums.

A version appears atomically (written aside, flushed, renamed) and never changes afterwards.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from fitserve_contract.files import UnsafeFileError, open_beneath, sync_folder, write_durably
from fitserve_contract.folder_view import FolderView, is_litter, viewed
from fitserve_contract.printable import printable
from fitserve_contract.repository_view import (
    LinkError,
    RepositoryChangedError,
    RepositoryRoot,
    Root,
    read_settled,
    root_of,
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
_CHECKSUM_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_TAGGED_LINE = re.compile(r"(\\?)SHA256 \((.+)\) = ([0-9a-fA-F]{64})")
_ESCAPED = re.compile(r"\\([\\nr])")
_ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_STAGING_PREFIX = ".staging-"


class ChecksumError(ValueError):
    """A version whose files are not those that were published."""


@dataclass(frozen=True, slots=True, order=True)
class VersionPath:
    """Where one version lies.

    Args:
        model: Model name.
        version: Its number.
        folder: `<root>/<model>/<version>`, links unfollowed.
        root: The repository that its links may not leave.
    """

    model: str
    version: int
    folder: Path
    root: RepositoryRoot = field(compare=False)

    @contextmanager
    def view(self) -> Iterator[FolderView]:
        """Opens one look at its files; OSError: the repository is not there."""
        with self.root.view() as view:
            yield FolderView(view, f"{self.model}/{self.version}")


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


def models(root: Root) -> list[str]:
    """Lists the model names in a repository, sorted; other folders are ignored.

    A link that should be a model's folder and cannot be followed is listed: `versions` says what is wrong with it.

    Raises:
        OSError: the root is not there.
    """
    with os.scandir(root_of(root).path) as entries:
        return sorted(entry.name for entry in entries if is_model_name(entry.name) and _may_be_folder(entry))


def versions(root: Root, model: str) -> list[int]:
    """Lists a model's versions, ascending: folders named by a positive integer without a leading zero.

    A link so named is a version wherever it leads: whoever loads it is told what is wrong with it. A model that is not
    there has none.

    Raises:
        LinkError: the model's folder is a link that cannot be followed.
        OSError: it cannot be read.
    """
    name = check_model_name(model)
    try:
        entries = read_settled(root, lambda view: view.entries(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbered = [entry for entry in entries if _VERSION_NAME.fullmatch(entry.name)]
    return sorted(int(entry.name) for entry in numbered if entry.is_symlink() or entry.is_dir(follow_symlinks=False))


def version_path(root: Root, model: str, version: int) -> VersionPath:
    """Names a version's folder, whether it is there or not."""
    root = root_of(root)
    return VersionPath(check_model_name(model), version, root.path / model / str(version), root)


@contextmanager
def publishing(root: Path, model: str) -> Iterator[Path]:
    """Gives an empty folder aside, to be filled and handed to `publish`; whatever is left of it is removed at the end.

    It lies in the model's own folder, under a name that no reader takes for a version, so that the rename stays
    within one file system.

    Raises:
        LinkError: the model's folder is a link: nothing is written through links.
        OSError: no permission, disk full.
    """
    model_folder = root / check_model_name(model)
    if model_folder.is_symlink():
        where = f"link '{model}' leads to '{os.readlink(model_folder)}'"
        raise LinkError(f"{where}, and nothing is written through links; publish into the repository that it leads to")
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
        ValueError: there is no model.onnx in it, or a symbolic link.
        OSError: disk full, no permission; nothing appears in the repository.
    """
    if not (aside / MODEL_FILE).is_file():
        raise ValueError(f"publish: expected {MODEL_FILE} in the folder to publish, found none")
    _check_no_links(aside)
    write_durably(aside / CHECKSUMS_FILE, os.fsencode(checksum_text(checksums(aside))))
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
            if not os.path.lexists(target.folder):
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
        if (root / model).is_symlink():
            # What lies behind it is others' to remove.
            continue
        for entry in list((root / model).glob(f"{_STAGING_PREFIX}*")):
            if _is_abandoned(entry, now_s - older_than_s):
                shutil.rmtree(entry, ignore_errors=True)
                if not entry.exists():
                    removed.append(entry)
    return removed


def checksums(folder: Path | FolderView) -> dict[str, str]:
    """Computes the SHA-256 of every file of a version but the checksum file itself; relative path to hexadecimal.

    Raises:
        UnsafeFileError: a file is none of the version's own; see `FolderView.file_names`.
        OSError: one cannot be read.
    """
    with viewed(folder) as view:
        return {name: view.sha256(name) for name in view.file_names() if name != CHECKSUMS_FILE}


def checksum_text(sums: Mapping[str, str]) -> str:
    """Writes checksums as `sha256sum` does, so that `sha256sum -c SHA256SUMS` reads them."""
    return "".join(_checksum_line(name, digest) for name, digest in sorted(sums.items()))


def _checksum_line(name: str, digest: str) -> str:
    escaped = "".join(_ESCAPES.get(char, char) for char in name)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def read_checksums(folder: Path | FolderView) -> dict[str, str]:
    """Reads a version's checksum file; relative path to hexadecimal.

    All that `sha256sum` writes and reads is understood: `./` before a name, `*` for binary, capital digits, escaped
    names, `\\r\\n`. So are empty lines, lines that begin with `#`, and a line of the checksum file itself, which
    `sha256sum * > SHA256SUMS` leaves in it.

    Raises:
        FileNotFoundError: it has none.
        ChecksumError: a line is not one of `sha256sum`, or two lines of a file differ.
    """
    sums: dict[str, str] = {}
    with viewed(folder) as view:
        text = os.fsdecode(view.read(CHECKSUMS_FILE, max_bytes=MAX_TEXT_BYTES).removeprefix(codecs.BOM_UTF8))
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, digest = _summed(number, line)
        if name != CHECKSUMS_FILE and sums.setdefault(name, digest) != digest:
            raise ChecksumError(f"{CHECKSUMS_FILE} line {number}: another line says otherwise of '{printable(name)}'")
    return sums


def _summed(number: int, line: str) -> tuple[str, str]:
    if match := _CHECKSUM_LINE.fullmatch(line):
        mark, digest, name = match.groups()
    elif match := _TAGGED_LINE.fullmatch(line):
        mark, name, digest = match.groups()
    else:
        found = printable(line[:80])
        raise ChecksumError(f"{CHECKSUMS_FILE} line {number}: expected '<sha256>  <file>', got '{found}'")
    if mark:
        name = _ESCAPED.sub(lambda escape: {"n": "\n", "r": "\r"}.get(escape[1], escape[1]), name)
    return str(PurePosixPath(name)), digest.lower()


def verify_checksums(folder: Path | FolderView) -> None:
    """Holds every file of a version against its checksums; files that the checksums do not name are refused too.

    What desktops, editors and file systems leave behind is no file of the version: see `folder_view.is_litter`.

    Raises:
        ChecksumError: names the first file that differs, expected and found.
        RepositoryChangedError: links were replaced meanwhile.
        FileNotFoundError: the version has no checksum file.
    """
    with viewed(folder) as view:
        expected = read_checksums(view)
        try:
            names = view.file_names()
            found = {name: view.sha256(name) for name in names if name in expected or _is_own(name)}
        except RepositoryChangedError:
            raise
        except UnsafeFileError as error:
            raise ChecksumError(str(error)) from None
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ChecksumError(
                f"file '{printable(name)}': "
                f"expected sha256 {expected.get(name, 'none: it is not in ' + CHECKSUMS_FILE)}, "
                f"got {found.get(name, 'none: it is missing')}"
            )


def _is_own(name: str) -> bool:
    return name != CHECKSUMS_FILE and not is_litter(name)


def _check_no_links(folder: Path) -> None:
    for base, folders, names in os.walk(folder):
        for path in (Path(base, name) for name in (*folders, *names)):
            if path.is_symlink():
                name = path.relative_to(folder)
                raise UnsafeFileError(
                    f"file '{name}': expected no symbolic link in the folder to publish; copy the file"
                )


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Tells whether a name is a folder, leads to one, or to what cannot be looked at so that nobody knows.

    Raises:
        OSError: nothing in the folder that holds it can be looked at.
    """
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except FileNotFoundError:
        return entry.is_symlink()
    except PermissionError:
        if entry.is_symlink():
            return True
        raise
    except OSError:
        # A file system that is mounted there and is away (ESTALE, EIO, ENOTCONN): the folder is not gone.
        return entry.is_symlink() or entry.is_dir(follow_symlinks=False)


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
