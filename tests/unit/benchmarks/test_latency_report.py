"""Tables and verdicts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from fitserve_benchmarks.latency_report import print_report
from fitserve_benchmarks.latency_verdict import verdict
from fitserve_benchmarks.rows import LatencyResult, Row

STEADY = (1.0, 1.01, 0.99, 1.0, 1.0)


def row(contestant: str, batch_size: int, microseconds: float, *, noise: Sequence[float] = STEADY) -> Row:
    return Row(
        contestant,
        "cpu",
        batch_size,
        thread_count=1,
        load_s=1e-3,
        first_call_s=2e-3,
        trial_medians_s=tuple(microseconds * 1e-6 * factor for factor in noise),
        sample_count=1_540,
        p99_s=2 * microseconds * 1e-6,
    )


def result(*rows: Row) -> LatencyResult:
    environment = {
        "packages": {"torch": "2.13"},
        "processor": "abacus",
        "usable_processors": [0, 1],
        "gpus": [],
        "python": "3",
    }
    return LatencyResult("lenet", 3, "torch eager (cpu)", {"trials": 5}, environment, rows)


def printed(found: LatencyResult) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_report(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_verdict_says_who_leads_where_and_by_how_much() -> None:
    found = result(
        row("torch eager", 1, 200), row("ONNX Runtime", 1, 25),
        row("torch eager", 8, 400), row("ONNX Runtime", 8, 200),
        row("torch eager", 64, 1000), row("ONNX Runtime", 64, 2000),
    )  # fmt: skip
    text = verdict(found)
    assert (
        "With 1 thread, ONNX Runtime (cpu) is the fastest at batch 1 to 8: at batch 1 25.0 µs, 8.00× (8.00–8.00) as "
        "fast as torch eager (cpu)." in text
    )
    assert "torch eager (cpu) overtakes at batch 64: 1.00 ms, 2.00× (2.00–2.00) as fast as ONNX Runtime (cpu)." in text
    assert "All answers agree" in text
    assert "unstable" not in text


def test_a_lead_within_the_noise_is_no_lead() -> None:
    noisy = (1.0, 0.9, 1.15, 0.95, 1.05)
    text = verdict(result(row("torch eager", 1, 100), row("ONNX Runtime", 1, 101, noise=noisy)))
    assert "nobody is clearly the fastest" in text


def test_the_verdict_doubts_unstable_rows_and_wrong_answers() -> None:
    wrong = replace(row("ONNX Runtime", 1, 10, noise=(1, 1, 1, 1, 2)), agrees=False, max_abs_diff=0.5)
    text = verdict(result(row("torch eager", 1, 100), wrong))
    assert "1 of 2 rows were unstable" in text
    assert "The answers of ONNX Runtime (cpu) differ from torch eager (cpu): its times prove nothing." in text


def test_the_table_has_every_row_its_ratio_and_its_marks() -> None:
    skipped = Row("torch eager", "cuda", 1, 1, skipped="torch sees no CUDA device")
    wrong = replace(row("torch.compile", 1, 100, noise=(1, 1, 1, 1, 2)), agrees=False, max_abs_diff=0.5, compile_s=14.9)
    text = printed(result(row("torch eager", 1, 200), wrong, skipped))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 torch eager (cpu) 200 µs (198–202) 400 µs 1,540 0.0e+00" in lines
    assert "1 torch.compile (cpu) ~ 100 µs (100–200) 200 µs 2.00 1,540 5.0e-01 differs" in lines
    assert "1 torch.compile (cpu) 1.00 ms 14.9 s 2.00 ms" in lines
    assert "torch eager (cuda): not measured, torch sees no CUDA device" in text


def test_rows_that_did_not_run_side_by_side_are_not_compared() -> None:
    with pytest.raises(ValueError, match="expected rows that ran side by side"):
        row("a", 1, 1).times_as_fast_as(row("b", 2, 1))


def on_device(found: Row) -> Row:
    label = f"{found.contestant} on the device"
    return replace(found, contestant=label, device="cuda", transfer="device to device", device_memory_bytes=3_000_000)


def test_device_to_device_stands_apart_in_the_table_and_in_words() -> None:
    host = (row("torch eager", 1, 200), row("ONNX Runtime", 1, 100))
    found = result(*host, on_device(row("torch eager", 1, 40)), on_device(row("ONNX Runtime", 1, 10)))
    text = " ".join(printed(found).split())
    assert "lenet version 3, 1 thread, device to device" in text
    assert "With 1 thread, on the device, ONNX Runtime on the device (cuda) is the fastest at batch 1: 10.0 µs" in text
    assert "4.00× (4.00–4.00) as fast as torch eager on the device (cuda)" in text
    assert (
        "ONNX Runtime (cpu) is the fastest at batch 1: 100 µs, 2.00× (2.00–2.00) as fast as torch eager (cpu)" in text
    )
    assert "3 MB GPU" in text


def test_of_many_contestants_the_verdict_names_the_eager_module_and_the_runner_up() -> None:
    rows = [
        row("torch eager", 1, 400),
        row("torch.compile", 1, 100),
        row("AOTInductor", 1, 300),
        row("ONNX Runtime", 1, 50),
    ]
    text = verdict(result(*rows))
    assert "8.00× (8.00–8.00) as fast as torch eager (cpu) and 2.00× (2.00–2.00) as fast as torch.compile (cpu)" in text
    assert "AOTInductor" not in text
