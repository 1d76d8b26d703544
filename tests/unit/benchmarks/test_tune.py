"""Tuning: which candidate wins, what is written, and what is said where none meets the target."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import bare_version, scaled

from fitserve_benchmarks.tune import (
    NoCandidateError,
    Trial,
    TunePlan,
    _first_candidates,
    _worker_counts,
    best_trial,
    run_tune,
    tuned_toml,
    write_tuned,
)
from fitserve_benchmarks.wire import WireRow
from fitserve_service.model_config import read_overrides

SINGLE = {"variant": "fp32", "intra_op_num_threads": 1}


def plan(root: Path, target_ms: float = 5.0) -> TunePlan:
    return TunePlan(root, "m", target_ms, duration_s=0.2)


def trial(rate: float, p99_ms: float | None, failed: int = 0, **values: Any) -> Trial:
    row = WireRow(
        in_flight=8,
        connections=1,
        batch_size=1,
        requests_per_s=rate,
        turn_rates=(rate,),
        p50_s=1e-3,
        p99_s=None if p99_ms is None else p99_ms / 1e3,
        sample_count=2000,
        failed_count=failed,
        checked_count=10,
        wrong_count=0,
        load_processor_share=0.5,
    )
    return Trial({"variant": "fp32", "intra_op_num_threads": 1, **values}, row)


def test_the_most_requests_among_those_that_meet_the_target_win(tmp_path: Path) -> None:
    trials = [
        trial(100.0, 4.0),
        trial(300.0, 4.9, variant="int8"),
        trial(900.0, 5.1),
        trial(950.0, 1.0, failed=1),
        trial(990.0, None),
    ]
    assert best_trial(trials, plan(tmp_path)).values["variant"] == "int8"


def test_none_that_meets_it_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        NoCandidateError, match=r"p99: expected at most 1 ms .* the nearest was 2.00 ms with variant int8"
    ):
        best_trial([trial(1.0, 2.0, variant="int8"), trial(9.0, 3.0)], plan(tmp_path, 1.0))
    with pytest.raises(NoCandidateError, match="got too few: give more --seconds"):
        best_trial([trial(1.0, None)], plan(tmp_path))


def test_what_is_written_the_server_takes_and_other_keys_stay(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.toml").write_text('keep_versions = 2\nvariant = "fp32"\nbatch_size_buckets = [1, 8]\n')
    text = tuned_toml([trial(100.0, 4.0, variant="int8", max_batch_size=8)], plan(tmp_path))
    path = write_tuned(text, plan(tmp_path))

    assert tomllib.loads(path.read_text()) == {
        "keep_versions": 2,
        "batch_size_buckets": [1, 8],
        "variant": "int8",
        "intra_op_num_threads": 1,
        "max_batch_size": 8,
    }
    assert read_overrides(tmp_path, "m").values["variant"] == "int8"
    assert "p99 4.00 ms of at most 5 ms" in text
    assert "measured with fitserve-serve --workers 1" in text


def test_the_task_of_a_bare_file_stays_whatever_its_names_hold(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    task = (
        'task = "classification"\ntask_scores = "logits"\nclass_names = ["it\'s", "a\\"b", "back\\\\slash", "größe"]\n'
    )
    (tmp_path / "m" / "model.toml").write_text(task, encoding="utf-8")
    path = write_tuned(tuned_toml([trial(100.0, 4.0)], plan(tmp_path)), plan(tmp_path))

    assert tomllib.loads(path.read_text(encoding="utf-8"))["class_names"] == ["it's", 'a"b', "back\\slash", "größe"]
    assert read_overrides(tmp_path, "m").values["class_names"] == ("it's", 'a"b', "back\\slash", "größe")


@pytest.mark.slow
def test_candidates_are_served_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitserve_benchmarks.tune.BATCH_LIMITS", (8,))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("fitserve_benchmarks.tune._first_candidates", lambda *_: [SINGLE])
    bare_version(tmp_path, "m", 1, scaled())
    said: list[str] = []
    trials = run_tune(plan(tmp_path, 1e4), said.append)

    assert [(dict(one.values), one.workers) for one in trials[:2]] == [
        (SINGLE, 1),
        ({**SINGLE, "max_batch_size": 8}, 1),
    ]
    assert [one.workers for one in trials] == [1, 1, 2]
    assert all(one.row.is_right and one.row.requests_per_s > 0 for one in trials)
    assert len(said) == 3


@pytest.mark.parametrize(("processors", "counts"), [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 4, 8])])
def test_workers_go_up_to_the_processors(monkeypatch: pytest.MonkeyPatch, processors: int, counts: list[int]) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    assert _worker_counts() == counts


def test_candidates_are_the_variants_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    facts = {"int8": "cpu", "fp16": "cuda"}
    files = {f"model.{name}.onnx": {"variant": name, "device": device} for name, device in facts.items()}
    monkeypatch.setattr("fitserve_benchmarks.tune.read_manifest", lambda _: SimpleNamespace(files=files))
    on_cpu = [(one["variant"], one["intra_op_num_threads"]) for one in _first_candidates(tmp_path, "cpu")]
    assert on_cpu == [("fp32", 1), ("fp32", 2), ("int8", 1), ("int8", 2)]
    on_cuda = [tuple(one.values()) for one in _first_candidates(tmp_path, "cuda")]
    assert on_cuda == [("fp32", 1, "cuda"), ("fp16", 1, "cuda")]
