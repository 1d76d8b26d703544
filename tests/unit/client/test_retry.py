"""The retry policy: only what may be retried, at most so often, never past the deadline."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_client.errors import DeadlineExceededError, FitserveError, error_of
from fitserve_client.retry import RETRYABLE_CODES, Attempts, RetryPolicy, Timing


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _attempt_times(policy, timeout_s, durations, chances, code=grpc.StatusCode.UNAVAILABLE, is_retryable=True):
    """Makes a call whose every attempt fails after a given time; gives (begin, time allowed) of each attempt."""
    clock, chance = _Clock(), iter(chances)
    attempts = Attempts(policy, clock.now_s + timeout_s, Timing(clock, lambda: next(chance)))
    begun = []
    while True:
        try:
            remaining_s = attempts.begin()
            begun.append((clock.now_s - 1000.0, remaining_s))
            clock.now_s += min(durations[len(begun) - 1], remaining_s)
            clock.now_s += attempts.pause_after(error_of(code, "failed", None), is_retryable=is_retryable)
        except FitserveError as error:
            return begun, error, clock.now_s - 1000.0


_POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 8),
    first_pause_s=st.floats(0.001, 5),
    multiplier=st.floats(1, 4),
    max_pause_s=st.floats(0.001, 5),
)


@given(
    _POLICIES,
    st.floats(0.01, 60),
    st.lists(st.floats(0, 20), min_size=8, max_size=8),
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
)
def test_never_past_the_deadline_and_never_too_often(policy, timeout_s, durations, chances):
    begun, _, ended_s = _attempt_times(policy, timeout_s, durations, chances)
    assert 1 <= len(begun) <= policy.max_attempts
    assert all(begin_s < timeout_s and allowed_s > 0 for begin_s, allowed_s in begun)
    assert all(begin_s + allowed_s == pytest.approx(timeout_s, abs=1e-6) for begin_s, allowed_s in begun)
    assert ended_s <= timeout_s + 1e-6


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_only_retryable_codes_are_retried(code):
    begun, error, _ = _attempt_times(RetryPolicy(), 60, [0.0] * 8, [0.5] * 8, code)
    assert len(begun) == (5 if code in RETRYABLE_CODES else 1)
    assert error.code is code


def test_the_codes_that_a_stopping_server_ends_calls_with():
    assert {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED} == RETRYABLE_CODES


@given(st.floats(0, 3), st.floats(0, 1))
def test_a_server_that_says_when_to_come_again_is_tried_again_then(after_s, chance):
    clock, policy = _Clock(), RetryPolicy()
    attempts = Attempts(policy, clock.now_s + 60, Timing(clock, lambda: chance))
    attempts.begin()
    error = error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", None)
    with pytest.raises(FitserveError, match="full"):
        attempts.pause_after(error, is_retryable=True)
    error.retry_after_s = after_s
    assert attempts.pause_after(error, is_retryable=True) == pytest.approx(after_s + policy.pause_s(1, chance))
    with pytest.raises(FitserveError, match="full"):
        attempts.pause_after(error, is_retryable=False)


def test_a_call_that_may_not_be_repeated_is_made_once():
    begun, _, _ = _attempt_times(RetryPolicy(), 60, [0.0] * 8, [0.5] * 8, is_retryable=False)
    assert len(begun) == 1


@given(st.integers(1, 20), st.floats(0, 1))
def test_pauses_grow_up_to_a_bound_and_keep_their_lower_half(attempt, fraction):
    policy = RetryPolicy(first_pause_s=0.2, multiplier=2, max_pause_s=2)
    longest = min(0.2 * 2 ** (attempt - 1), 2)
    assert longest / 2 <= policy.pause_s(attempt, fraction) <= longest
    assert policy.pause_s(attempt, 1.0) <= policy.pause_s(attempt + 1, 1.0)


def test_no_attempt_begins_after_the_deadline():
    clock = _Clock()
    attempts = Attempts(RetryPolicy(), clock.now_s + 1, Timing(clock, lambda: 0.0))
    clock.now_s += 1
    with pytest.raises(DeadlineExceededError, match="deadline"):
        attempts.begin()


def test_default_pauses_outlast_a_restart_of_the_server():
    assert sum(RetryPolicy().pause_s(attempt, 0.0) for attempt in range(1, 5)) >= 1.5
