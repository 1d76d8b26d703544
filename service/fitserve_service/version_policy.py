"""Which version to load or unload next: a pure function of a snapshot, so that it is tested as a table.

Availability first: the new version is READY before the last one that serves goes, and a version that fails to load
never displaces one that serves. Source: TensorFlow Serving, `availability_preserving_policy.cc`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Life of a model version in the server; the names of `fitserve.control.v1.State`."""

    PENDING = "PENDING"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


class Action(Enum):
    """What to do with a version."""

    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Step:
    """One action on one version."""

    action: Action
    version: int


def aspired_versions(
    present: Sequence[int],
    *,
    keep: int,
    exactly: Sequence[int],
    labelled: Sequence[int],
    failed: Collection[int] = (),
) -> list[int]:
    """Tells which versions of a model should be loaded.

    Args:
        present: Versions in the repository.
        keep: How many of the highest.
        exactly: These instead, where not empty.
        labelled: Versions that a label points at; always aspired, or the label would point at nothing.
        failed: Versions that FAILED: they stay aspired, and of those kept the next lower ones stand in for them, so
            that a server that starts anew, after a bad version came, serves what it served before.

    Returns:
        Those that are present, ascending.
    """
    highest = set(sorted(present)[-keep:]) | set(sorted(set(present) - set(failed))[-keep:])
    wanted = set(exactly) if exactly else highest
    return sorted((wanted | set(labelled)) & set(present))


def answering_labels(wanted: Mapping[str, int], before: Mapping[str, int], ready: Collection[int]) -> Mapping[str, int]:
    """Tells which version answers for each label while labels move.

    Args:
        wanted: Label to version, as the repository has it.
        before: What this gave last.
        ready: Versions that are READY.

    Returns:
        For every label wanted: its version; or the one before, where that is READY and the one wanted is not yet.
    """
    return MappingProxyType(
        {
            label: version if version in ready or before.get(label) not in ready else before[label]
            for label, version in wanted.items()
        }
    )


def next_steps(states: Mapping[int, State], aspired: Sequence[int]) -> list[Step]:
    """Decides what to do next with one model's versions.

    Args:
        states: State of every version that the server knows.
        aspired: Versions that should be READY.

    Returns:
        Loads of aspired versions that are PENDING or UNLOADED, highest first; unloads of READY versions that are not
        aspired, but only once each aspired version is READY, so that the last READY version never goes before its
        successor has come. A model of which nothing is aspired is unloaded at once.
    """
    wanted = set(aspired)
    to_load = [
        v for v in sorted(wanted, reverse=True) if states.get(v, State.PENDING) in (State.PENDING, State.UNLOADED)
    ]
    surplus = sorted(v for v, state in states.items() if state is State.READY and v not in wanted)
    is_settled = all(states.get(v) is State.READY for v in wanted)
    steps = [Step(Action.LOAD, version) for version in to_load]
    if is_settled:
        return steps + [Step(Action.UNLOAD, version) for version in surplus]
    # Of several READY versions that nobody aspires to, the highest alone is kept until the aspired ones are READY.
    is_covered = any(states.get(v) is State.READY for v in wanted)
    spare = surplus if is_covered else surplus[:-1]
    return steps + [Step(Action.UNLOAD, version) for version in spare]
