"""A version that crashes its worker too often is set aside, and only that one."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.crashes import Crashes, SetAside, crash_of

A, B = ("a", 1), ("b", 7)


def test_the_crash_that_reaches_the_limit_sets_aside() -> None:
    crashes = Crashes(3, 60.0)
    assert [crashes.add([A], at_s) for at_s in (0.0, 1.0, 2.0)] == [[], [], [A]]
    assert crashes.totals == {A: 3}


def test_a_crash_that_is_long_ago_does_not_count() -> None:
    crashes = Crashes(2, 60.0)
    assert [crashes.add([A], at_s) for at_s in (0.0, 60.0, 119.0)] == [[], [], [A]]


def test_what_was_only_beside_the_culprit_now_and_then_goes_on() -> None:
    crashes = Crashes(3, 60.0)
    assert crashes.add([A, B], 0.0) == []
    assert crashes.add([A], 1.0) == []
    assert crashes.add([A, B], 2.0) == [A]


def test_what_cannot_be_told_apart_is_set_aside_together() -> None:
    crashes = Crashes(2, 60.0)
    crashes.add([A, B], 0.0)
    assert crashes.add([B, A], 1.0) == [A, B]


def test_who_is_forgiven_begins_anew_and_nobody_else() -> None:
    crashes = Crashes(2, 60.0)
    crashes.add([A], 0.0)
    crashes.add([B], 0.0)
    crashes.forgive("a")
    assert crashes.add([A], 1.0) == []
    assert crashes.add([B], 1.0) == [B]


def test_crashes_of_other_files_of_the_name_and_number_do_not_count() -> None:
    stamps = {A: (1,), B: (1,)}
    crashes = Crashes(2, 60.0, stamps.__getitem__)
    assert crashes.add([A, B], 0.0) == []
    stamps[A] = (2,)
    assert crashes.add([A], 1.0) == []
    assert crashes.add([B], 2.0) == [B]
    assert crashes.add([A], 3.0) == [A]
    assert crashes.totals == {A: 3, B: 2}
    crashes.forgive("a")
    assert crashes.add([A], 4.0) == []


def test_a_limit_of_0_sets_nothing_aside() -> None:
    crashes = Crashes(0, 60.0)
    assert [crashes.add([A], float(at_s)) for at_s in range(50)] == [[]] * 50


@given(st.lists(st.tuples(st.sets(st.sampled_from([A, B, ("c", 2)])), st.floats(0, 30))), st.integers(1, 5))
def test_nobody_is_set_aside_below_the_limit(story: list[tuple[set[tuple[str, int]], float]], limit: int) -> None:
    crashes, now_s, seen = Crashes(limit, 100.0), 0.0, []
    for running, pause_s in story:
        now_s += pause_s
        seen += [(name, now_s) for name in running]
        for name in crashes.add(running, now_s):
            assert name in running
            assert sum(other == name and at_s > now_s - 100.0 for other, at_s in seen) >= limit


@pytest.mark.parametrize(
    ("exit_code", "crash"),
    [
        (-signal.SIGSEGV, "SIGSEGV"),
        (-signal.SIGFPE, "SIGFPE"),
        (-signal.SIGABRT, "SIGABRT"),
        (-signal.SIGKILL, ""),
        (-signal.SIGTERM, ""),
        (0, ""),
        (1, ""),
        (None, ""),
    ],
)
def test_only_what_a_process_does_to_itself_is_a_crash(exit_code: int | None, crash: str) -> None:
    assert crash_of(exit_code) == crash


def test_a_crash_is_named_by_what_it_began_with() -> None:
    assert crash_of(-signal.SIGSEGV, signal.SIGFPE) == "SIGFPE"
    assert crash_of(-signal.SIGTERM, signal.SIGFPE) == ""


def test_the_reason_says_how_often_and_beside_whom() -> None:
    reason = Crashes(3, 600.0).reason("SIGFPE", [B])
    assert reason.startswith(
        "set aside: it crashed its worker 3 times in 600 s (last by SIGFPE; beside it ran b version 7)"
    )
    assert "LoadModel" in reason


def test_what_is_set_aside_survives_its_way_over_the_link() -> None:
    entry = SetAside("m", 3, "why", (5, 6))
    assert SetAside.of(json.loads(json.dumps(asdict(entry)))) == entry
