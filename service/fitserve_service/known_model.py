"""One model as the registry knows it: its versions and their states, its labels, and which version answers a request.

Nothing here is locked: the registry does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fitserve_contract.cures import state_cure, with_cure
from fitserve_contract.labels import STABLE
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.served_version import ServedVersion
from fitserve_service.switching.views import View
from fitserve_service.traffic import NO_TRAFFIC, Traffic
from fitserve_service.version_policy import State, answering_labels


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


@dataclass(slots=True, eq=False)
class KnownVersion:
    """A version and how many use it.

    Args:
        state: Where it is in its life.
        reason: Why it FAILED; what it waits for, of one that is PENDING; what is the matter with the files of one that
            is READY. Mostly empty.
        served: What answers; there from READY until the last lease is back.
        lease_count: Leases that are out.
        on_free: Called when the last lease of a version that goes is back.
    """

    state: State = State.PENDING
    reason: str = ""
    served: ServedVersion | None = None
    lease_count: int = 0
    on_free: Callable[[], None] | None = None


@dataclass(slots=True, eq=False)
class KnownModel:
    """A model.

    Args:
        name: Its name.
        versions: By number, those that the repository has and those that still serve.
        wanted_labels: Where the repository has the labels.
        labels: Where they point: at what they pointed at before, as long as that is READY and the version wanted is
            not.
        traffic: How its requests are shared.
        default: Version that answers a request without version and label; None where there is none.
        answers: Where several workers answer alike, what answers, by version: labels and default are by it, too. None:
            whatever is READY here.
    """

    name: str
    versions: dict[int, KnownVersion] = field(default_factory=dict)
    wanted_labels: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    traffic: Traffic = NO_TRAFFIC
    default: int | None = None
    answers: dict[int, KnownVersion] | None = None

    def version(self, number: int) -> KnownVersion:
        """Gives a version, which is PENDING where it was not known."""
        return self.versions.setdefault(number, KnownVersion())

    def ready(self) -> set[int]:
        """Gives the versions that are READY."""
        return {number for number, entry in self.versions.items() if entry.state is State.READY}

    def settle(self) -> None:
        """Settles where the labels point and which version is the default; to be called after any change."""
        if self.answers is not None:
            return
        ready = self.ready()
        self.labels = answering_labels(self.wanted_labels, self.labels, ready)
        stable = self.labels.get(STABLE)
        self.default = stable if stable in self.versions else max(ready, default=None)

    def answer_by(self, view: View, entries: dict[int, KnownVersion]) -> None:
        """Answers with these entries from now on, and by the labels and the default of a view."""
        self.answers, self.labels, self.default = entries, view.labels, view.default

    def instance(self, version: int, digest: str) -> KnownVersion | None:
        """Finds the entry of a version that has this content: what is READY, or what answers."""
        for entry in (self.versions.get(version), (self.answers or {}).get(version)):
            if entry is not None and entry.served is not None and entry.served.instance == digest:
                return entry
        return None

    def set_present(self, versions: list[int], labels: Mapping[str, int], traffic: Traffic) -> bool:
        """Takes what the repository has; forgets versions that are gone and serve nothing.

        Returns:
            Whether anything changed.
        """
        before = (set(self.versions), self.labels, self.wanted_labels, self.traffic)
        for number in versions:
            self.version(number)
        idle = (State.PENDING, State.UNLOADED, State.FAILED)
        for number in [n for n, entry in self.versions.items() if n not in versions and entry.state in idle]:
            del self.versions[number]
        self.wanted_labels, self.traffic = dict(labels), traffic
        self.settle()
        return before != (set(self.versions), self.labels, self.wanted_labels, self.traffic)

    def answering(self, version: int | None, label: str | None) -> KnownVersion:
        """Finds the version that answers a request; what it serves is there.

        Args:
            version: Its number; None: by label.
            label: A label; None, where there is no number either: the default.

        Raises:
            ServiceError: VERSION_NOT_FOUND, LABEL_NOT_FOUND, NOT_READY, or MODEL_FAILED with why.
        """
        number = self.default if version is None and label is None else self._number(version, label)
        if number is None:
            raise self._none_ready()
        if self.answers is not None:
            entry = self.answers.get(number)
            if entry is None:
                raise not_ready(self.name, number, self._met(number))
            return entry
        entry = self.versions.get(number)
        if entry is None or entry.state is not State.READY or entry.served is None:
            raise not_ready(self.name, number, entry)
        return entry

    def snapshot(self) -> ModelSnapshot:
        """Gives the model as it is now, to callers."""
        versions = tuple(
            VersionSnapshot(
                version=number,
                state=entry.state,
                reason=entry.reason,
                labels=tuple(sorted(label for label, target in self.labels.items() if target == number)),
                load_ms=entry.served.load_ms if entry.served else 0.0,
                served=entry.served,
            )
            for number in sorted(self.versions.keys() | (self.answers or {}).keys())
            if (entry := self._met(number)) is not None
        )
        return ModelSnapshot(self.name, versions, self.labels)

    def _met(self, number: int) -> KnownVersion | None:
        """Returns a version as callers meet it: READY where it answers, in every worker where there are several."""
        entry = self.versions.get(number)
        if self.answers is None:
            return entry
        if answering := self.answers.get(number):
            reason = entry.reason if entry is not None and entry.state is State.READY else ""
            return KnownVersion(State.READY, reason, answering.served)
        if entry is None or entry.state is not State.READY:
            return entry
        return KnownVersion(State.LOADING, "loaded in this worker, not yet in every one", entry.served)

    def _number(self, version: int | None, label: str | None) -> int:
        if version is not None:
            return version
        number = self.labels.get(label or "")
        if number is None:
            labels = ", ".join(sorted(self.labels)) or "none"
            text = f"model '{self.name}': expected one of its labels ({labels}), got '{(label or '')[:128]}'"
            text += f"; set one with: fitserve-client label {self.name} LABEL VERSION"
            raise ServiceError(Reason.LABEL_NOT_FOUND, text, model=self.name)
        return number

    def _none_ready(self) -> ServiceError:
        failed = [number for number, entry in self.versions.items() if entry.state is State.FAILED]
        if failed and len(failed) == len(self.versions):
            return not_ready(self.name, max(failed), self.versions[max(failed)])
        states = ", ".join(_state_text(number, entry) for number, entry in sorted(self.versions.items()))
        text = f"model '{self.name}': no version is ready ({states or 'it has none'})"
        newest = max(self.versions, default=0)
        if not newest:
            cure = f"put one into the repository as {self.name}/1/model.onnx"
        elif self.versions[newest].state in (State.UNLOADED, State.UNLOADING):
            cure = f"load the model with: fitserve-client load {self.name}"
        else:
            cure = state_cure(self.name, newest, self.versions[newest].state)
        return ServiceError(Reason.NOT_READY, with_cure(text, cure), model=self.name)


def _state_text(number: int, entry: KnownVersion) -> str:
    awaited = f": {entry.reason}" if entry.state is State.PENDING and entry.reason else ""
    return f"version {number} is {entry.state}{awaited}"


def unknown_model(model: str) -> ServiceError:
    """Says that there is no such model; the name may be a stranger's, of any length."""
    text = f"model '{model[:128]}': not in the repository; list its models with: fitserve-client models"
    return ServiceError(Reason.MODEL_NOT_FOUND, text, model=model[:128])


def not_ready(model: str, number: int, entry: KnownVersion | VersionSnapshot | None) -> ServiceError:
    """Says why a version does not answer, and what to do about it; None: there is no such version."""
    if entry is None:
        text = f"model '{model}' has no version {number}; list its versions with: fitserve-client models"
        return ServiceError(Reason.VERSION_NOT_FOUND, text, model=model)
    cure = state_cure(model, number, entry.state)
    if entry.state is State.FAILED:
        text = f"model '{model}' version {number} failed to load: {entry.reason}"
        return ServiceError(Reason.MODEL_FAILED, with_cure(text, cure), model=model)
    why = f" ({entry.reason})" if entry.reason else ""
    text = f"model '{model}' version {number} is {entry.state}, not READY{why}"
    return ServiceError(Reason.NOT_READY, with_cure(text, cure), model=model)
