"""What one worker could answer of a model, and what all of them answer. Pure functions.

An instance is a version's content as it was loaded, named by its digest: files that were renewed in place make another
instance of the same version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from fitserve_contract.labels import STABLE
from fitserve_service.version_policy import answering_labels

_MOST_REASON_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one worker has of a model.

    Args:
        ready: Instances that it wants and has loaded, by version.
        held: Instances that it still has because all workers answer with them, by version.
        labels: Where the repository has the labels.
        present: All versions that it knows.
        failed: Why versions failed, by version.
        is_moving: Versions are to be loaded.
    """

    ready: Mapping[int, str] = field(default_factory=dict)
    held: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    present: Sequence[int] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    is_moving: bool = False

    def instances(self) -> set[tuple[int, str]]:
        """Returns what it could answer with: pairs of version and instance."""
        return {*self.ready.items(), *self.held.items()}

    def fields(self) -> dict[str, Any]:
        """Writes it for a link."""
        return asdict(self)

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Candidate:
        """Reads what `fields` wrote, by way of JSON."""
        return Candidate(
            _by_version(fields["ready"]),
            _by_version(fields["held"]),
            dict(fields["labels"]),
            tuple(fields["present"]),
            _by_version(fields["failed"]),
            fields["is_moving"],
        )


@dataclass(frozen=True, slots=True)
class View:
    """What every worker answers of a model.

    Args:
        versions: Instances by version; no other version answers.
        labels: Label to the version that answers for it.
        default: Version that answers a request without version and label; None: none does.
    """

    versions: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    default: int | None = None

    def fields(self) -> dict[str, Any]:
        """Writes it for a link."""
        return asdict(self)

    @staticmethod
    def of(fields: Mapping[str, Any]) -> View:
        """Reads what `fields` wrote, by way of JSON."""
        return View(_by_version(fields["versions"]), dict(fields["labels"]), fields["default"])


NO_VIEW: Final = View()
NO_CANDIDATE: Final = Candidate()


def next_view(before: View, candidates: Sequence[Candidate]) -> View:
    """Decides what all workers answer of a model next.

    Only what every worker has can answer. Of that, what at least one worker wants does; where that is nothing, or would
    take the default back while the workers still move, what answered before goes on.

    Args:
        before: What they answer now.
        candidates: What each of them has.
    """
    common = set.intersection(*(each.instances() for each in candidates)) if candidates else set()
    wanted = {pair for each in candidates for pair in each.ready.items()}
    kept = common & set(before.versions.items())
    answering = common & wanted
    if wanted and not answering:
        answering = kept
    view = _settled(before, candidates, _choose(answering, kept, candidates))
    if _goes_back(before, view) and not is_agreed(candidates):
        return _settled(before, candidates, _choose(answering | kept, kept, candidates))
    return view


def is_agreed(candidates: Sequence[Candidate]) -> bool:
    """Tells whether all workers want the same of a model, and have it."""
    first = candidates[0] if candidates else NO_CANDIDATE
    return all(not each.is_moving and each.ready == first.ready and each.labels == first.labels for each in candidates)


def disagreement(model: str, candidates: Mapping[int, Candidate]) -> str:
    """Says how workers differ in a model, for people; empty where one still loads.

    Args:
        model: Model name.
        candidates: What each worker has, by its number.
    """
    if any(each.is_moving for each in candidates.values()):
        return ""
    wanted = {pair for each in candidates.values() for pair in each.ready.items()}
    for version, instance in sorted(wanted, reverse=True):
        for number, each in sorted(candidates.items()):
            if each.ready.get(version) != instance:
                return f"model '{model}' version {version}: {_difference(number, version, each)}"
    return f"model '{model}': the workers read different labels"


def _difference(number: int, version: int, candidate: Candidate) -> str:
    if version in candidate.ready:
        return f"worker {number} has loaded other files than the other workers"
    why = candidate.failed.get(version, "")[:_MOST_REASON_CHARS]
    return f"other workers have loaded it, worker {number} has not{f': {why}' if why else ''}"


def _choose(
    pairs: Iterable[tuple[int, str]], kept: set[tuple[int, str]], candidates: Sequence[Candidate]
) -> dict[int, str]:
    """Chooses one instance of each version: what most workers want, what answers already where that is equal."""

    def rank(pair: tuple[int, str]) -> tuple[int, bool, str]:
        return sum(each.ready.get(pair[0]) == pair[1] for each in candidates), pair in kept, pair[1]

    return dict(sorted(pairs, key=lambda pair: (pair[0], rank(pair))))


def _settled(before: View, candidates: Sequence[Candidate], versions: dict[int, str]) -> View:
    """Settles labels and the default as `known_model.KnownModel.settle` does for one process."""
    labels = dict(before.labels)
    if candidates and all(each.labels == candidates[0].labels for each in candidates):
        labels = dict(answering_labels(candidates[0].labels, before.labels, versions))
    stable = labels.get(STABLE)
    is_known = any(stable in each.present for each in candidates)
    return View(versions, labels, stable if is_known else max(versions, default=None))


def _goes_back(before: View, after: View) -> bool:
    """Tells whether callers of the default would meet a lower version, though nobody has moved a label."""
    if before.default is None or before.labels.get(STABLE) != after.labels.get(STABLE):
        return False
    return after.default is None or after.default < before.default


def _by_version(found: Mapping[Any, str]) -> dict[int, str]:
    """Reads a mapping by version: JSON has made texts of the numbers."""
    return {int(version): value for version, value in found.items()}
