"""Values of options that several commands of `fitserve-bench` read alike."""

from __future__ import annotations

import argparse


def positive_numbers(text: str) -> tuple[int, ...]:
    """Reads positive numbers separated by commas, each once, in the order given.

    Raises:
        argparse.ArgumentTypeError: a part is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected positive numbers separated by commas, got '{text[:64]}'")
    return tuple(dict.fromkeys(map(int, parts)))
