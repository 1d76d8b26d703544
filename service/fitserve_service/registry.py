"""The versions that the server knows, their states, and the leases that keep a version loaded while it is used.

Thread-safe: the loop leases, the reconciler moves states. A version leaves READY at once and is closed when its last
lease is released.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fitserve_contract.labels import STABLE
from fitserve_contract.manifest import Manifest
from fitserve_contract.tasks import Task
from fitserve_service.costs import CostTable
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.model_config import ModelConfig
from fitserve_service.proof import HeldOut, Replay
from fitserve_service.session import Session
from fitserve_service.signature import Signature
from fitserve_service.statistics import VersionStatistics
from fitserve_service.traffic import NO_TRAFFIC, Traffic
from fitserve_service.version_policy import State, answering_labels

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, weakref_slot=True)
class ServedVersion:
    """A version that is loaded; immutable but for its statistics and its cost table.

    Args:
        model: Model name.
        version: Version number.
        session: The runtime's session.
        signature: Inputs and outputs.
        config: How it is served, overrides included.
        effective_toml: `config` as TOML with where each value comes from.
        manifest: What it says of itself; None for a foreign file.
        manifest_json: The manifest's bytes; empty for a foreign file.
        is_verified: Its checksums were there and hold, and the replay of its probe held.
        files: What callers may ask for, file name to content.
        load_ms: From LOADING to READY.
        replay: How near its answers came to its certificate's; None where it has none.
        held_out: Labelled examples that it carries; None where it has none.
    """

    model: str
    version: int
    session: Session
    signature: Signature
    config: ModelConfig
    effective_toml: str
    manifest: Manifest | None
    manifest_json: bytes
    is_verified: bool
    files: Mapping[str, bytes] = field(default_factory=dict)
    load_ms: float = 0.0
    costs: CostTable = field(default_factory=CostTable)
    statistics: VersionStatistics = field(default_factory=VersionStatistics)
    replay: Replay | None = None
    held_out: HeldOut | None = None

    @property
    def task(self) -> Task | None:
        """What its outputs mean; None where nothing can be scored."""
        return self.manifest.task if self.manifest else None

    @property
    def provider(self) -> str:
        """Execution provider that runs it."""
        return self.session.provider


@dataclass(frozen=True, slots=True)
class VersionSnapshot:
    """One version at one moment."""

    version: int
    state: State
    reason: str
    labels: tuple[str, ...]
    load_ms: float
    served: ServedVersion | None


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model at one moment; versions ascending, labels with the versions that answer for them."""

    name: str
    versions: tuple[VersionSnapshot, ...]
    labels: Mapping[str, int]


class Lease(Protocol):
    """Keeps a version loaded until it is released."""

    served: ServedVersion

    def release(self) -> None:
        """Gives the version back; a second call does nothing."""
        ...


class _Lease:
    __slots__ = ("_entry", "_registry", "served")

    def __init__(self, registry: Registry, entry: _Entry, served: ServedVersion) -> None:
        self.served = served
        self._registry = registry
        self._entry: _Entry | None = entry

    def release(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            self._registry._release(self.served.model, entry)


@dataclass(slots=True, eq=False)
class _Entry:
    state: State = State.PENDING
    reason: str = ""
    served: ServedVersion | None = None
    lease_count: int = 0
    on_free: Callable[[], None] | None = None


@dataclass(slots=True, eq=False)
class _Model:
    versions: dict[int, _Entry] = field(default_factory=dict)
    wanted_labels: Mapping[str, int] = field(default_factory=dict)
    """Where the repository has the labels."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Where they point: at what they pointed at before, as long as that is READY and the version wanted is not."""
    traffic: Traffic = NO_TRAFFIC
    default: int | None = None
    """Version that answers a request without version and label."""


class Registry:
    """All models of the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}
        self._agreed: frozenset[tuple[str, int]] | None = None
        self._subscribers: list[Callable[[str], None]] = []

    def lease(self, model: str, *, version: int | None = None, label: str | None = None) -> Lease:
        """Takes a version for use.

        Args:
            model: Model name.
            version: Its number; None: by label, or the default (label `stable` where there is one, else the highest
                READY version).
            label: A label of the model.

        Raises:
            ServiceError: MODEL_NOT_FOUND, VERSION_NOT_FOUND, LABEL_NOT_FOUND, NOT_READY (loading or unloading), or
                MODEL_FAILED with why.
        """
        with self._lock:
            known = self._known(model)
            number = known.default if version is None and label is None else _number(model, known, version, label)
            if number is None:
                raise _none_ready(model, known)
            entry = known.versions.get(number)
            if entry is None or entry.state is not State.READY or entry.served is None:
                raise _not_ready(model, number, entry)
            entry.lease_count += 1
            return _Lease(self, entry, entry.served)

    def snapshot(self) -> tuple[ModelSnapshot, ...]:
        """Gives everything that the repository or the server holds, by name."""
        with self._lock:
            return tuple(_snapshot(name, self._models[name]) for name in sorted(self._models))

    def names(self) -> list[str]:
        """Gives the names of all models that the repository or the server holds, in no order."""
        with self._lock:
            return list(self._models)

    def model(self, name: str) -> ModelSnapshot:
        """Gives one model.

        Raises:
            ServiceError: MODEL_NOT_FOUND.
        """
        with self._lock:
            return _snapshot(name, self._known(name))

    def is_ready(self, model: str, version: int | None = None) -> bool:
        """Tells whether a version answers, in every worker where there are several; None asks for the default one.

        An unknown model is not ready.
        """
        with self._lock:
            if self._agreed is not None and (model, version or 0) not in self._agreed:
                return False
            known = self._models.get(model)
            number = known.default if known and version is None else version
            entry = known.versions.get(number) if known and number is not None else None
            return entry is not None and entry.state is State.READY

    def agree(self, ready: frozenset[tuple[str, int]]) -> None:
        """Tells what every worker can answer, pairs of model and version, version 0 for the default; see `is_ready`."""
        with self._lock:
            before, self._agreed = self._agreed or frozenset(), ready
        for model in {name for name, _ in before ^ ready}:
            self._notify(model)

    def ready_names(self) -> frozenset[tuple[str, int]]:
        """Gives what this process can answer, as `agree` takes it."""
        with self._lock:
            names = set()
            for model, known in self._models.items():
                ready = {number for number, entry in known.versions.items() if entry.state is State.READY}
                names |= {(model, number) for number in ready | ({0} if known.default in ready else set())}
            return frozenset(names)

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Calls back with a model's name after each change of its states, on the thread that changes them.

        Returns:
            A function that ends the subscription.
        """
        with self._lock:
            self._subscribers = [*self._subscribers, callback]

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = [other for other in self._subscribers if other is not callback]

        return unsubscribe

    def states(self, model: str) -> dict[int, State]:
        """Gives the state of every version of a model; empty for an unknown one."""
        with self._lock:
            known = self._models.get(model)
            return {number: entry.state for number, entry in known.versions.items()} if known else {}

    def labels(self, model: str) -> Mapping[str, int]:
        """Gives the versions that answer for a model's labels; none for an unknown model."""
        with self._lock:
            known = self._models.get(model)
            return known.labels if known else {}

    def traffic(self, model: str) -> Traffic:
        """Gives a model's traffic; none for an unknown model."""
        known = self._models.get(model)
        return known.traffic if known else NO_TRAFFIC

    def set_present(
        self, model: str, versions: list[int], labels: Mapping[str, int], traffic: Traffic = NO_TRAFFIC
    ) -> None:
        """Tells which versions the repository has, where the labels point and how requests are shared.

        New ones become PENDING; those gone that serve nothing are forgotten, and a model without any version is too.
        A label whose new version is not READY yet stays where it is as long as that version is: nobody who asks for
        the label may meet one that does not answer.
        """
        with self._lock:
            known = self._models.setdefault(model, _Model())
            before = (set(known.versions), known.labels, known.traffic)
            for number in versions:
                known.versions.setdefault(number, _Entry())
            idle = (State.PENDING, State.UNLOADED, State.FAILED)
            gone = [n for n, entry in known.versions.items() if n not in versions and entry.state in idle]
            for number in gone:
                del known.versions[number]
            known.wanted_labels, known.traffic = dict(labels), traffic
            _choose(known)
            if not known.versions:
                del self._models[model]
            is_changed = before != (set(known.versions), known.labels, known.traffic)
        if is_changed:
            self._notify(model)

    def set_state(self, model: str, version: int, state: State, *, reason: str = "") -> None:
        """Moves a version that is not loaded to another state: PENDING, LOADING, UNLOADED or FAILED with a reason."""
        with self._lock:
            entry = self._models.setdefault(model, _Model()).versions.setdefault(version, _Entry())
            entry.state, entry.reason = state, reason
            _choose(self._models[model])
        self._notify(model)

    def set_ready(self, served: ServedVersion) -> None:
        """Makes a loaded version answer from now on."""
        with self._lock:
            known = self._models.setdefault(served.model, _Model())
            entry = known.versions.setdefault(served.version, _Entry())
            entry.state, entry.reason, entry.served = State.READY, "", served
            _choose(known)
        self._notify(served.model)

    def retire(self, model: str, version: int, on_free: Callable[[], None]) -> None:
        """Takes a READY version out of service; it is let go, and `on_free` called, when its last lease is released."""
        with self._lock:
            known = self._models[model]
            entry = known.versions[version]
            entry.state = State.UNLOADING
            entry.on_free = on_free
            _choose(known)
            is_free = entry.lease_count == 0
        self._notify(model)
        if is_free:
            self._free(model, entry)

    def _release(self, model: str, entry: _Entry) -> None:
        with self._lock:
            entry.lease_count -= 1
            is_free = entry.lease_count == 0 and entry.state is State.UNLOADING
        if is_free:
            self._free(model, entry)

    def _free(self, model: str, entry: _Entry) -> None:
        with self._lock:
            on_free, entry.on_free = entry.on_free, None
            if on_free is None:
                return
            entry.served = None
            entry.state = State.UNLOADED
        self._notify(model)
        on_free()

    def _known(self, model: str) -> _Model:
        known = self._models.get(model)
        if known is None:
            raise ServiceError(
                Reason.MODEL_NOT_FOUND, f"model '{model[:128]}': not in the repository", model=model[:128]
            )
        return known

    def _notify(self, model: str) -> None:
        for callback in self._subscribers:
            try:
                callback(model)
            except Exception:
                # A state that has changed has changed; whoever listens badly must not keep others from hearing it.
                _log.exception("a subscriber failed on a change of model '%s'", model)


def _number(model: str, known: _Model, version: int | None, label: str | None) -> int:
    if version is not None:
        return version
    number = known.labels.get(label or "")
    if number is None:
        labels = ", ".join(sorted(known.labels)) or "none"
        text = f"model '{model}': expected one of its labels ({labels}), got '{(label or '')[:128]}'"
        raise ServiceError(Reason.LABEL_NOT_FOUND, text, model=model)
    return number


def _choose(known: _Model) -> None:
    """Settles where the labels point and which version is the default, after any change."""
    ready = [number for number, entry in known.versions.items() if entry.state is State.READY]
    known.labels = answering_labels(known.wanted_labels, known.labels, ready)
    stable = known.labels.get(STABLE)
    known.default = stable if stable in known.versions else max(ready, default=None)


def _none_ready(model: str, known: _Model) -> ServiceError:
    failed = [(number, entry) for number, entry in known.versions.items() if entry.state is State.FAILED]
    if failed and len(failed) == len(known.versions):
        return _not_ready(model, *max(failed))
    text = f"model '{model}': no version is ready ({_states_text(known)})"
    return ServiceError(Reason.NOT_READY, text, model=model)


def _not_ready(model: str, number: int, entry: _Entry | None) -> ServiceError:
    if entry is None:
        return ServiceError(Reason.VERSION_NOT_FOUND, f"model '{model}' has no version {number}", model=model)
    if entry.state is State.FAILED:
        text = f"model '{model}' version {number} failed to load: {entry.reason}"
        return ServiceError(Reason.MODEL_FAILED, text, model=model)
    text = f"model '{model}' version {number} is {entry.state}, not READY"
    return ServiceError(Reason.NOT_READY, text, model=model)


def _states_text(known: _Model) -> str:
    return ", ".join(f"version {number} is {entry.state}" for number, entry in sorted(known.versions.items()))


def _snapshot(name: str, known: _Model) -> ModelSnapshot:
    versions = tuple(
        VersionSnapshot(
            version=number,
            state=entry.state,
            reason=entry.reason,
            labels=tuple(sorted(label for label, target in known.labels.items() if target == number)),
            load_ms=entry.served.load_ms if entry.served else 0.0,
            served=entry.served,
        )
        for number, entry in sorted(known.versions.items())
    )
    return ModelSnapshot(name, versions, known.labels)
