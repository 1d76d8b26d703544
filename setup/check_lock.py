"""Tells whether a hashed lock is for this Python and this machine; what it locks are their archives alone.

usage: check_lock.py LOCK
"""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

_HEAD = re.compile(r"# Written by setup/write_lock\.py for (\w+) (\d+\.\d+) on (\w+) (\w+);")


def main(arguments: list[str]) -> int:
    """Compares; 2 where it is for another, or no lock."""
    (lock,) = map(Path, arguments)
    problem = mismatch(lock.read_text().partition("\n")[0], here())
    if problem:
        print(f"setup-locked: {lock.name}: {problem}; use make setup", file=sys.stderr)
        return 2
    return 0


def here() -> tuple[str, str, str, str]:
    """Names what runs this: implementation, version, system, processor."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return platform.python_implementation(), version, platform.system(), platform.machine()


def mismatch(head: str, found: tuple[str, str, str, str]) -> str:
    """Says in words how a lock's first line does not fit; empty where it does.

    Args:
        head: The lock's first line.
        found: As `here` gives it.
    """
    match = _HEAD.match(head)
    if match is None:
        return f"expected the first line that setup/write_lock.py writes, got {head[:100]!r}"
    if match.groups() == found:
        return ""
    names = ("{} {} on {} {}".format(*who) for who in (match.groups(), found))
    return "expected {}, got {}".format(*names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
