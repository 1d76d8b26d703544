"""Closed and open loops of load on a server that gives bytes back, and what is read from another program's report."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.benchmarks.echoing import METHOD, echo, serving

from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.poisson import PoissonPlan, arrival_times_s, put_poisson
from fitserve_benchmarks.serve_load import (
    Target,
    answers_per_s,
    connection_count,
    failures,
    h2load_arguments,
    own_turn,
    put_turn,
)

_REPORT = (
    "finished in 1.80s, 3418.67 req/s, 9.98MB/s\n"
    "requests: {done} total, {done} started, {done} done, {good} succeeded, 0 failed, 0 errored, 0 timeout\n"
    "traffic: 14.97MB (15696171) total, 18.41KB (18852) headers (space savings 96.24%), 17.72MB ({data}) data\n"
)


@given(st.integers(1, 10_000))
def test_calls_in_flight_are_spread_evenly_over_at_most_four_connections(in_flight: int) -> None:
    count = connection_count(in_flight)
    assert 1 <= count <= 4
    assert in_flight % count == 0


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(1, 5_000))
def test_an_answer_without_its_bytes_is_a_failure(right: int, empty: int, answer_bytes: int) -> None:
    done = right + empty
    text = _REPORT.format(done=done, good=done, data=right * answer_bytes)
    assert failures(text, answer_bytes) == empty


def test_an_answer_without_success_is_a_failure() -> None:
    assert failures(_REPORT.format(done=10, good=7, data=10_000), 100) == 3


def test_a_report_that_says_nothing_is_refused() -> None:
    with pytest.raises(LoadFailedError, match="expected a count of requests, got: no idea"):
        failures("no idea", 1)


@given(st.floats(1, 1_000), st.integers(1, 64), st.integers(2, 19), st.floats(0, 1))
def test_batches_that_end_together_give_their_rate_whatever_the_turn_cut_off(
    rate: float, size: int, generations: int, phase: float
) -> None:
    """Counting would be off by up to a whole batch."""
    generation_s = size / rate
    ends_s = np.repeat((np.arange(generations) + phase) * generation_s, size)
    latencies_s = np.full(ends_s.size, generation_s)
    duration_s = generations * generation_s
    assert answers_per_s(0.0, ends_s, latencies_s, duration_s) == pytest.approx(rate)
    # Many generations are counted: what a server left out in between must not be overlooked.
    assert answers_per_s(1.5, ends_s, latencies_s, 20 * generation_s) == 1.5


def test_a_turn_of_one_moment_or_none_is_counted() -> None:
    none = np.array([])
    assert answers_per_s(0.0, none, none, 1.0) == 0.0
    assert answers_per_s(32.0, np.full(32, 0.5), np.full(32, 0.5), 1.0) == 32.0


def test_each_protocol_has_its_own_command_line() -> None:
    body, log = Path("body"), Path("log")
    grpc_line = h2load_arguments(Target(1, "/m"), 32, 1.5, body, log)
    assert {"-c4", "-m8", "--duration=1500ms", "te: trailers"} <= set(grpc_line)
    assert "--h1" not in grpc_line
    http_line = h2load_arguments(Target(1, "/m", "http", "application/json"), 32, 1.0, body, log)
    assert {"-c32", "-m1", "--h1", "content-type: application/json"} <= set(http_line)


def test_a_turn_counts_answers_and_failures_apart() -> None:
    def picky(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")
        return request

    with serving(picky) as port:
        turn = own_turn(Target(port, METHOD), [b"good", b"bad"], 4, 0.2)
    assert turn.failed_count > 0
    assert turn.latencies_s.size > 0
    assert all(index == 0 and answer == b"good" for index, answer in turn.samples)


def test_whatever_puts_the_load_on_answers_are_counted() -> None:
    with serving(echo) as port:
        turn = put_turn(Target(port, METHOD), [b"x" * 300], 300, 4, 0.3)
    assert turn.rate > 0
    assert turn.failed_count == 0
    assert turn.latencies_s.size > 0


def test_our_own_load_speaks_no_http_1() -> None:
    with pytest.raises(LoadFailedError, match="expected h2load on PATH"):
        own_turn(Target(1, "/", "http"), [b""], 1, 0.1)


@given(st.floats(1, 5_000), st.integers(0, 2**31))
def test_arrivals_are_in_order_within_their_time_and_the_same_again(rate: float, seed: int) -> None:
    times_s = arrival_times_s(rate, 1.0, seed)
    assert np.array_equal(times_s, arrival_times_s(rate, 1.0, seed))
    assert np.all(np.diff(times_s) > 0)
    assert not times_s.size or 0 < times_s[0] <= times_s[-1] < 1.0
    # Six standard deviations of a Poisson count, and room for the smallest rates.
    assert abs(times_s.size - rate) <= 6 * rate**0.5 + 6


@settings(max_examples=10, deadline=None)
@given(st.integers(50, 2_000), st.integers(1, 4), st.integers(1, 20), st.integers(0, 2**31))
@example(500, 1, 1, 0)
def test_every_arrival_leaves_once_and_in_order(rate: int, connections: int, streams: int, seed: int) -> None:
    received: list[bytes] = []

    def keep(request: bytes, _: grpc.ServicerContext) -> bytes:
        received.append(request)
        return request

    messages = [bytes([index]) for index in range(7)]
    with serving(keep, thread_count=1, **{"grpc.max_concurrent_streams": streams}) as port:
        result = put_poisson(PoissonPlan(port, METHOD, rate, connections, 0.1, seed), messages)

    count = arrival_times_s(rate, 0.1, seed).size
    in_order = [messages[index % 7] for index in range(count)]
    assert sorted(received) == sorted(in_order)
    if connections == streams == 1:
        # One call at a time; of several, the server's threads take whichever they like first.
        assert received == in_order
    assert (result.latencies_s.size, result.failed_count) == (count, 0)
    assert result.lateness_s.size + result.held_count == count
    assert np.all(result.lateness_s >= 0)
    assert np.all(result.latencies_s > 0)


def test_an_open_loop_counts_what_failed() -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        raise AssertionError

    with serving(refuse) as port:
        result = put_poisson(PoissonPlan(port, METHOD, 200.0, 2, 0.2), [b"a"])
    assert result.failed_count == arrival_times_s(200.0, 0.2, 0).size
    assert result.latencies_s.size == 0


def test_what_the_client_is_late_by_is_told_and_is_in_the_latencies() -> None:
    """A handler that lets nobody else in this process run makes the client late, for it is in this process too."""
    busy_s: list[float] = []

    def first_is_selfish(request: bytes, _: grpc.ServicerContext) -> bytes:
        if not busy_s:
            begin_s = time.perf_counter()
            sum(range(1_000_000))
            busy_s.append(time.perf_counter() - begin_s)
        return request

    with serving(first_is_selfish, thread_count=1) as port:
        result = put_poisson(PoissonPlan(port, METHOD, 1_000.0, 1, 1.0), [b"x"])
    assert result.lateness_s.max() > busy_s[0] / 2
    assert result.latencies_s.max() >= result.lateness_s.max()


def test_a_latency_counts_from_when_a_request_was_due() -> None:
    """A server that takes one call at a time on a connection makes the others wait, and that wait is theirs."""
    opened = threading.Event()

    def first_is_slow(request: bytes, _: grpc.ServicerContext) -> bytes:
        if not opened.is_set():
            opened.wait(0.3)
            opened.set()
        return request

    with serving(first_is_slow, **{"grpc.max_concurrent_streams": 1}) as port:
        result = put_poisson(PoissonPlan(port, METHOD, 500.0, 1, 0.2), [b"x"])
    assert result.failed_count == 0
    assert result.held_count > 0
    assert np.median(result.latencies_s) > 0.1
