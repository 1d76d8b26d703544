"""HTML that cannot be broken by what it shows: every string is escaped unless it was made here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final, TypeAlias

_VOID: Final = frozenset({"meta", "circle", "line", "polyline", "path"})
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
MAX_TEXT: Final = 400
"""Longer strings of a manifest are cut: a card is for reading, the manifest holds the rest."""


class Markup(str):
    """HTML made by `tag`; it is not escaped again."""

    __slots__ = ()


Child: TypeAlias = "str | int | Markup | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: str | int) -> Markup:
    """Makes an element.

    Args:
        name: Element's name.
        *children: Text, which is escaped; elements; or several of them. None is left out.
        **attributes: A trailing `_` is dropped and another `_` is written `-`: `class_`, `text_anchor`.
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}{'>' if name == 'meta' else '/>'}")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    """Writes several children one after the other."""
    return Markup("".join(_written(child) for child in children))


def text(value: str) -> Markup:
    """Escapes a string; characters that no HTML may have become U+FFFD."""
    return Markup(escape(_UNPRINTABLE.sub("\ufffd", value), quote=True))


def shown(value: object) -> str:
    """Writes any JSON value for people, cut where it is long."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if value is None or value == "":
        return "–"
    if isinstance(value, list | tuple):
        return shortened(", ".join(map(shown, value[:50])))
    if isinstance(value, dict):
        return shortened(", ".join(f"{key} {shown(item)}" for key, item in list(value.items())[:50]))
    return shortened(str(value))


def shortened(value: str) -> str:
    """Cuts a string that is longer than MAX_TEXT."""
    return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + " …"


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]]) -> Markup:
    """Makes a table that scrolls sideways where it is wider than the page; its first column is text."""
    body = [tag("tr", [tag("td", cell) for cell in row]) for row in rows]
    header = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    return tag("div", tag("table", header, tag("tbody", body)), class_="scroll", tabindex=0)


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Makes a list of names and values."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs])


def section(title: str, *content: Child) -> Markup:
    """Makes a section of the page."""
    return tag("section", tag("h2", title), *content)


def mapping(value: Any) -> Mapping[str, Any]:
    """Gives a part of a manifest that may be missing or of another kind: then empty."""
    return value if isinstance(value, Mapping) else {}


def _written(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    return text(str(child)) if isinstance(child, str | int) else joined(child)
