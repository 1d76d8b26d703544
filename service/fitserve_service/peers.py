"""What a server that is one of several workers, or a lone one with a parent, knows of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.crashes import SetAside
from fitserve_service.errors import ServiceError
from fitserve_service.servicers.control import ModelLoader
from fitserve_service.servicers.labels import RepositoryEditor


class VersionEditor(ModelLoader, RepositoryEditor, Protocol):
    """Loads and unloads models, and changes what is in their folders."""


class VersionKeeper(VersionEditor, Protocol):
    """What does so in one process."""

    def show(self, model: str, on_done: Callable[[ServiceError | None], None]) -> None:
        """Looks at a model now; `on_done` is called with None once each aspired version is READY or FAILED."""
        ...

    def serve_also(self, versions: Mapping[str, Collection[int]]) -> None:
        """Loads these versions too, by model: other workers answer with them."""
        ...


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

    counter: memoryview | None
    """The number of the last switch; see `switching.counter`; None: there is no other worker."""

    set_aside: Sequence[SetAside]
    """Versions that have crashed workers."""

    coupled: Mapping[str, str]
    """Digests of files whose rows a spot check found to mix, and what it found."""

    is_alone: bool
    """There is no other worker: nobody answers while this one loads."""

    def await_turn(self, is_over: Callable[[], bool]) -> None:
        """Waits until this worker answers all that the others do, or until it is over."""
        ...

    def tell_coupled(self, digest: str, problem: str) -> None:
        """Has the other workers, and those to come, run requests to these files alone: their rows mix."""
        ...

    def share(self, own: VersionKeeper) -> VersionEditor:
        """Takes what loads versions in this worker, and gives what does so in all workers."""
        ...
