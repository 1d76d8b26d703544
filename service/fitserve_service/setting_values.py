"""Readers of settings: each turns a text into a value, or raises ValueError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fitserve_service.listening import is_unix

NO_METRICS: Final = "off"
AUTO: Final = "auto"


def number(lowest: float, highest: float, kind: type[int] | type[float] = int) -> Callable[[str], Any]:
    def read(text: str) -> int | float:
        value = kind(text)
        if not lowest <= value <= highest:
            raise ValueError(text)
        return value

    return read


def one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return read


def metrics_port(text: str) -> int | None:
    return None if text == NO_METRICS else number(0, 65535)(text)


def auto_or(lowest: float, highest: float) -> Callable[[str], float | None]:
    read = number(lowest, highest, float)
    return lambda text: None if text == AUTO else read(text)


def device(text: str) -> str:
    name, _, index = text.partition(":")
    is_indexed = name == "cuda" and index.isdecimal() and index.isascii()
    if text not in ("auto", "cpu", "cuda") and not is_indexed:
        raise ValueError(text)
    return text


def variant(text: str) -> str:
    # Only here: it brings numpy, whose threads a parent of workers has no use for.
    from fitserve_service.variants import is_variant_name

    if not is_variant_name(text):
        raise ValueError(text)
    return text


def path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def host(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text if is_unix(text) else text.strip("[]")


def switch(text: str) -> bool:
    return one_of("true", "false")(text) == "true"
