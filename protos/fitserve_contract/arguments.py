"""A parser of command lines that shows what it was given without what a terminal would obey."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fitserve_contract.printable import printable


class CommandParser(argparse.ArgumentParser):
    """As argparse's, but its errors stay within one line; subparsers are of this kind, too."""

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, and ends with exit code 2."""
        super().error(printable(message))
