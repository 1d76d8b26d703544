"""Text from files and callers, made safe to print on a terminal and to keep within one line."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replaces what moves the cursor, breaks the line or reorders what is read by its escape, as `\\x1b` or `\\u202e`.

    Control characters, line and paragraph separators, direction overrides, invisible characters and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
