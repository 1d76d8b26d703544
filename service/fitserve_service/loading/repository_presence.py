"""Tells a repository that is away from one whose models were removed.

A volume that is unmounted leaves an empty folder behind, or none, and whoever unloads all models because of it stops
serving for nothing. A repository is away where

- its root is not there or cannot be read,
- another folder is in the place of its root (other device or inode), and has no model in it, or
- two models or more are all gone at one look.

Models that go one after another are removed, the last one too. While a repository is away, what it held last holds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeAlias

CURE: Final = (
    "put it back; if its models are to go, unload each (fitserve-client unload MODEL), or start the server anew"
)
"""What ends an absence."""

RootId: TypeAlias = tuple[int, int]
"""Device and inode."""


def absence(before: Collection[str], now: Collection[str], root_before: RootId | None, root_now: RootId) -> str:
    """Says why a repository that can be read is taken to be away; empty where it is not.

    Args:
        before: Models that it had when it was there last.
        now: Models that it has now.
        root_before: What its root was when it was there last; None: it was never.
        root_now: What its root is.
    """
    if now or not before:
        return ""
    if root_before != root_now:
        return "another folder, without a model, is in its place"
    return f"its {len(before)} models went all at once" if len(before) > 1 else ""
