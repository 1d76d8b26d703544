"""What workers come to together: metrics that add up, states that hold for all."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fitserve_service.worker_agreement import (
    grown,
    merge_expositions,
    merge_statuses,
    read_exposition,
    write_exposition,
)

MODELS = st.sampled_from(["lenet", 'quo"ted', "back\\slash", "new\nline", "br}ace 1"])
CALLS = st.lists(st.tuples(MODELS, st.integers(0, 9)), max_size=8)
NAMES = st.frozensets(st.tuples(st.sampled_from("ab"), st.integers(0, 2)))


def written(calls: list[tuple[str, int]]) -> str:
    """What prometheus_client writes for a worker that had these calls."""
    registry = CollectorRegistry()
    requests = Counter("fitserve_requests", "Requests.", ["model"], registry=registry)
    seconds = Histogram("fitserve_run_seconds", "Runs.", ["model"], registry=registry, buckets=(1, 5))
    queued = Gauge("fitserve_queued_examples", "Waiting.", ["model"], registry=registry)
    for model, amount in calls:
        requests.labels(model).inc(amount)
        seconds.labels(model).observe(amount)
        queued.labels(model).inc(amount)
    text = generate_latest(registry).decode()
    return "".join(f"{line}\n" for line in text.splitlines() if "_created" not in line)


def version(number: int, state: str = "READY", **activity: Any) -> dict[str, Any]:
    figures = {"request_count": 0, "requests_per_s": 0.0, "errors_per_s": 0.0, "p50_ms": None, "p99_ms": None}
    checks = {"joining": "joinable", "spot_check_count": 2, "spot_mismatch_count": 0}
    told = {"version": number, "state": state, "reason": "", "queued_examples": 1, **checks}
    return {**told, "activity": figures | activity}


def status(*versions: dict[str, Any], is_ready: bool = True) -> dict[str, Any]:
    models = [{"name": "m", "labels": {}, "versions": list(versions)}]
    return {"is_ready": is_ready, "build": {"version": "1"}, "workers": [], "window_s": 10.0, "models": models}


@given(CALLS)
def test_what_is_read_is_written_back(calls: list[tuple[str, int]]) -> None:
    assert write_exposition(read_exposition(written(calls))) == written(calls)


@given(st.lists(CALLS, min_size=1, max_size=4))
def test_metrics_of_parts_are_the_metrics_of_the_whole(parts: list[list[tuple[str, int]]]) -> None:
    merged = merge_expositions([read_exposition(written(part)) for part in parts])
    whole = read_exposition(written([call for part in parts for call in part]))
    assert {name: family.samples for name, family in merged.items()} == {
        name: family.samples for name, family in whole.items()
    }


def test_gauges_of_amounts_add_up_and_facts_stay() -> None:
    text = (
        "# TYPE fitserve_build_info gauge\nfitserve_build_info 1.0\n"
        "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 5.0\n"
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 7.0\n"
    )
    later = text.replace("7.0", "9.0")
    merged = merge_expositions([read_exposition(text), read_exposition(later)])
    assert {name: value for family in merged.values() for name, value in family.samples.items()} == {
        "fitserve_build_info": 1.0,
        "process_resident_memory_bytes": 10.0,
        "process_start_time_seconds": 7.0,
    }


def test_only_what_was_counted_outlives_a_worker() -> None:
    text = written([("lenet", 3)]) + "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 4.0\n"
    kept = grown(read_exposition(text))
    assert set(kept) == {"fitserve_requests_total", "fitserve_run_seconds"}
    assert kept["fitserve_requests_total"].samples == {'fitserve_requests_total{model="lenet"}': 3.0}


def test_a_version_is_ready_where_it_is_ready_in_all() -> None:
    merged = merge_statuses([status(version(2), version(1)), status(version(2, "LOADING"), version(1), is_ready=False)])
    assert not merged["is_ready"]
    assert [(each["version"], each["state"]) for each in merged["models"][0]["versions"]] == [
        (2, "LOADING"),
        (1, "READY"),
    ]


def test_each_worker_tells_of_its_own_memory_in_the_order_of_their_numbers() -> None:
    documents = [status() | {"workers": [{"worker": number, "private_bytes": number}]} for number in (2, 0, 1)]
    assert merge_statuses(documents)["workers"] == [{"worker": n, "private_bytes": n} for n in range(3)]


def test_a_version_is_joinable_where_no_worker_found_a_mismatch() -> None:
    found = version(1) | {"joining": "not joinable: a spot check", "spot_mismatch_count": 1}
    merged = merge_statuses([status(version(1)), status(found)])["models"][0]["versions"][0]
    assert (merged["joining"], merged["spot_check_count"], merged["spot_mismatch_count"]) == (found["joining"], 4, 1)
    assert merge_statuses([status(version(1))])["models"][0]["versions"][0]["joining"] == "joinable"


def test_rates_add_up_and_latency_is_the_slowest_workers() -> None:
    documents = [
        status(version(1, request_count=2, requests_per_s=1.5, p50_ms=1.0, p99_ms=2.0)),
        status(version(1, request_count=3, requests_per_s=0.5, p50_ms=4.0)),
    ]
    merged = merge_statuses(documents)["models"][0]["versions"][0]
    assert merged["queued_examples"] == 2
    assert merged["activity"] == {
        "request_count": 5,
        "requests_per_s": 2.0,
        "errors_per_s": 0.0,
        "p50_ms": 4.0,
        "p99_ms": 2.0,
    }
