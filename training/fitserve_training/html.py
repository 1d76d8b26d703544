"""Pieces of a page that stands alone: everything escaped, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any


def page(title: str, body: Iterable[str]) -> str:
    """Makes a whole page with its style inside."""
    style = files("fitserve_training").joinpath("report.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    content = "".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head>\n<body>{content}</body></html>\n'
    )


def section(title: str, *content: str) -> str:
    """Makes a titled section, or nothing where there is no content."""
    return f"<h2>{escape(title)}</h2>\n{''.join(content)}\n" if any(content) else ""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Makes a table; numbers stand to the right."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(values: Mapping[str, Any]) -> str:
    """Makes a two-column table of names and values, mappings within spelt with dots."""
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(number(value))}</td></tr>\n" for key, value in _flat(values))
    return f"<table>{rows}</table>"


def number(value: object) -> str:
    """Writes a value for people: floats with five digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value) if not isinstance(value, list | tuple) else " ".join(map(str, value))
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def inline_svg(text: str, prefix: str) -> str:
    """Makes an SVG file part of a page; its ids get a prefix, so that two pictures do not share them."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _cell(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="number">{escape(number(value))}</td>' if is_number else f"<td>{escape(str(value))}</td>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
