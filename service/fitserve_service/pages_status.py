"""The status of the server as one JSON-able document: what /status.json answers and the status page shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from weakref import ref

from fitserve_contract.repository import CARD_FILE, version_path
from fitserve_contract.repository_view import Root
from fitserve_service.known_model import ModelSnapshot, VersionSnapshot
from fitserve_service.pages_activity import Activity, Figures
from fitserve_service.process_memory import read_memory
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.telemetry import Instance

_IDLE = Figures(0, 0.0, 0.0, None, None)


class StatusReport:
    """Puts the document together; thread-safe.

    Args:
        repository: Where the cards are.
        registry: Models and versions.
        activity: Rates and latencies.
        queued_examples: Gives how many examples wait, by version.
        is_ready: Tells whether the server takes requests.
        build: Facts of this server: version, ONNX Runtime's version, device.
        worker: Its place among the workers.
    """

    def __init__(
        self,
        repository: Root,
        registry: Registry,
        activity: Activity,
        queued_examples: Callable[[], Mapping[ServedVersion, int]],
        is_ready: Callable[[], bool],
        build: Mapping[str, str],
        worker: int = 0,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._activity = activity
        self._queued_examples = queued_examples
        self._is_ready = is_ready
        self._build = build
        self._worker = worker

    @property
    def is_ready(self) -> bool:
        """The server takes requests."""
        return self._is_ready()

    @property
    def absence(self) -> str:
        """Why the repository is taken to be away; empty where it is there."""
        return self._registry.repository.absence

    def document(self) -> dict[str, Any]:
        """Gives the status of this moment; every number is finite."""
        window_s, figures = self._activity.figures()
        waiting = self._queued_examples()
        return {
            "is_ready": self.is_ready,
            "notes": list(self._registry.repository.texts),
            "build": dict(self._build),
            "workers": [self._memory()],
            "window_s": round(window_s, 3),
            "models": [self._model(model, figures, waiting) for model in self._registry.snapshot()],
        }

    def _memory(self) -> dict[str, Any]:
        memory = read_memory()
        return {"worker": self._worker, **(asdict(memory) if memory is not None else {})}

    def _model(
        self, model: ModelSnapshot, figures: Mapping[Instance, Figures], waiting: Mapping[ServedVersion, int]
    ) -> dict[str, Any]:
        versions = [
            {
                **_version(version),
                "has_card": self.has_card(model.name, version.version),
                "queued_examples": waiting.get(version.served, 0) if version.served else 0,
                "activity": asdict(figures.get(ref(version.served), _IDLE) if version.served else _IDLE),
            }
            for version in reversed(model.versions)
        ]
        return {"name": model.name, "labels": dict(model.labels), "versions": versions}

    def has_card(self, model: str, version: int) -> bool:
        """Tells whether a version has a model card."""
        return (version_path(self._repository, model, version).folder / CARD_FILE).is_file()


def _version(version: VersionSnapshot) -> dict[str, Any]:
    served = version.served
    return {
        "version": version.version,
        "state": version.state.value,
        "reason": version.reason,
        "labels": list(version.labels),
        "provider": served.provider if served else "",
        "is_verified": bool(served and served.is_verified),
        "replay_ms": round(served.replay.replay_ms, 3) if served and served.replay else None,
        "task": served.task.kind.value if served and served.task else "",
        "joining": served.joining if served else "",
        "spot_check_count": served.spot_check_count if served else 0,
        "spot_mismatch_count": served.spot_mismatch_count if served else 0,
        "max_batch_size": served.config.max_batch_size if served else 0,
        "load_ms": round(version.load_ms, 3),
    }
