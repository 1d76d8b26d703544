"""Contestants in turns on a tiny model, and what becomes of those that fail or answer wrongly."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.builders import bare_version, gather, linear

from fitserve_benchmarks import contestants
from fitserve_benchmarks.contest import POOL_SIZE
from fitserve_benchmarks.contestants import (
    DEVICE_TO_DEVICE,
    ENTRIES,
    Entry,
    OnnxRuntimeContestant,
    Preparation,
    TorchContestant,
)
from fitserve_benchmarks.latency import measure, measure_in_process
from fitserve_benchmarks.latency_plan import Plan
from fitserve_benchmarks.latency_run import run_latency
from fitserve_benchmarks.rows import Row, load_result
from fitserve_benchmarks.subject import Array, Batch, Subject, SubjectError, open_subject, random_batches
from fitserve_benchmarks.threads import ThreadSetting, available_processors


def tiny_subject(root: Path, version: int = 1) -> Subject:
    """x (B, 2) -> y (B, 3) as a file and as the same module."""
    content = linear()
    bare_version(root, "tiny", version, content)
    module = torch.nn.Linear(2, 3, bias=False)
    weights = numpy_helper.to_array(onnx.load_from_string(content).graph.initializer[0])
    module.weight.data = torch.from_numpy(weights.T.copy())
    return replace(open_subject(root, "tiny", version), module=module.eval())


def plan_for(root: Path, *batch_sizes: int, trials: int = 4, budget_s: float = 0.05) -> Plan:
    return Plan(str(root), "tiny", 1, None, batch_sizes, trials=trials, budget_s=budget_s)


def quiet(_: str) -> None:
    """Takes progress and drops it."""


@dataclass
class Scripted:
    """Answers like the module, or with an offset; notes in which order it was called."""

    subject: Subject
    name: str
    calls: list[str]
    offset: float = 0.0
    trouble: str = ""
    _inner: TorchContestant = field(init=False)

    def prepare(self, batch: Batch) -> Preparation:
        if self.trouble:
            raise RuntimeError(self.trouble)
        self._inner = TorchContestant(self.subject, "cpu")
        return self._inner.prepare(batch)

    def run(self, batch: Batch) -> tuple[Array, ...]:
        self.calls.append(self.name)
        return tuple(output + np.float32(self.offset) for output in self._inner.run(batch))


def scripted(name: str, calls: list[str], **options: float | str) -> Entry:
    return Entry(name, "cpu", lambda subject, _: Scripted(subject, name, calls, **options), lambda _: None)  # type: ignore[arg-type]


def by_label(rows: Iterable[Row]) -> Mapping[str, Row]:
    return {row.label: row for row in rows}


def test_torch_and_onnxruntime_agree_and_are_timed_as_planned(tmp_path: Path) -> None:
    subject, plan = tiny_subject(tmp_path), plan_for(tmp_path, 1, 3)
    entries = [entry for entry in ENTRIES if entry.device == "cpu" and entry.name != "torch.compile"]
    rows = measure(subject, plan, 1, entries=entries, say=quiet).rows
    assert [(row.label, row.batch_size) for row in rows] == [
        ("torch eager (cpu)", 1),
        ("ONNX Runtime (cpu)", 1),
        ("torch eager (cpu)", 3),
        ("ONNX Runtime (cpu)", 3),
    ]
    for row in rows:
        assert row.skipped is None
        assert row.agrees
        assert row.max_abs_diff < 1e-6
        assert len(row.trial_medians_s) == plan.trials
        assert row.sample_count % plan.trials == 0
        assert 0 < row.median_s.low <= row.median_s.high < row.load_s + row.first_call_s + 1


def test_torch_compile_says_what_compiling_cost_and_gives_the_same_answers(tmp_path: Path) -> None:
    subject = tiny_subject(tmp_path)
    (batch,) = random_batches(subject, 2, 1)
    eager, compiled = TorchContestant(subject, "cpu"), TorchContestant(subject, "cpu", {"backend": "aot_eager"})
    assert eager.prepare(batch).compile_s is None
    preparation = compiled.prepare(batch)
    assert preparation.compile_s is not None
    assert preparation.compile_s > 0
    np.testing.assert_array_equal(compiled.run(batch)[0], eager.run(batch)[0])


def test_contestants_take_turns_and_change_who_begins(tmp_path: Path) -> None:
    calls: list[str] = []
    entries = [scripted("a", calls), scripted("b", calls)]
    rows = measure(
        tiny_subject(tmp_path), plan_for(tmp_path, 1, trials=4, budget_s=1e-9), 1, entries=entries, say=quiet
    ).rows
    assert [row.sample_count for row in rows] == [4, 4]
    turns = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    # prepared and checked one after the other, warmed up, then four trials: a b, b a, a b, b a
    assert turns[-5:] == ["a", "b", "a", "b", "a"]


def test_a_wrong_answer_is_marked(tmp_path: Path) -> None:
    calls: list[str] = []
    entries = [scripted("right", calls), scripted("close", calls, offset=1e-5), scripted("wrong", calls, offset=1e-2)]
    rows = by_label(measure(tiny_subject(tmp_path), plan_for(tmp_path, 2), 1, entries=entries, say=quiet).rows)
    assert [rows[f"{name} (cpu)"].agrees for name in ("right", "close", "wrong")] == [True, True, False]
    assert rows["wrong (cpu)"].max_abs_diff == pytest.approx(1e-2, rel=1e-3)


def test_one_that_cannot_be_prepared_leaves_the_others_alone(tmp_path: Path) -> None:
    calls: list[str] = []
    absent = replace(scripted("absent", calls), why_not=lambda _: "no such device")
    entries = [scripted("broken", calls, trouble="no compiler\nlong story"), absent, scripted("sound", calls)]
    rows = by_label(measure(tiny_subject(tmp_path), plan_for(tmp_path, 1), 1, entries=entries, say=quiet).rows)
    assert rows["broken (cpu)"].skipped == "RuntimeError: no compiler"
    assert rows["absent (cpu)"].skipped == "no such device"
    assert rows["sound (cpu)"].skipped is None
    assert rows["sound (cpu)"].sample_count > 0


def test_a_slow_row_gets_fewer_calls_and_a_fast_one_enough_for_p99(tmp_path: Path) -> None:
    subject = tiny_subject(tmp_path)
    (short,) = measure(subject, plan_for(tmp_path, 1, budget_s=1e-9), 1, entries=ENTRIES[:1], say=quiet).rows
    (long,) = measure(subject, plan_for(tmp_path, 1, budget_s=60.0), 1, entries=ENTRIES[:1], say=quiet).rows
    assert (short.sample_count, short.p99_s) == (4, None)
    assert long.sample_count == 1_524  # 1,521 rounded up to four trials
    assert long.p99_s is not None


def test_without_a_module_onnxruntime_takes_part_alone(tmp_path: Path) -> None:
    subject = replace(tiny_subject(tmp_path), module=None)
    rows = by_label(measure(subject, plan_for(tmp_path, 1), 1, say=quiet).rows)
    assert [label for label, row in rows.items() if row.skipped is None] == ["ONNX Runtime (cpu)"]
    assert "needs the run directory" in (rows["torch eager (cpu)"].skipped or "")


def test_a_session_on_another_provider_than_asked_for_is_no_contestant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Like CUDA without its libraries: ONNX Runtime knows the provider, cannot load it, and would go on by the CPU.
    monkeypatch.setitem(contestants._PROVIDERS, "cuda", "TensorrtExecutionProvider")
    contestant = OnnxRuntimeContestant(tiny_subject(tmp_path), "cuda", 1)
    with pytest.raises(RuntimeError, match="provider: expected TensorrtExecutionProvider, got CPUExecutionProvider"):
        contestant.prepare({})


@dataclass
class Endless(Scripted):
    """Prepares for ever."""

    def prepare(self, batch: Batch) -> Preparation:  # noqa: ARG002
        self.calls.append(self.name)
        while True:
            threading.Event().wait(60)


@pytest.mark.slow
def test_one_that_is_over_its_limit_is_left_and_not_tried_again(tmp_path: Path) -> None:
    calls: list[str] = []
    endless = Entry("endless", "cpu", lambda subject, _: Endless(subject, "endless", calls), lambda _: None)
    plan = replace(plan_for(tmp_path, 1, 2), limit_s=3.0, scenarios=("Offline",))
    measured = measure(tiny_subject(tmp_path), plan, 1, entries=[scripted("sound", []), endless], say=quiet)
    assert calls == ["endless"]
    reason = "preparing it for batch 1: time limit: expected at most 3 s, still at work then"
    assert [row.skipped for row in measured.rows] == [None, reason, None, reason]
    assert [row.skipped for row in measured.scenarios] == [None, reason]


def test_a_scenario_has_its_own_batch_size_and_leaves_out_who_stays_on_a_device(tmp_path: Path) -> None:
    away = replace(scripted("away", []), transfer=DEVICE_TO_DEVICE)
    plan = replace(plan_for(tmp_path, 1, budget_s=20.0), trials=3, scenarios=("MultiStream", "Offline"))
    measured = measure(tiny_subject(tmp_path), plan, 1, entries=[scripted("sound", []), away], say=quiet)
    assert [(row.label, row.batch_size) for row in measured.rows] == [("sound (cpu)", 1), ("away (cpu)", 1)]
    found = [(row.scenario, row.contestant, row.batch_size, row.agrees) for row in measured.scenarios]
    assert found == [("MultiStream", "sound", 8, True), ("Offline", "sound", 64, True)]
    assert all(row.measured.low <= row.measured.estimate <= row.measured.high for row in measured.scenarios)


def test_a_whole_run_in_its_own_process_writes_json_and_plot(tmp_path: Path) -> None:
    bare_version(tmp_path / "models", "tiny", 1, linear())
    setting = ThreadSetting(1, available_processors()[:1])
    plan = replace(plan_for(tmp_path / "models", 1, 2, budget_s=1.0), version=None, scenarios=("Offline",))
    result, (json_path, plot_path, scenario_path) = run_latency(plan, [setting], tmp_path / "results")
    assert result.version == 1
    assert result.reference == "ONNX Runtime (cpu)"
    assert result.settings["input_batches"] == POOL_SIZE
    assert result.environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert load_result(json_path) == replace(result, settings=load_result(json_path).settings)
    assert [row.scenario for row in result.scenarios if row.figure is not None] == ["Offline"]
    assert all(path.read_text().lstrip().startswith("<?xml") for path in (plot_path, scenario_path))


def test_a_subject_that_cannot_be_measured_is_told_from_the_process(tmp_path: Path) -> None:
    bare_version(tmp_path, "tiny", 1, gather())
    with pytest.raises(SubjectError, match="input 'index': expected examples to draw from"):
        measure_in_process(plan_for(tmp_path, 1), ThreadSetting(1, available_processors()[:1]))
