"""What a person can put right, told in one sentence; the command line maps each kind to an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(Exception):
    """The request cannot be carried out as it stands: exit code 2, nothing written."""


class RunStoppedError(Exception):
    """The run itself went wrong, for example its loss is not finite: exit code 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Builds the error for a name that does not exist, with the nearest one that does."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")
