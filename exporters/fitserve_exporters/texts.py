"""Sentences out of the exceptions of other libraries."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TORCH = re.compile(r"\b(eager )?torch\b(?!\.)")
_LONGEST = 400


def sentence(error: BaseException) -> str:
    """Writes an exception as its type and the line of its message that says what is wrong."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Returns the line of a message that says what is wrong, at most 400 characters, without colours."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if lines and lines[0].startswith("Constraints violated"):  # what is violated stands in the second line
        lines = [line.removeprefix("- ") for line in lines[1:]]
    return (lines[0] if lines else "no message")[:_LONGEST]


def of_reference(text: str) -> str:
    """Returns a text of the proof with the reference in torch's place, where a callable is the reference."""
    return _TORCH.sub("the reference", text)
