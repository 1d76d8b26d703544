"""Which version is loaded and unloaded next: the table, and what holds for every history."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_service.version_policy import Action, State, Step, answering_labels, aspired_versions, next_steps

P, L, R, G, U, F = State.PENDING, State.LOADING, State.READY, State.UNLOADING, State.UNLOADED, State.FAILED


def load(version: int) -> Step:
    return Step(Action.LOAD, version)


def unload(version: int) -> Step:
    return Step(Action.UNLOAD, version)


@pytest.mark.parametrize(
    ("states", "aspired", "expected"),
    [
        pytest.param({}, [], [], id="nothing there, nothing to do"),
        pytest.param({1: P}, [1], [load(1)], id="a new version is loaded"),
        pytest.param({}, [1], [load(1)], id="an aspired version that nobody has heard of is loaded"),
        pytest.param({1: L}, [1], [], id="one that loads already is left alone"),
        pytest.param({1: R}, [1], [], id="one that is ready is left alone"),
        pytest.param({1: F}, [1], [], id="one that failed is not tried again by itself"),
        pytest.param({1: U}, [1], [load(1)], id="an unloaded one comes back"),
        pytest.param({1: G}, [1], [], id="one that is going has to go first"),
        pytest.param({1: P, 2: P}, [1, 2], [load(2), load(1)], id="the highest first"),
        pytest.param({1: R, 2: P}, [2], [load(2)], id="the old one stays while the new one loads"),
        pytest.param({1: R, 2: L}, [2], [], id="and while it is loading"),
        pytest.param({1: R, 2: F}, [2], [], id="and when it failed"),
        pytest.param({1: R, 2: R}, [2], [unload(1)], id="and goes once it is ready"),
        pytest.param({1: R, 2: R, 3: L}, [3], [unload(1)], id="of two old ones the higher stays"),
        pytest.param({1: R, 2: R, 3: F}, [2, 3], [unload(1)], id="a ready aspired one covers"),
        pytest.param({1: R, 2: R}, [], [unload(1), unload(2)], id="nothing aspired: all go at once"),
        pytest.param({1: R}, [], [unload(1)], id="even the last"),
        pytest.param({1: L}, [], [], id="a version that is loading cannot be unloaded yet"),
        pytest.param({1: R, 2: R}, [1], [unload(2)], id="back to an older one"),
        pytest.param({1: U, 2: R}, [1], [load(1)], id="back to an older one that has gone"),
    ],
)
def test_next_steps(states: dict[int, State], aspired: list[int], expected: list[Step]) -> None:
    assert next_steps(states, aspired) == expected


@pytest.mark.parametrize(
    ("present", "keep", "exactly", "labelled", "expected"),
    [
        ([], 1, (), (), []),
        ([1, 2, 10], 1, (), (), [10]),
        ([1, 2, 10], 2, (), (), [2, 10]),
        ([1, 2, 10], 9, (), (), [1, 2, 10]),
        ([1, 2, 10], 1, (1,), (), [1]),
        ([1, 2, 10], 1, (7,), (), []),
        ([1, 2, 10], 1, (), (1,), [1, 10]),
        ([1, 2, 10], 1, (2,), (1, 99), [1, 2]),
    ],
)
def test_aspired_versions(
    present: list[int], keep: int, exactly: tuple[int, ...], labelled: tuple[int, ...], expected: list[int]
) -> None:
    assert aspired_versions(present, keep=keep, exactly=exactly, labelled=labelled) == expected


@pytest.mark.parametrize(
    ("failed", "keep", "exactly", "expected"),
    [
        ([10], 1, (), [2, 10]),
        ([2, 10], 1, (), [1, 10]),
        ([1, 2, 10], 1, (), [10]),
        ([2], 1, (), [10]),
        ([10], 2, (), [1, 2, 10]),
        ([10], 1, (10,), [10]),
    ],
)
def test_the_next_lower_version_stands_in_for_one_that_failed(
    failed: list[int], keep: int, exactly: tuple[int, ...], expected: list[int]
) -> None:
    assert aspired_versions([1, 2, 10], keep=keep, exactly=exactly, labelled=(), failed=failed) == expected


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.integers(1, 6), st.sampled_from(State), max_size=6),
    st.sets(st.integers(1, 6)),
    st.sets(st.integers(1, 6)),
    st.data(),
)
def test_availability_is_kept_and_the_end_is_reached(
    states: dict[int, State], aspired: set[int], broken: set[int], data: st.DataObject
) -> None:
    """Steps and their ends come in any order; versions in `broken` fail to load."""
    wanted = sorted(aspired)
    for _ in range(100):
        moves: list[tuple[int, Action | None]] = [(step.version, step.action) for step in next_steps(states, wanted)]
        moves += [(version, None) for version, state in states.items() if state in (L, G)]
        if not moves:
            break
        version, action = data.draw(st.sampled_from(moves))
        was_serving = any(state is R for state in states.values())
        _carry_out(states, version, action, broken)
        is_settled = all(states.get(v) is R for v in wanted)
        if was_serving and not is_settled:
            assert any(state is R for state in states.values())
    else:
        pytest.fail("100 steps did not reach the end")
    for version, state in states.items():
        if version in aspired:
            assert state in (R, F)
    if not aspired & {version for version, state in states.items() if state is F}:
        assert {version for version, state in states.items() if state is R} == aspired


def _carry_out(states: dict[int, State], version: int, action: Action | None, broken: set[int]) -> None:
    if action is Action.LOAD:
        assert states.get(version, P) in (P, U)
        states[version] = L
    elif action is Action.UNLOAD:
        assert states[version] is R
        states[version] = G
    elif states[version] is L:
        states[version] = F if version in broken else R
    else:
        states[version] = U


@pytest.mark.parametrize(
    ("wanted", "before", "ready", "expected"),
    [
        pytest.param({"stable": 1}, {}, {1}, {"stable": 1}, id="a label points where it is put"),
        pytest.param({"stable": 2}, {"stable": 1}, {1}, {"stable": 1}, id="it stays until the new version is ready"),
        pytest.param({"stable": 2}, {"stable": 1}, {1, 2}, {"stable": 2}, id="and moves then"),
        pytest.param({"stable": 2}, {"stable": 1}, {}, {"stable": 2}, id="one that serves nothing holds nobody back"),
        pytest.param({"stable": 2}, {}, {1}, {"stable": 2}, id="a new label is not silently another version"),
        pytest.param({}, {"stable": 1}, {1}, {}, id="a label that is deleted is gone"),
    ],
)
def test_a_label_answers_by_what_is_there(
    wanted: dict[str, int], before: dict[str, int], ready: set[int], expected: dict[str, int]
) -> None:
    assert answering_labels(wanted, before, ready) == expected


@given(
    st.lists(st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(1, 4)), st.sets(st.integers(1, 4)))),
)
def test_a_label_that_answered_answers_as_long_as_either_version_is_ready(
    history: list[tuple[dict[str, int], set[int]]],
) -> None:
    before: Mapping[str, int] = {}
    for wanted, ready in history:
        after = answering_labels(wanted, before, ready)
        assert after.keys() == wanted.keys()
        for label, version in after.items():
            assert version in (wanted[label], before.get(label))
            if wanted[label] in ready or before.get(label) in ready:
                assert version in ready
        before = after
