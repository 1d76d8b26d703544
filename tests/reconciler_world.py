"""A repository and a reconciler whose looks the test makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fitserve_contract.repository import VersionPath
from fitserve_service.errors import ServiceError
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.reconciler import Reconciler
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import State

WAIT_S = 30.0
"""Longer than any of this takes; what runs into it has failed."""


class GatedLoader(Loader):
    """A loader whose loads begin when the test lets them."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.gate = threading.Event()
        self.gate.set()

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:
        assert self.gate.wait(WAIT_S)
        return super().load(path, overrides)


class World:
    """A repository and a reconciler without a thread of its own: the test says when it looks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = Registry()
        self.loader = GatedLoader()
        self.source = RepositorySource(root)
        self.reconciler = Reconciler(self.source, self.loader, self.registry, rest_s=0.0)
        self.outcomes: list[tuple[str, ServiceError | None]] = []
        self._changed = threading.Condition()
        self.registry.subscribe(self._note)

    def look(self) -> None:
        self.reconciler.reconcile_once()

    def look_until(self, is_done: Callable[[], bool]) -> None:
        """Looks, and again whenever a state has changed, until it is so."""
        end_s = time.monotonic() + WAIT_S
        while True:
            self.look()
            if is_done():
                return
            with self._changed:
                assert self._changed.wait_for(is_done, 0.05) or time.monotonic() < end_s

    def states(self, model: str = "m") -> dict[int, State]:
        return self.registry.states(model)

    def reason(self, version: int, model: str = "m") -> str:
        return {entry.version: entry.reason for entry in self.registry.model(model).versions}[version]

    def load(self, model: str) -> None:
        self.reconciler.load(model, lambda error: self.outcomes.append((model, error)))

    def unload(self, model: str) -> None:
        self.reconciler.unload(model, lambda error: self.outcomes.append((model, error)))

    def until(self, **states: State) -> None:
        wanted = {int(name[1:]): state for name, state in states.items()}
        self.look_until(lambda: self.states() == wanted)

    def _note(self, _: str) -> None:
        with self._changed:
            self._changed.notify_all()


@contextmanager
def world(root: Path) -> Iterator[World]:
    """Gives a world and ends its loaders."""
    made = World(root)
    try:
        yield made
    finally:
        made.loader.gate.set()
        made.reconciler.stop()


def break_version(path: VersionPath) -> None:
    (path.folder / "model.onnx").write_bytes(b"garbage")
