"""Who may take part beside the usual contestants, and what is known of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import bare_version, linear

from fitserve_benchmarks.contestants import DEVICE_TO_DEVICE, ENTRIES, HOST_TO_HOST, OnnxRuntimeContestant
from fitserve_benchmarks.dynamic_int8 import DYNAMIC_INT8, DynamicInt8Contestant
from fitserve_benchmarks.further_contestants import FURTHER, BoundContestant, all_entries, selected
from fitserve_benchmarks.latency import measure
from fitserve_benchmarks.latency_plan import Plan
from fitserve_benchmarks.peak_memory import PeakMemory
from fitserve_benchmarks.subject import Subject, SubjectError, VariantFile, open_subject, random_batches


def subject_with_variant(root: Path, bound: float) -> Subject:
    bare_version(root, "tiny", 1, linear(seed=0))
    bare_version(root, "tiny", 2, linear(seed=1))
    other = VariantFile(root / "tiny" / "2" / "model.onnx", "cpu", bound)
    return replace(open_subject(root, "tiny", 1), variants={"int8": other})


def test_the_usual_ones_take_part_unless_others_are_named(tmp_path: Path) -> None:
    entries = all_entries(subject_with_variant(tmp_path, 0.1))
    usual = [entry.name for entry in selected(entries, ())]
    assert usual == [*(entry.name for entry in ENTRIES), "ONNX Runtime int8"]
    assert selected(entries, ["all"]) == list(entries)
    assert {entry.name for entry in selected(entries, ["AOTInductor", "ONNX Runtime"])} == {
        "AOTInductor",
        "ONNX Runtime",
    }
    with pytest.raises(SubjectError, match=r"contestants: expected some of torch eager, .* or all; got 'tensorrt'"):
        selected(entries, ["tensorrt"])
    modes = {entry.name for entry in FURTHER}
    assert {"torch.compile reduce-overhead", "torch.compile max-autotune", "ONNX Runtime CUDA graph"} <= modes


@pytest.mark.parametrize(("bound", "agrees"), [(100.0, True), (1e-6, False)])
def test_a_variant_is_held_to_its_own_record(tmp_path: Path, bound: float, agrees: bool) -> None:
    subject = subject_with_variant(tmp_path, bound)
    plan = Plan(
        str(tmp_path), "tiny", 1, None, (1,), trials=3, budget_s=1e-6, entry_names=("ONNX Runtime int8", "ONNX Runtime")
    )
    rows = {row.contestant: row for row in measure(subject, plan, 1, say=lambda _: None).rows if row.skipped is None}
    assert rows["ONNX Runtime"].agrees
    assert rows["ONNX Runtime int8"].agrees == agrees


def test_nodes_are_counted_by_provider(tmp_path: Path) -> None:
    subject = subject_with_variant(tmp_path, 0.1)
    (batch,) = random_batches(subject, 2, 1)
    preparation = OnnxRuntimeContestant(subject, "cpu", 1).prepare(batch)
    assert sum(preparation.nodes.values()) >= 1
    assert set(preparation.nodes) == {"CPUExecutionProvider"}
    assert preparation.fused_attention_count == 0


def test_a_peak_grows_by_what_was_used_meanwhile() -> None:
    memory = PeakMemory()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    growth_bytes = memory.growth_bytes()
    assert growth_bytes is None or growth_bytes > 32 << 20


def test_a_variant_for_cuda_has_bound_memory_and_graphs_and_its_own_record_too(tmp_path: Path) -> None:
    subject = subject_with_variant(tmp_path, 0.1)
    half = replace(subject, variants={"fp16": replace(subject.variants["int8"], device="cuda", bound=0.5)})
    added = [entry for entry in all_entries(half) if "fp16" in entry.name]
    assert [(entry.name, entry.transfer, entry.is_usual) for entry in added] == [
        ("ONNX Runtime fp16", HOST_TO_HOST, True),
        ("ONNX Runtime fp16 IO binding", HOST_TO_HOST, False),
        ("ONNX Runtime fp16 CUDA graph", HOST_TO_HOST, False),
        ("ONNX Runtime fp16 on the device", DEVICE_TO_DEVICE, False),
    ]
    assert {entry.bound for entry in added} == {0.5}
    made = {entry.name: entry.make(half, 1) for entry in added}
    assert all(contestant.path == half.variants["fp16"].path for contestant in made.values())  # type: ignore[attr-defined]
    graph = made["ONNX Runtime fp16 CUDA graph"]
    assert isinstance(graph, BoundContestant)
    assert graph.has_graph


def test_what_stays_on_the_device_is_named_so() -> None:
    for entry in FURTHER:
        assert (entry.transfer == DEVICE_TO_DEVICE) == entry.name.endswith("on the device")
        assert entry.transfer == HOST_TO_HOST or entry.device == "cuda"


def test_dynamic_int8_takes_part_beside_an_int8_variant_where_it_is_named(tmp_path: Path) -> None:
    subject = subject_with_variant(tmp_path, 100.0)
    assert [entry.name for entry in selected(all_entries(subject), [DYNAMIC_INT8])] == [DYNAMIC_INT8]
    assert DYNAMIC_INT8 not in {entry.name for entry in all_entries(replace(subject, variants={}))}
    (batch,) = random_batches(subject, 2, 1)
    contestant = DynamicInt8Contestant(subject, 1)
    contestant.prepare(batch)
    plain = OnnxRuntimeContestant(subject, "cpu", 1)
    plain.prepare(batch)
    np.testing.assert_allclose(contestant.run(batch)[0], plain.run(batch)[0], rtol=0, atol=0.05)
    assert not np.array_equal(contestant.run(batch)[0], plain.run(batch)[0])
