"""The wire benchmark against the real service."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.builders import bare_version, fixed_shape, linear

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.subject import SubjectError
from fitserve_benchmarks.wire import (
    TURNS,
    WirePlan,
    WireResult,
    WireRow,
    is_as_expected,
    measure_wire,
    predict_answer,
    predict_request,
)
from fitserve_benchmarks.wire_report import print_wire_report
from fitserve_client import Client, UnavailableError
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serves a repository; gives the address."""
    with running_server(ServerSettings(root, port=0, metrics_port=None, log_level="error")) as server:
        yield f"127.0.0.1:{server.port}"


def quiet(_: str) -> None:
    """Takes progress and drops it."""


def row(**changes: object) -> WireRow:
    steady = WireRow(8, 4, 1, 1000.0, (1000.0, 1010.0, 990.0), 1e-3, 2e-3, 3000, 0, 30, 0, 0.5)
    return replace(steady, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_repository_known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_running_server_is_measured_and_its_answers_checked(tmp_path: Path, is_repository_known: bool) -> None:
    bare_version(tmp_path, "m", 3, linear())
    with serving(tmp_path) as address:
        repository = str(tmp_path) if is_repository_known else None
        plan = WirePlan(address, "m", batch_size=2, in_flight=(1, 5), duration_s=0.3, repository=repository)
        result = measure_wire(plan, say=quiet)
    assert result.version == 3
    assert [row.in_flight for row in result.rows] == [1, 5]
    assert [row.connections for row in result.rows] == [1, 4]
    for measured in result.rows:
        assert measured.is_right
        assert measured.checked_count > 0
        assert len(measured.turn_rates) == TURNS
        assert measured.requests_per_s > 0
        assert measured.p50_s > 0


def test_another_models_answers_are_found_out(tmp_path: Path) -> None:
    bare_version(tmp_path / "served", "m", 1, linear(seed=1))
    bare_version(tmp_path / "expected", "m", 1, linear(seed=2))
    with serving(tmp_path / "served") as address:
        plan = WirePlan(address, "m", in_flight=(2,), duration_s=0.3, repository=str(tmp_path / "expected"))
        (measured,) = measure_wire(plan, say=quiet).rows
    assert measured.wrong_count == measured.checked_count > 0
    assert not measured.is_right


def test_a_model_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, fixed_shape())
    with serving(tmp_path) as address, pytest.raises(SubjectError, match="expected a free first axis"):
        measure_wire(WirePlan(address, "m"), say=quiet)


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UnavailableError):
        measure_wire(WirePlan("127.0.0.1:1", "m"), say=quiet)


def test_requests_are_what_the_client_would_send(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, linear())
    batch = {"x": np.array([[1.0, 2.0]], np.float32)}
    with serving(tmp_path) as address, Client(address) as client:
        expected = client.predict("m", batch).array
        raw = client._channel.unary_unary("/fitserve.inference.v1.InferenceService/Predict")
        (found,) = predict_answer(raw(predict_request("m", 1, batch)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("found", "is_expected"),
    [([10.0, 20.0], True), ([10.0, 20.001], True), ([10.0, 20.01], False), ([10.0], False), ([10.0, np.nan], False)],
)
def test_answers_are_held_to_one_in_ten_thousand_of_the_largest(found: list[float], is_expected: bool) -> None:
    assert is_as_expected((np.array(found),), (np.array([10.0, 20.0]),)) is is_expected


@pytest.mark.parametrize("server", ["localhost", "localhost:", "localhost:http"])
def test_an_address_without_a_port_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="server: expected HOST:PORT"):
        _ = WirePlan(server, "m").address


def test_a_row_is_right_only_with_answers_and_without_failures() -> None:
    assert row().is_right
    assert not row(failed_count=1).is_right
    assert not row(wrong_count=1).is_right
    assert not row(sample_count=0).is_right
    assert not row().is_unstable
    assert row(turn_rates=(1000.0, 1000.0, 880.0)).is_unstable


def test_the_report_shows_rates_marks_and_failures(tmp_path: Path) -> None:
    rows = (row(), row(in_flight=32, turn_rates=(900.0, 1000.0, 1100.0), failed_count=2, p99_s=None))
    result = WireResult(WirePlan("h:1", "m", batch_size=4), 7, "nothing", describe_environment(), rows)
    console = Console(file=io.StringIO(), width=120)
    print_wire_report(result, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "m version 7 over the wire, batch 4" in lines
    assert "8 4 1,000 1,000 1.00 ms 2.00 ms 3,000 30 of 30 50%" in lines
    assert "32 4 ~ 1,000 1,000 1.00 ms 3,000 30 of 30 50%" in lines
    assert "32 in flight: 2 calls failed" in text
    result.save(tmp_path / "deep" / "wire.json")
    saved = json.loads((tmp_path / "deep" / "wire.json").read_text())
    assert [entry["in_flight"] for entry in saved["rows"]] == [8, 32]
    assert saved["plan"]["batch_size"] == 4
