"""The commands `compare`, `gpu-check` and `tune` of `fitserve-bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fitserve_benchmarks.option_values import positive_numbers


def add_performance_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands."""
    _add_compare(commands.add_parser("compare", help="two latency results, row by row"))
    _add_gpu_check(commands.add_parser("gpu-check", help="train, export, serve and benchmark LeNet on a GPU"))
    _add_tune(commands.add_parser("tune", help="find variant, threads, batches and workers for a latency target"))


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compares two results of `fitserve-bench latency`, and says what else differs between them."
    parser.epilog = "example: fitserve-bench compare results/before.json results/latency-lenet.json"
    parser.add_argument("old", metavar="OLD.json", type=Path, help="result to compare with")
    parser.add_argument("new", metavar="NEW.json", type=Path, help="result that is newer")


def _add_gpu_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains LeNet compiled on the GPU, exports, serves on CUDA, evaluates and benchmarks; one JSON and one "
        "Markdown report. Steps that the machine lacks something for are named as not run. Needs no network."
    )
    parser.epilog = "exit codes: 0 every step done or not run for want of a GPU; 1 a step failed"
    parser.add_argument("--work-dir", type=Path, metavar="DIR", default=Path("runs/gpu-check"), help="runs and logs")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", default=Path("benchmarks/results"), help="where the reports go"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses the steps, and the report says so"
    )
    parser.add_argument(
        "--train-option",
        action="append",
        default=[],
        metavar="=OPTION",
        help="a further option of fitserve-train, for example --train-option=--data=digits; may be repeated",
    )
    parser.add_argument(
        "--sentence-option",
        action="append",
        default=[],
        metavar="=OPTION",
        help="a further option of fitserve-train for GoEmotions; may be repeated",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="data files (environment variable DATA_DIR)")
    parser.add_argument(
        "--batch-sizes", type=positive_numbers, default=(1, 8, 64, 256), metavar="N,N,…", help="(1,8,64,256)"
    )
    parser.add_argument("--steps", default="", metavar="NAME,NAME", help="these and what they need (all)")
    parser.add_argument("--limit-s", type=float, default=120.0, help="time for preparing one contestant (120)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each level of calls in flight (5)")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serves a model with each candidate of variant, threads, batch limit and workers, measures it under load with "
        "the answers checked, and writes the fastest that meets the target into the model's model.toml."
    )
    parser.epilog = "example: fitserve-bench tune lenet --repository repository --p99-target-ms 5"
    parser.add_argument("model", help="model name")
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("repository"))
    parser.add_argument("--p99-target-ms", type=float, required=True, help="99 of 100 calls must take at most so long")
    parser.add_argument("--in-flight", type=int, default=8, help="calls in flight while it is measured (8)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each candidate (4)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it is served (cpu)")
    parser.add_argument("--dry-run", action="store_true", help="print the model.toml instead of writing it")


def compare(arguments: argparse.Namespace) -> int:
    """Runs `compare`."""
    from fitserve_benchmarks.compare import change_table, changes, unlike
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.rows import load_result

    old, new = load_result(arguments.old), load_result(arguments.new)
    pairs = changes(old, new)
    if not pairs:
        raise ValueError(f"compare: expected rows that '{arguments.old}' and '{arguments.new}' both have, found none")
    report_console().print(change_table(pairs))
    for sentence in unlike(old, new):
        print(f"differs: {sentence}")
    return 0


def gpu_check(arguments: argparse.Namespace) -> int:
    """Runs `gpu-check`."""
    from fitserve_benchmarks.gpu_check import FAILED, run_gpu_check, step_names
    from fitserve_benchmarks.gpu_check_report import save_report
    from fitserve_benchmarks.gpu_steps import GpuPlan

    plan = GpuPlan(
        work_dir=arguments.work_dir,
        output_dir=arguments.output_dir,
        device=arguments.device,
        train_options=arguments.train_option,
        sentence_options=arguments.sentence_option,
        data_dir=arguments.data_dir,
        batch_sizes=arguments.batch_sizes,
        wire_s=arguments.seconds,
        limit_s=arguments.limit_s,
        steps=step_names(arguments.steps),
    )
    report = run_gpu_check(plan, say=_say)
    print("written: " + ", ".join(map(str, save_report(report, plan.output_dir))))
    return 1 if any(step["state"] == FAILED for step in report["steps"]) else 0


def tune(arguments: argparse.Namespace) -> int:
    """Runs `tune`."""
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.tune import TunePlan, best_trial, run_tune, tune_table, tuned_toml, write_tuned

    if not arguments.p99_target_ms > 0 or not arguments.seconds > 0 or arguments.in_flight < 1:
        raise ValueError("expected --p99-target-ms and --seconds above 0 and --in-flight of at least 1")
    plan = TunePlan(
        repository=arguments.repository,
        model=arguments.model,
        p99_target_ms=arguments.p99_target_ms,
        in_flight=arguments.in_flight,
        duration_s=arguments.seconds,
        device=arguments.device,
    )
    trials = run_tune(plan, say=_say)
    report_console().print(tune_table(trials, plan))
    text = tuned_toml(trials, plan)
    print(text if arguments.dry_run else f"written: {write_tuned(text, plan)}")
    if (workers := best_trial(trials, plan).workers) > 1:
        print(f"serve it with: fitserve-serve --workers {workers}")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


PERFORMANCE_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "compare": compare,
    "gpu-check": gpu_check,
    "tune": tune,
}
