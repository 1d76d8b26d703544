"""Reads the files that a version is made of, and remembers what each was: what was hashed is what is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fitserve_contract.files import relative_parts
from fitserve_contract.folder_view import FolderView, viewed
from fitserve_contract.printable import printable
from fitserve_contract.repository import CHECKSUMS_FILE, ChecksumError, read_checksums, verify_checksums

ABSENT: Final = ""
"""In the place of a checksum: there was no such file."""


class VersionReader:
    """One reading of a version. Not thread-safe.

    Attributes:
        folder: One view of the version's folder.
        expected: What its `SHA256SUMS` says, file to hexadecimal SHA-256; None: it has none.
        sums: What was read, file to hexadecimal SHA-256, `ABSENT` for those that were looked for in vain.
    """

    def __init__(self, folder: FolderView) -> None:
        """Begins, and holds every file against the checksums where there are any.

        Raises:
            ChecksumError: a file is not what was published.
            UnsafeFileError: the checksum file is none of the repository's own, or no file.
            OSError: a file cannot be read.
        """
        self.folder = folder
        self.sums: dict[str, str] = {}
        try:
            self.expected: Mapping[str, str] | None = read_checksums(folder)
        except FileNotFoundError:
            self.expected, self.sums[CHECKSUMS_FILE] = None, ABSENT
        else:
            verify_checksums(folder)
            self.sums |= self.expected

    def read(self, name: str, max_bytes: int) -> bytes:
        """Reads a file; with checksums, the very bytes read must have theirs: it may have been swapped since.

        Args:
            name: Path below the version's folder.
            max_bytes: Largest size.

        Raises:
            ChecksumError: it is not what was published, or not what it was when it was read before.
            UnsafeFileError: it leads out of the repository, is no file, or too large.
            OSError: it cannot be read.
        """
        try:
            content = self.folder.read(name, max_bytes=max_bytes)
        except FileNotFoundError:
            self._note(name, ABSENT)
            raise
        self._note(name, hashlib.sha256(content).hexdigest())
        return content

    def _note(self, name: str, digest: str) -> None:
        # As a model names its external data: `./weights` is the file `weights`.
        name = "/".join(relative_parts(name))
        shown = printable(name)
        if self.expected is not None and digest != self.expected.get(name, ABSENT):
            expected = self.expected.get(name, f"none: it is not in {CHECKSUMS_FILE}")
            raise ChecksumError(f"file '{shown}': expected sha256 {expected}, got {digest or 'none: it is missing'}")
        if self.sums.setdefault(name, digest) != digest:
            raise ChecksumError(f"file '{shown}': expected the same content at each reading, and it changed")


def holds(folder: Path | FolderView, sums: Mapping[str, str]) -> bool:
    """Tells whether a version's folder still holds what was read from it.

    Args:
        folder: The version's folder.
        sums: What was read; see `VersionReader.sums`.

    Raises:
        UnsafeFileError: a file leads out of the repository, or is no file.
        OSError: a file cannot be read.
    """
    with viewed(folder) as view:
        if CHECKSUMS_FILE not in sums:
            read = {name: digest for name, digest in sums.items() if digest != ABSENT}
            try:
                if read_checksums(view) != read:
                    return False
                verify_checksums(view)
                return True
            except (FileNotFoundError, ChecksumError):
                return False
        return all(_sum(view, name) == digest for name, digest in sums.items())


def _sum(folder: FolderView, name: str) -> str:
    try:
        return folder.sha256(name)
    except FileNotFoundError:
        return ABSENT
