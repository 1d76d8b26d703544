"""What a person can put right, told in one sentence; the command line maps each kind to an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(Exception):
    """The request cannot be carried out as it stands: exit code 2, nothing written."""


class RunStoppedError(Exception):
    """The run itself went wrong, for example its loss is not finite: exit code 1."""


def unknown_name(kind: str, name: str, known: Iterable[str], meant: str = "") -> UsageError:
    """Builds the error for a name that does not exist: the nearest one that does first, then all of them.

    Args:
        kind: What it should name.
        name: What was found.
        known: Every name that there is.
        meant: The one that is meant for sure, where somebody knows.
    """
    names = list(known)
    near = [meant] if meant in names else get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")
