"""One version's files in a view of its repository: named relative to its folder, links in it followed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fitserve_contract.files import UnsafeFileError, relative_parts
from fitserve_contract.repository_view import LinkError, RepositoryRoot, RepositoryView

MAX_FILES: Final = 4_096
"""A version with more files is refused: links may make few folders look like many."""

OWN_PREFIX: Final = ".."
"""Names that start so are Kubernetes' own folders and links; what they hold is read through the links beside them."""


_LITTER: Final = frozenset({"lost+found", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", "$RECYCLE.BIN"})


def is_litter(name: str) -> bool:
    """Tells whether a file is one that desktops, editors, copying tools or file systems leave behind in any folder.

    Hidden files (`.DS_Store`, `.nfs0001`, `.model.onnx.swp`, `.git/HEAD`), backups (`model.onnx~`) and what lies in
    `lost+found` and its like. Nobody reads them, unless the version's checksums name them.

    Args:
        name: Path below the version's folder.
    """
    return any(part.startswith(".") or part.endswith("~") or part in _LITTER for part in name.split("/"))


class FolderView:
    """A version's or model's folder in one view. Files are named relative to it, as external data is."""

    def __init__(self, view: RepositoryView, path: str) -> None:
        self._view = view
        self._path = path

    def open(self, name: str) -> contextlib.AbstractContextManager[int]:
        """Opens a regular file for reading; see `RepositoryView.open`."""
        return self._view.open(self._below(name), name=name)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Reads a whole file; see `RepositoryView.read`. `..` and absolute names are refused."""
        return self._view.read(self._below(name), max_bytes=max_bytes, name=name)

    def sha256(self, name: str) -> str:
        """Computes the SHA-256 of a file; see `RepositoryView.sha256`."""
        return self._view.sha256(self._below(name), name=name)

    def file_names(self) -> list[str]:
        """Lists all files below it, links followed, sorted; without Kubernetes' own folders (`..data`, `..2026_…`).

        Raises:
            LinkError: a link in it cannot be followed.
            UnsafeFileError: there are more than MAX_FILES names.
            OSError: it cannot be read.
        """
        names: list[str] = []
        listed_count = 0
        waiting: list[tuple[str, frozenset[str]]] = [("", frozenset())]
        while waiting:
            below, above = waiting.pop()
            path = self._below(below) if below else self._path
            real = self._view.real_path(path)
            # A link back to a folder that holds it: its files have their names already.
            entries = self._entries(path, below) if real not in above else []
            listed_count += len(entries)
            if listed_count > MAX_FILES:
                raise UnsafeFileError(f"expected at most {MAX_FILES} files in a version, found more")
            for entry in entries:
                name = f"{below}/{entry.name}".lstrip("/")
                if entry.name.startswith(OWN_PREFIX):
                    continue
                if self._is_folder(entry, name):
                    waiting.append((name, above | {real}))
                else:
                    names.append(name)
        return sorted(names)

    def _entries(self, path: str, below: str) -> list[os.DirEntry[str]]:
        try:
            return self._view.entries(path)
        except PermissionError:
            # `lost+found` is for root alone to read.
            if below and is_litter(below):
                return []
            raise

    def _is_folder(self, entry: os.DirEntry[str], name: str) -> bool:
        if entry.is_symlink():
            try:
                return self._view.is_folder(self._below(name))
            except LinkError:
                # Emacs locks a file by a link to nothing.
                if is_litter(name):
                    return False
                raise
        return entry.is_dir(follow_symlinks=False)

    def _below(self, name: str) -> str:
        relative_parts(name)
        return f"{self._path}/{name}" if self._path else name


@contextlib.contextmanager
def viewed(folder: Path | FolderView) -> Iterator[FolderView]:
    """Views a folder by itself: its links may not leave it. What is a view already is given back."""
    if isinstance(folder, FolderView):
        yield folder
        return
    with RepositoryRoot(folder).view() as view:
        yield FolderView(view, "")
