"""The parent's part of a switch: proposes views to the workers, and switches once all of them have prepared.

One round is under way at a time. A worker that cannot prepare (it has let go what it had) ends the round, and the next
one goes by what it reports then; one that dies is left out. A new worker takes calls only from a round on in which it
has prepared everything that the others answer with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias, TypeVar

from fitserve_service.switching.views import (
    NO_CANDIDATE,
    NO_VIEW,
    Candidate,
    View,
    disagreement,
    is_agreed,
    next_view,
)

Worker = TypeVar("Worker")

Models: TypeAlias = dict[str, Candidate]


@dataclass(slots=True)
class _Round(Generic[Worker]):
    number: int
    views: Mapping[str, View]
    waiting: set[Worker]
    joining: set[Worker]


@dataclass(slots=True)
class Rounds(Generic[Worker]):
    """Settles what all workers answer. Used on one thread.

    Args:
        propose: Sends a worker views to prepare under a number: `accept` tells of it.
        commit: Makes the switch of a number, for all workers at once.
        switched: Called after a switch, with the workers that take part from now on.
    """

    propose: Callable[[Worker, int, dict[str, Any]], object]
    commit: Callable[[int], object]
    switched: Callable[[set[Worker]], object]
    members: set[Worker] = field(default_factory=set)
    """Workers that answer by the views."""
    views: dict[str, View] = field(default_factory=dict)
    """What they answer, by model."""
    _found: dict[Worker, Models] = field(default_factory=dict)
    _joining: set[Worker] = field(default_factory=set)
    _moved: set[str] = field(default_factory=set)
    _barred: frozenset[tuple[str, int]] = frozenset()
    _number: int = 0
    _round: _Round[Worker] | None = None
    _waiting: list[Callable[[], object]] = field(default_factory=list)

    def report(self, worker: Worker, model: str, candidate: Candidate) -> None:
        """Takes what a worker has of a model."""
        self._found.setdefault(worker, {})[model] = candidate
        self._moved.add(model)
        self._advance()

    def bar(self, versions: Iterable[tuple[str, int]]) -> None:
        """Has no worker answer any more with these versions, where it does so only because the others do."""
        self._barred = frozenset(versions)
        self._moved |= {model for model, _ in self._barred}
        self._advance()

    def join(self, workers: Iterable[Worker]) -> None:
        """Lets workers take part once they have what the members answer with; the first of all need nothing."""
        self._joining |= set(workers)
        self._moved |= {model for worker in self._joining for model in self._found.get(worker, {})}
        self._advance()

    def accept(self, worker: Worker, number: int, *, is_prepared: bool) -> None:
        """Takes a worker's answer to a proposal."""
        if self._round is None or self._round.number != number:
            return
        if is_prepared:
            self._round.waiting.discard(worker)
            self._finish()
        else:
            # What it has now it reports; until then, or until `go_on`, the same proposal would meet the same answer.
            self._moved |= self._round.views.keys()
            self._round = None

    def go_on(self) -> None:
        """Begins a round where one is due; called now and then."""
        self._advance()

    def leave(self, worker: Worker) -> None:
        """Leaves a worker out that has ended."""
        self._moved |= self._found.pop(worker, {}).keys()
        self.members.discard(worker)
        self._joining.discard(worker)
        if self._round is not None:
            self._round.joining.discard(worker)
            self._round.waiting.discard(worker)
            self._finish()
        else:
            self._advance()

    def after(self, callback: Callable[[], object]) -> None:
        """Calls back once everything that was reported so far is settled: at once where nothing is under way."""
        self._waiting.append(callback)
        self._advance()

    def missing(self, worker: Worker) -> dict[str, list[int]]:
        """Returns the versions, by model, that the members answer with and a worker has not loaded."""
        found = self._found.get(worker, {})
        missing = {
            model: [
                version
                for version, instance in view.versions.items()
                if (version, instance) not in found.get(model, NO_CANDIDATE).instances()
            ]
            for model, view in self.views.items()
        }
        return {model: versions for model, versions in missing.items() if versions}

    def apart(self, workers: Collection[Worker]) -> dict[str, list[int]]:
        """Returns, by model, what workers have loaded of models of which they have nothing in common."""
        found = [self._found.get(worker, {}) for worker in workers]
        apart = {}
        for model in {model for models in found for model in models}:
            candidates = [models.get(model, NO_CANDIDATE) for models in found]
            ready = sorted({version for each in candidates for version in each.ready})
            if ready and not next_view(NO_VIEW, candidates).versions:
                apart[model] = ready
        return apart

    def disagreements(self, number_of: Callable[[Worker], int]) -> dict[str, str]:
        """Says, by model, how workers that have reported differ; an empty text where one still loads."""
        texts = {}
        for model in sorted({model for found in self._found.values() for model in found}):
            candidates = {number_of(worker): found.get(model, NO_CANDIDATE) for worker, found in self._found.items()}
            if not is_agreed(list(candidates.values())):
                texts[model] = disagreement(model, candidates)
        return texts

    def _advance(self) -> None:
        if self._round is not None:
            return
        joining = {worker for worker in self._joining if not self.members or not self.missing(worker)}
        voters = self.members or joining
        moved, self._moved = (self._moved, set()) if voters else (set(), self._moved)
        views = {model: self._next(model, voters) for model in moved}
        views = {model: view for model, view in views.items() if view != self.views.get(model, NO_VIEW)}
        if not views and not joining:
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                callback()
            return
        if self.members and views:
            # What the members come to may be what the new ones have not got.
            joining = set()
        self._number += 1
        self._round = _Round(self._number, views, (self.members if views else set()) | joining, joining)
        for worker in tuple(self._round.waiting):
            told = {**self.views, **views} if worker in joining else views
            self.propose(worker, self._number, {model: view.fields() for model, view in told.items()})

    def _next(self, model: str, voters: set[Worker]) -> View:
        candidates = [self._found.get(worker, {}).get(model, NO_CANDIDATE) for worker in voters]
        return next_view(self.views.get(model, NO_VIEW), [self._allowed(model, each) for each in candidates])

    def _allowed(self, model: str, candidate: Candidate) -> Candidate:
        held = {version: each for version, each in candidate.held.items() if (model, version) not in self._barred}
        return replace(candidate, held=held)

    def _finish(self) -> None:
        done = self._round
        if done is None or done.waiting:
            return
        self._round = None
        self.views |= done.views
        self.views = {model: view for model, view in self.views.items() if view != NO_VIEW}
        self.members |= done.joining
        self._joining -= done.joining
        self.commit(done.number)
        self.switched(done.joining)
        self._advance()
