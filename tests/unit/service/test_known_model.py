"""Laws of one model as the registry knows it, under changes made up by chance."""

from __future__ import annotations

import tempfile
from pathlib import Path

import builders
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.labels import STABLE
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.known_model import KnownModel
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion
from fitserve_service.traffic import NO_TRAFFIC
from fitserve_service.version_policy import State

VERSIONS = st.integers(1, 4)
CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("present"),
            st.lists(VERSIONS, unique=True),
            st.dictionaries(st.sampled_from([STABLE, "canary"]), VERSIONS),
        ),
        st.tuples(st.just("state"), VERSIONS, st.sampled_from(State)),
    ),
    max_size=30,
)


def served() -> ServedVersion:
    with tempfile.TemporaryDirectory() as folder:
        return Loader("cpu").load(builders.bare_version(Path(folder), "m", 1, builders.scaled()), Overrides({}))


def asked(known: KnownModel, version: int | None, label: str | None) -> Reason | None:
    """Gives why a request is refused; None where a READY version answers it."""
    try:
        entry = known.answering(version, label)
    except ServiceError as error:
        return error.reason
    assert entry.state is State.READY
    return None


def test_only_ready_versions_answer_and_nothing_that_serves_is_forgotten() -> None:
    loaded = served()

    @given(CHANGES)
    def law(changes: list[tuple[object, ...]]) -> None:
        known = KnownModel("m")
        for change in changes:
            before = {number: entry.state for number, entry in known.versions.items()}
            match change:
                case ("present", list(versions), dict(labels)):
                    is_changed = known.set_present(versions, labels, NO_TRAFFIC)
                    assert not known.set_present(versions, labels, NO_TRAFFIC)
                    assert is_changed or before.keys() == known.versions.keys()
                    serving = {n for n, s in before.items() if s in (State.LOADING, State.READY, State.UNLOADING)}
                    assert set(known.versions) == serving | set(versions)
                    assert set(known.labels) == set(labels)
                case ("state", int(number), State() as state):
                    entry = known.version(number)
                    entry.state = state
                    entry.served = loaded if state in (State.READY, State.UNLOADING) else None
                    known.settle()
            _check(known)

    law()


def _check(known: KnownModel) -> None:
    ready = known.ready()
    stable = known.labels.get(STABLE)
    expected = stable if stable in known.versions else max(ready, default=None)
    assert known.default == expected
    assert (asked(known, None, None) is None) == (expected in ready)
    for number in range(1, 5):
        reason = asked(known, number, None)
        assert (reason is None) == (number in ready)
        assert (reason is Reason.VERSION_NOT_FOUND) == (number not in known.versions)
    for label, number in known.labels.items():
        assert (asked(known, None, label) is None) == (number in ready)
    assert asked(known, None, "no such label") is Reason.LABEL_NOT_FOUND
    assert [version.version for version in known.snapshot().versions] == sorted(known.versions)
