"""Where data files are looked for, and how a download lands: whole, with the right checksum, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fitserve_training.errors import UsageError

_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
_NO_HOME = Path("/nonexistent")
"""The home of users that have none, by Debian's policy."""


@dataclass(frozen=True)
class Places:
    """The folders that may hold data: the user's data directory first, then the cache."""

    data_dir: Path | None
    cache_dir: Path

    @staticmethod
    def default(data_dir: Path | None = None) -> Places:
        """Takes `data_dir`, else the environment's DATA_DIR; the cache is ${XDG_CACHE_HOME:-~/.cache}/fitserve.

        A user without a home, as in containers, gets a folder that cannot be made, which readers do without.
        """
        named = data_dir or (Path(os.environ["DATA_DIR"]) if os.environ.get("DATA_DIR") else None)
        return Places(named, Path(os.environ.get("XDG_CACHE_HOME") or _home_cache()) / "fitserve")

    def find(self, folder: str, checksums: Mapping[str, str]) -> Path | None:
        """Finds the first `folder` that holds every file of `checksums`; None where there is none.

        Raises:
            UsageError: the data directory does not exist.
        """
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise UsageError(f"data directory {self.data_dir}: expected an existing directory, found none")
        for place in (self.data_dir, self.cache_dir):
            if place is not None and all((place / folder / name).is_file() for name in checksums):
                return place / folder
        return None


def _home_cache() -> Path:
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return _NO_HOME / ".cache"


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Checks the SHA-256 of each file.

    Raises:
        UsageError: a file cannot be read or has another checksum; the message names it.
    """
    for name, expected in checksums.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(f"data file {path}: {error.strerror}") from None
        if found != expected:
            raise UsageError(f"data file {path}: expected SHA-256 {expected}, got {found}; delete it or fetch it again")


def download(base_url: str, folder: Path, checksums: Mapping[str, str]) -> None:
    """Fetches the files that `folder` lacks; each appears there by a rename once its checksum is right.

    Raises:
        OSError: the network or the disk refuses (urllib's errors are OSErrors).
        UsageError: what arrived has another checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in checksums.items():
        if not (folder / name).is_file():
            _download_one(f"{base_url}/{name}", folder / name, expected)


def _download_one(url: str, target: Path, expected: str) -> None:
    descriptor, part = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        digest = hashlib.sha256()
        with os.fdopen(descriptor, "wb") as file, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            while chunk := answer.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != expected:
            raise UsageError(f"download {url}: expected SHA-256 {expected}, got {digest.hexdigest()}")
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the answer, which from Python 3.14 on warns where it is left to the collector
        raise
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error!r}") from error
    finally:
        Path(part).unlink(missing_ok=True)
