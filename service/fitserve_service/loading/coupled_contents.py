"""Remembers which files spot checks found to mix rows, whatever version they are loaded as and whichever worker did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


class CoupledContents:
    """Digests of files whose rows depend on each other. Thread-safe: entries are added, never changed.

    Args:
        known: Digest to what was found, for people.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = dict(known or {})

    def add(self, digest: str, problem: str) -> None:
        """Remembers files; the first finding stays."""
        self._known.setdefault(digest, problem)

    def problem(self, digest: str) -> str:
        """Returns what was found; empty where nothing was."""
        return self._known.get(digest, "")


def content_digest(parts: Iterable[bytes]) -> str:
    """Returns the SHA-256 of a model and its external files, each hashed by itself, as hexadecimal digits."""
    hashes = [hashlib.sha256(part).digest() for part in parts]
    return hashlib.sha256(b"".join(hashes)).hexdigest()
