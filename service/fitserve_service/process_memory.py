"""How much memory a process takes, and how much of it is its own: what a further worker costs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LINE: Final = re.compile(r"(\w+):\s+(\d+) kB")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process, bytes.

    Args:
        resident_bytes: Pages that it has, those that it shares with others counted whole.
        proportional_bytes: The same, each page shared out among those that have it: over all processes it adds up.
        private_bytes: Pages that nobody else has: what would be free without this process.
    """

    resident_bytes: int
    proportional_bytes: int
    private_bytes: int


def read_memory(process: int | str = "self") -> Memory | None:
    """Reads the memory of a process of this user; None where the kernel does not tell. Source: proc(5), smaps_rollup.

    Args:
        process: Process id.
    """
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = {name: int(kib) << 10 for name, kib in _LINE.findall(text)}
    return Memory(sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])
