"""What failed by circumstances is tried again, later each time; what failed by its content only when that changes."""

from __future__ import annotations

import errno
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.loading.load_attempts import FIRST_WAIT_S, LONGEST_WAIT_S, LoadAttempts
from fitserve_service.loading.load_errors import (
    DESCRIPTORS,
    MEMORY,
    THREADS,
    TIME,
    LoadError,
    ShortageError,
    as_shortage,
    shortage_kind,
)

NAME = ("m", 1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def attempts(clock: Clock, chance: float = 0.5) -> LoadAttempts:
    return LoadAttempts(clock=clock, wall_s=lambda: clock.now_s, chance=lambda: chance)


def test_content_is_final_until_its_grounds_change() -> None:
    made = attempts(clock := Clock())
    made.begin(NAME, "files")
    assert made.fail(NAME, LoadError("bad")) == made.reason(NAME) == "bad"
    clock.now_s += 1e9
    assert not made.is_worth_another(NAME, "files")
    assert made.is_worth_another(NAME, "other files")
    assert made.next_due_s() is None
    made.forget(NAME)
    assert made.is_worth_another(NAME, "files")


@given(st.floats(0, 1), st.integers(1, 12), st.floats(0, 3))
def test_waits_double_up_to_the_longest_and_spare_what_takes_long(chance: float, count: int, took_s: float) -> None:
    made = attempts(clock := Clock(), chance)
    for turn in range(count):
        made.begin(NAME, "files")
        clock.now_s += took_s
        made.fail(NAME, ShortageError("none left", MEMORY))
        wait_s = made.next_due_s()
        assert wait_s is not None
        wait_s -= clock.now_s
        usual_s = max(min(FIRST_WAIT_S * 2**turn, LONGEST_WAIT_S), 4 * took_s)
        assert 0.79 * usual_s <= wait_s <= 1.21 * usual_s
        clock.now_s += wait_s * 0.999
        assert not made.is_worth_another(NAME, "files")
        clock.now_s += wait_s * 0.002
        assert made.is_worth_another(NAME, "files")


def test_a_shortage_is_told_once_and_each_kind_anew(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    made = attempts(Clock())
    for kind in (MEMORY, MEMORY, MEMORY, TIME, TIME):
        made.begin(NAME, "files")
        reason = made.fail(NAME, ShortageError(f"short of {kind}", kind))
        assert "; tried again at 00:01:" in reason
    assert [record.getMessage().split(": ")[2].split(";")[0] for record in caplog.records] == [
        "short of memory",
        "short of time",
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), MEMORY),
        (OSError(errno.EMFILE, "Too many open files"), DESCRIPTORS),
        (OSError(errno.ENFILE, "Too many open files in system"), DESCRIPTORS),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), THREADS),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (RuntimeError("can't start new thread"), THREADS),
    ],
)
def test_circumstances_are_told_from_faults(error: Exception, kind: str) -> None:
    found = as_shortage(error)
    assert isinstance(found, ShortageError)
    assert found.kind == kind


def test_faults_and_files_are_to_blame_for_the_rest() -> None:
    for error in (KeyError("x"), RuntimeError("what"), LoadError("bad"), OSError(errno.ENOENT, "No such file")):
        assert as_shortage(error) is error
    assert shortage_kind(PermissionError(errno.EACCES, "Permission denied")) == ""
    assert shortage_kind(OSError(errno.EIO, "Input/output error")) != ""
