"""A worker's part of a switch: it holds what all workers are to answer with next, and answers by it from the switch on.

See `switching`. What is held has a lease, so that nothing that answers, or is about to, is let go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from fitserve_service.known_model import KnownModel, KnownVersion
from fitserve_service.switching.views import NO_CANDIDATE, Candidate, View
from fitserve_service.version_policy import State

_COMING = (State.PENDING, State.LOADING)


class AgreedViews:
    """What a registry answers where its process is one of several workers. Thread-safe.

    Args:
        models: The registry's models.
        lock: The registry's lock.
        counter: Its element 0 is the number of the last switch; see `switching.counter`.
        let_go: Called without the lock with entries that have no lease any more.
        notify: Called without the lock with the name of each model whose answers changed.
    """

    def __init__(
        self,
        models: dict[str, KnownModel],
        lock: threading.Lock,
        counter: memoryview,
        let_go: Callable[[str, KnownVersion], None],
        notify: Callable[[str], None],
    ) -> None:
        self.counter = counter
        self.number = -1
        self._models = models
        self._lock = lock
        self._let_go = let_go
        self._notify = notify
        self._prepared_number = -1
        self._prepared: dict[str, tuple[View, dict[int, KnownVersion]]] = {}

    def prepare(self, number: int, views: Mapping[str, View]) -> bool:
        """Holds what is to be answered from the switch of that number on; whatever was prepared before is dropped.

        Returns:
            False where an instance is not here any more, and nothing is held.
        """
        self.switch()
        with self._lock:
            before = self._prepared
            free = self._released((model, entry) for model, (_, held) in before.items() for entry in held.values())
            self._prepared = {}
            found = {model: self._found(model, view) for model, view in views.items()}
            is_prepared = all(found[model].keys() == view.versions.keys() for model, view in views.items())
            if is_prepared:
                self._prepared_number = number
                self._prepared = {model: (view, found[model]) for model, view in views.items()}
                for held in found.values():
                    for entry in held.values():
                        entry.lease_count += 1
        self._free(free)
        # What was prepared before may be held no more.
        for model in {*before, *self._prepared}:
            self._notify(model)
        return is_prepared

    def switch(self) -> None:
        """Answers by what was prepared, where its switch has come."""
        with self._lock:
            number: int = self.counter[0]
            if number == self.number:
                return
            self.number = number
            if number != self._prepared_number:
                return
            prepared, self._prepared = self._prepared, {}
            before = []
            for model, (view, entries) in prepared.items():
                known = self._models.setdefault(model, KnownModel(model, answers={}))
                before += [(model, entry) for entry in (known.answers or {}).values()]
                known.answer_by(view, entries)
                if not known.versions and not entries:
                    del self._models[model]
            free = self._released(before)
        self._free(free)
        for model in prepared:
            self._notify(model)

    def candidate(self, model: str) -> Candidate:
        """Returns what this worker has of a model."""
        with self._lock:
            known = self._models.get(model)
            if known is None:
                return NO_CANDIDATE
            entries = known.versions.items()
            return Candidate(
                ready={
                    version: entry.served.instance
                    for version, entry in entries
                    if entry.state is State.READY and entry.served is not None
                },
                held={
                    version: entry.served.instance
                    for version, entry in self._held(model, known).items()
                    if entry.served is not None and not _is_wanted(known.versions.get(version), entry)
                },
                labels=dict(known.wanted_labels),
                present=sorted(known.versions),
                failed={version: entry.reason for version, entry in entries if entry.state is State.FAILED},
                is_moving=any(entry.state in _COMING for _, entry in entries),
            )

    def reclaim(self, model: str, version: int) -> bool:
        """Wants a version again that was to go and still answers; it need not be loaded anew."""
        with self._lock:
            known = self._models.get(model)
            entry = known.versions.get(version) if known else None
            if known is None or entry is None or entry.state is not State.UNLOADING or entry.served is None:
                return False
            if (known.answers or {}).get(version) is not entry:
                return False
            entry.state, entry.on_free = State.READY, None
        self._notify(model)
        return True

    def adopt(self, model: str, version: int) -> None:
        """Answers with an instance that was just loaded where what answers has the same content: one is enough."""
        with self._lock:
            known = self._models.get(model)
            old = (known.answers or {}).get(version) if known else None
            new = known.versions.get(version) if known else None
            if known is None or known.answers is None or old is None or new is None or new is old:
                return
            if old.served is None or new.served is None or old.served.instance != new.served.instance:
                return
            new.lease_count += 1
            known.answers = {**known.answers, version: new}
            free = self._released([(model, old)])
        self._free(free)

    def _held(self, model: str, known: KnownModel) -> dict[int, KnownVersion]:
        """Returns what answers, and what was prepared to: both have a lease, whoever retires them."""
        answers = known.answers or {}
        _, prepared = self._prepared.get(model, (None, {}))
        is_made = self.counter[0] == self._prepared_number
        return {**answers, **prepared} if is_made else {**prepared, **answers}

    def _found(self, model: str, view: View) -> dict[int, KnownVersion]:
        known = self._models.get(model)
        if known is None:
            return {}
        found = {version: known.instance(version, digest) for version, digest in view.versions.items()}
        return {version: entry for version, entry in found.items() if entry is not None}

    def _released(self, entries: Iterable[tuple[str, KnownVersion]]) -> list[tuple[str, KnownVersion]]:
        """Gives leases back; the result is to be let go once the lock is released."""
        free = []
        for model, entry in entries:
            entry.lease_count -= 1
            if entry.lease_count == 0 and entry.state is State.UNLOADING:
                free.append((model, entry))
        return free

    def _free(self, entries: Iterable[tuple[str, KnownVersion]]) -> None:
        for model, entry in entries:
            self._let_go(model, entry)


def _is_wanted(wanted: KnownVersion | None, held: KnownVersion) -> bool:
    return wanted is held and held.state is State.READY
