"""What a server that is one of several workers, or a lone one with a parent, knows of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.crashes import SetAside
from fitserve_service.servicers.control import ModelLoader


class Peers(Protocol):
    """The workers of a server, and the parent that starts them again, as one of them sees them."""

    unloaded: Sequence[str]
    """Models that a call has unloaded."""
    number: int
    """This worker's place among them."""
    weights: Path | None
    """The folder of copies of models, whose weights the workers share; None: they do not."""

    quotas: SharedQuotas | None
    """What callers use in all workers; None: there is no other."""

    set_aside: Sequence[SetAside]
    """Versions that have crashed workers."""

    coupled: Mapping[str, str]
    """Digests of files whose rows a spot check found to mix, and what it found."""

    is_alone: bool
    """There is no other worker: nobody answers while this one loads."""

    def await_turn(self, is_over: Callable[[], bool]) -> None:
        """Waits until this worker can answer all that the others can, or until it is over."""
        ...

    def tell_coupled(self, digest: str, problem: str) -> None:
        """Has the other workers, and those to come, run requests to these files alone: their rows mix."""
        ...

    def share(self, own: ModelLoader) -> ModelLoader:
        """Takes this worker's loader, and gives one that loads in all workers."""
        ...
