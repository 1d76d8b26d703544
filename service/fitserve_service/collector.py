"""Python's collector of cycles in a server: it looks at little, and seldom.

Requests are freed by their counts of references, none of them is part of a cycle; what the collector finds is the
garbage of loads and of pages. Left as it is, it looks at requests in flight over and over, and now and then at
everything that was ever imported: 5 % of the samples of a profile under load.
"""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (20_000, 20, 20)
"""Allocations that were not freed, and how many looks at the young make a look at the older."""


def settle() -> None:
    """Takes everything that is there now as here to stay, for this process; call it once the server is ready."""
    # What is garbage now would stay for good, and may hold a model.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
