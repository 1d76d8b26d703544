"""What is counted, what is exposed, and that nothing grows without end."""

from __future__ import annotations

import dataclasses
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests import builders

from fitserve_contract.repository import version_path
from fitserve_service.engine import BatchRecord
from fitserve_service.errors import Code
from fitserve_service.histogram import MOST_UNCOUNTED, Histogram
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.repository_state import RepositoryState
from fitserve_service.served_version import ServedVersion
from fitserve_service.telemetry import Telemetry
from fitserve_service.version_policy import State


def loaded(root: Path, version: int) -> ServedVersion:
    builders.bare_version(root, "m", version, builders.scaled())
    return Loader("cpu").load(version_path(root, "m", version), Overrides({}))


def samples(telemetry: Telemetry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = telemetry.exposition().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@given(values=st.lists(st.floats(0, 1e6), max_size=50), looks=st.sets(st.integers(0, 49)))
def test_a_histogram_counts_each_value_once_and_cumulates(values: list[float], looks: set[int]) -> None:
    histogram = Histogram((0.5, 1.0, 100.0))
    for index, value in enumerate(values):
        histogram.observe(value)
        if index in looks:
            assert sum(histogram.counts) == index + 1
    buckets = dict(histogram.cumulative())
    assert buckets["+Inf"] == len(values)
    for bound in (0.5, 1.0, 100.0):
        assert buckets[str(bound)] == sum(value <= bound for value in values)
    assert histogram.total == pytest.approx(sum(values))


def test_what_nobody_reads_is_counted_all_the_same() -> None:
    histogram = Histogram((0.5,))
    for _ in range(3 * MOST_UNCOUNTED):
        histogram.observe_all((0.25, 0.75))
        histogram.keep_up()
        assert len(histogram._values) < MOST_UNCOUNTED
    assert histogram.counts == [3 * MOST_UNCOUNTED] * 2


def test_values_that_come_while_others_are_counted_are_not_lost() -> None:
    histogram, count = Histogram((0.5,)), 50_000
    with ThreadPoolExecutor(1) as reader:
        seen = reader.submit(lambda: [sum(histogram.counts) for _ in range(300)])
        for _ in range(count):
            histogram.observe(0.25)
            histogram.keep_up()
    assert seen.result() == sorted(seen.result())
    assert histogram.counts == [count, 0]
    assert histogram.total == count / 4


def test_requests_runs_states_and_queues_are_exposed(tmp_path: Path) -> None:
    registry = Registry()
    served = loaded(tmp_path, 1)
    registry.set_ready(served)
    registry.set_state("m", 2, State.FAILED, reason="broken")
    telemetry = Telemetry(registry, lambda: {served: 7}, {"version": "0", "device": "cpu"})
    telemetry.on_request("Predict", served, Code.OK, 0.003)
    telemetry.on_request("Predict", served, Code.OK, 0.2)
    telemetry.on_request("ModelInfer", None, Code.NOT_FOUND, 0.001)
    telemetry.on_batch(served, BatchRecord(2, 12, 0.002, (0.001, 0.004), False))
    found = samples(telemetry)
    version = {"model": "m", "version": "1"}
    assert found[key("fitserve_requests_total", **version, method="Predict", code="OK")] == 2
    assert found[key("fitserve_requests_total", model="", version="", method="ModelInfer", code="NOT_FOUND")] == 1
    assert found[key("fitserve_request_seconds_bucket", **version, method="Predict", le="0.005")] == 1
    assert found[key("fitserve_request_seconds_count", **version, method="Predict")] == 2
    assert found[key("fitserve_queue_seconds_count", **version)] == 2
    assert found[key("fitserve_run_seconds_sum", **version)] == pytest.approx(0.002)
    assert found[key("fitserve_batch_examples_bucket", **version, le="16.0")] == 1
    assert found[key("fitserve_queued_examples", **version)] == 7
    assert found[key("fitserve_version_state", **version, state="READY")] == 1
    assert found[key("fitserve_version_state", model="m", version="2", state="FAILED")] == 1
    provider = {"provider": "CPUExecutionProvider", "verified": "false"}
    assert found[key("fitserve_version_info", **version, **provider)] == 1
    assert found[key("fitserve_build_info", version="0", device="cpu")] == 1
    assert found[key("process_open_fds")] > 0


def test_a_repository_that_is_away_is_counted() -> None:
    registry = Registry()
    telemetry = Telemetry(registry, dict, {"version": "0"})
    names = ("fitserve_repository_available", "fitserve_repository_absences_total", "fitserve_repository_notes")
    texts = [telemetry.exposition().decode()]
    registry.repository = RepositoryState("it is away", 3, ("'model.onnx' is not served",))
    texts.append(telemetry.exposition().decode())
    found = [
        [line.split()[1] for name in names for line in text.splitlines() if line.startswith(f"{name} ")]
        for text in texts
    ]
    assert found == [["1.0", "0.0", "0.0"], ["0.0", "3.0", "1.0"]]


def test_a_version_that_is_gone_is_scraped_once_more_and_then_forgotten(tmp_path: Path) -> None:
    registry = Registry()
    served = loaded(tmp_path, 1)
    registry.set_ready(served)
    telemetry = Telemetry(registry, dict, {})
    telemetry.on_request("Predict", served, Code.OK, 0.003)
    name = key("fitserve_requests_total", model="m", version="1", method="Predict", code="OK")
    assert name in samples(telemetry)
    registry.retire("m", 1, lambda: None)
    assert name in samples(telemetry)
    assert name in samples(telemetry)
    assert name not in samples(telemetry)


def test_series_of_a_name_and_number_grow_over_instances_and_hold_none(tmp_path: Path) -> None:
    registry = Registry()
    telemetry = Telemetry(registry, dict, {})
    name = key("fitserve_requests_total", model="m", version="1", method="Predict", code="OK")
    rows = key("fitserve_batch_examples_sum", model="m", version="1")
    for turn in range(1, 4):
        served = loaded(tmp_path / str(turn), 1)
        registry.set_ready(served)
        telemetry.on_request("Predict", served, Code.OK, 0.003)
        telemetry.on_batch(served, BatchRecord(1, turn, 0.002, (0.001,), False))
        assert [counts.request_count for counts in telemetry.counts().values()] == [1]
        assert (samples(telemetry)[name], samples(telemetry)[rows]) == (turn, sum(range(turn + 1)))
        registry.retire("m", 1, lambda: None)
        reference = weakref.ref(served)
        del served
        assert reference() is None
        assert samples(telemetry)[name] == turn
        assert telemetry.counts() == {}


def test_two_instances_of_a_name_and_number_at_a_time_are_added_up(tmp_path: Path) -> None:
    registry = Registry()
    instances = [loaded(tmp_path / str(number), 1) for number in range(2)]
    registry.set_ready(instances[1])
    telemetry = Telemetry(registry, dict, {})
    for served in instances:
        telemetry.on_request("Predict", served, Code.OK, 0.003)
    name = key("fitserve_requests_total", model="m", version="1", method="Predict", code="OK")
    assert [samples(telemetry)[name] for _ in range(2)] == [2, 2]
    assert [counts.request_count for counts in telemetry.counts().values()] == [1, 1]


def test_versions_that_are_gone_are_forgotten_though_nobody_scrapes(tmp_path: Path) -> None:
    telemetry, first = Telemetry(Registry(), dict, {}), loaded(tmp_path, 1)
    for number in range(1, 301):
        served = dataclasses.replace(first, version=number)
        telemetry.on_request("Predict", served, Code.OK, 0.001)
    assert len(telemetry._meters) + len(telemetry._past) <= 70
    assert len(telemetry.counts()) <= 2
