"""The versions that the server knows, their states, and the leases that keep a version loaded while it is used.

Thread-safe: the loop leases, the reconciler moves states. A version leaves READY at once and is closed when its last
lease is released.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from fitserve_service.agreed_views import AgreedViews
from fitserve_service.known_model import KnownModel, KnownVersion, ModelSnapshot, unknown_model
from fitserve_service.repository_state import RepositoryState
from fitserve_service.served_version import Lease, ServedVersion
from fitserve_service.traffic import NO_TRAFFIC, Traffic
from fitserve_service.version_policy import State

_log = logging.getLogger(__name__)


class _Lease:
    __slots__ = ("_entry", "_registry", "served")

    def __init__(self, registry: Registry, entry: KnownVersion) -> None:
        self.served: ServedVersion = entry.served  # type: ignore[assignment]
        self._registry = registry
        self._entry: KnownVersion | None = entry

    def release(self) -> None:
        entry, self._entry = self._entry, None
        if entry is None:
            return
        registry = self._registry
        with registry._lock:
            entry.lease_count -= 1
            is_free = entry.lease_count == 0 and entry.state is State.UNLOADING
        if is_free:
            registry._free(self.served.model, entry)


class Registry:
    """All models of the server.

    Attributes:
        repository: What the last look at the repository has to say beside its models.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, KnownModel] = {}
        self._views: AgreedViews | None = None
        self._subscribers: list[Callable[[str], None]] = []
        self.repository = RepositoryState()

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
        views = self._views
        if views is not None and views.counter[0] != views.number:
            views.switch()
        with self._lock:
            entry = self._known(model).answering(version, label)
            entry.lease_count += 1
            return _Lease(self, entry)

    def share(self, counter: memoryview) -> AgreedViews:
        """Answers, from now on, by what all workers agree on alone; before anything is loaded.

        Args:
            counter: See `switching.counter`.
        """
        self._views = AgreedViews(self._models, self._lock, counter, self._free, self._notify)
        return self._views

    @property
    def views(self) -> AgreedViews | None:
        """What all workers agree on; None: there is no other worker."""
        return self._views

    def switch_number(self) -> int:
        """Returns the number of the last switch: what was leased before it may not be what answers from then on."""
        views = self._views
        return 0 if views is None else int(views.counter[0])

    def snapshot(self) -> tuple[ModelSnapshot, ...]:
        """Gives everything that the repository or the server holds, by name."""
        self._catch_up()
        with self._lock:
            return tuple(self._models[name].snapshot() for name in sorted(self._models))

    def names(self) -> list[str]:
        """Gives the names of all models that the repository or the server holds, in no order."""
        with self._lock:
            return list(self._models)

    def model(self, name: str) -> ModelSnapshot:
        """Gives one model.

        Raises:
            ServiceError: MODEL_NOT_FOUND.
        """
        self._catch_up()
        with self._lock:
            return self._known(name).snapshot()

    def is_ready(self, model: str, version: int | None = None) -> bool:
        """Tells whether a version answers, in every worker where there are several; None asks for the default one.

        An unknown model is not ready.
        """
        self._catch_up()
        with self._lock:
            known = self._models.get(model)
            number = known.default if known and version is None else version
            if known is not None and known.answers is not None:
                return number in known.answers
            entry = known.versions.get(number) if known and number is not None else None
            return entry is not None and entry.state is State.READY

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

    def served(self, model: str) -> dict[int, ServedVersion]:
        """Returns the loaded instances of a model by version; empty for an unknown model."""
        with self._lock:
            known = self._models.get(model)
            entries = known.versions.items() if known else ()
            return {number: entry.served for number, entry in entries if entry.served is not None}

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
            known = self._opened(model)
            is_changed = known.set_present(versions, labels, traffic)
            if not known.versions and not known.answers:
                del self._models[model]
        if is_changed:
            self._notify(model)

    def set_state(self, model: str, version: int, state: State, *, reason: str = "") -> None:
        """Moves a version that is not loaded to another state: LOADING, UNLOADED, PENDING or FAILED with a reason."""
        with self._lock:
            known = self._opened(model)
            entry = known.version(version)
            entry.state, entry.reason = state, reason
            known.settle()
        self._notify(model)

    def set_note(self, model: str, version: int, note: str) -> None:
        """Says of a version that answers what is the matter with its files; empty: nothing is."""
        with self._lock:
            known = self._models.get(model)
            entry = known.versions.get(version) if known else None
            if entry is not None and entry.state is State.READY:
                entry.reason = note

    def set_ready(self, served: ServedVersion) -> None:
        """Makes a loaded version answer from now on."""
        with self._lock:
            known = self._opened(served.model)
            entry = known.version(served.version)
            entry.state, entry.reason, entry.served = State.READY, "", served
            known.settle()
        if self._views is not None:
            self._views.adopt(served.model, served.version)
        self._notify(served.model)

    def renew(self, old: ServedVersion, new: ServedVersion) -> bool:
        """Makes a loaded version answer in the place of one of the same name and number, which goes with its leases.

        Returns:
            False where the old one does not answer any more, and nothing is changed.
        """
        with self._lock:
            known = self._models.get(old.model)
            entry = known.versions.get(old.version) if known else None
            if known is None or entry is None or entry.served is not old or entry.state is not State.READY:
                return False
            known.versions[new.version] = KnownVersion(State.READY, served=new)
            entry.state, entry.on_free = State.UNLOADING, _nothing
            known.settle()
            is_free = entry.lease_count == 0
        if self._views is not None:
            self._views.adopt(new.model, new.version)
        self._notify(new.model)
        if is_free:
            self._free(new.model, entry)
        return True

    def retire(self, model: str, version: int, on_free: Callable[[], None]) -> None:
        """Takes a READY version out of service; it is let go, and `on_free` called, when its last lease is released."""
        with self._lock:
            known = self._models[model]
            entry = known.versions[version]
            entry.state = State.UNLOADING
            entry.on_free = on_free
            known.settle()
            is_free = entry.lease_count == 0
        self._notify(model)
        if is_free:
            self._free(model, entry)

    def _free(self, model: str, entry: KnownVersion) -> None:
        with self._lock:
            on_free, entry.on_free = entry.on_free, None
            if on_free is None:
                return
            entry.served = None
            entry.state = State.UNLOADED
        self._notify(model)
        on_free()

    def _catch_up(self) -> None:
        if self._views is not None:
            self._views.switch()

    def _known(self, model: str) -> KnownModel:
        known = self._models.get(model)
        if known is None:
            raise unknown_model(model)
        return known

    def _opened(self, model: str) -> KnownModel:
        return self._models.setdefault(model, KnownModel(model, answers=None if self._views is None else {}))

    def _notify(self, model: str) -> None:
        for callback in self._subscribers:
            try:
                callback(model)
            except Exception:
                # A state that has changed has changed; whoever listens badly must not keep others from hearing it.
                _log.exception("a subscriber failed on a change of model '%s'", model)


def _nothing() -> None:
    """Follows the end of an instance that another has taken the place of."""
