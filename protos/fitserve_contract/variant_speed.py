"""How fast a variant must be for `auto`: what the exporter publishes and the server serves by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LEAST_SPEEDS: Final[Mapping[str, float]] = {"int8": 1.3}
"""Variant to the least multiple of fp32's speed, at every batch size that was measured; any other need only be faster.

int8 gives up accuracy, so that a small gain is not worth it."""
