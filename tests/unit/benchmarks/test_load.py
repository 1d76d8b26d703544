"""The load keeps its calls in flight, counts failures and brings samples back."""

from __future__ import annotations

import socket
from dataclasses import replace

import grpc
import pytest
from tests.unit.benchmarks.echoing import METHOD, echo, serving

from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.load import LoadPlan, load_in_process, put_load

REQUESTS = [bytes([index]) * (100 * index) for index in range(5)]


def plan_for(port: int, *, in_flight: int = 4, connections: int = 2) -> LoadPlan:
    return LoadPlan("127.0.0.1", port, METHOD, in_flight, connections, duration_s=0.2, warm_up_s=0.05)


@pytest.mark.parametrize(("in_flight", "connections"), [(1, 1), (6, 4)])
def test_every_answer_is_that_of_its_request(in_flight: int, connections: int) -> None:
    with serving(echo) as port:
        result = put_load(plan_for(port, in_flight=in_flight, connections=connections), REQUESTS)
    assert result.failed_count == 0
    assert result.samples
    assert all(REQUESTS[index] == message for index, message in result.samples)
    assert result.duration_s >= 0.2
    assert (result.latencies_s > 0).all()


def test_the_child_process_brings_the_same_result_back() -> None:
    with serving(echo) as port:
        result = load_in_process(plan_for(port), REQUESTS)
    assert result.failed_count == 0
    assert len(result.latencies_s)
    assert all(REQUESTS[index] == message for index, message in result.samples)


def test_failed_calls_are_counted_and_have_no_latency() -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not today")

    with serving(refuse) as port:
        result = put_load(plan_for(port), REQUESTS)
    assert result.failed_count > 0
    assert not result.latencies_s.size
    assert not result.samples


def test_more_calls_than_the_server_takes_on_a_connection_are_refused_beforehand() -> None:
    options = {"grpc.max_concurrent_streams": 3}
    with serving(echo, **options) as port, pytest.raises(LoadFailedError, match=r"expected at most 3.*--connections 4"):
        put_load(plan_for(port, in_flight=10, connections=1), REQUESTS)


def test_a_server_that_is_not_there_is_told_from_the_child() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LoadFailedError, match=f"127.0.0.1:{port}: .*refused"):
        load_in_process(replace(plan_for(1), port=port), REQUESTS)
