"""The command `latency` of `fitserve-bench`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fitserve_benchmarks.option_values import positive_numbers

if TYPE_CHECKING:
    from fitserve_benchmarks.latency_plan import Plan

ALL_MODELS: Final = "all"


def add_latency(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.description = "Measures torch eager, torch.compile and ONNX Runtime in turns, answers checked."
    parser.epilog = (
        "examples:\n  fitserve-bench latency --model lenet --run-dir runs/lenet --batch-sizes 1,8,64 --threads 1\n"
        "  fitserve-bench latency --model lenet --contestants all --scenarios SingleStream,Server --server-p99-ms 5"
    )
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", default=Path("repository"), help="model repository (repository)"
    )
    parser.add_argument("--model", default="lenet", help="model name, or all of the repository (lenet)")
    parser.add_argument("--model-version", type=int, help="version number (the highest)")
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="run it was exported from (runs/MODEL where that is there)"
    )
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    parser.add_argument("--batch-sizes", type=positive_numbers, default=sizes, metavar="N,N,…", help="(1,2,4,…,256)")
    parser.add_argument("--threads", default="1,all", help="thread counts to measure with (1,all)")
    parser.add_argument(
        "--contestants",
        default="",
        metavar="NAME,NAME",
        help="by the names of the tables, or all: torch.compile's other modes, AOTInductor, bound memory, CUDA graphs",
    )
    _add_limits(parser)
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where JSON and SVG go (results)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenarios",
        default="all",
        metavar="NAME,NAME",
        help="SingleStream, MultiStream, Server, Offline as MLPerf defines them, all or none (all)",
    )
    parser.add_argument(
        "--server-p99-ms", type=float, default=15.0, help="what 99 of 100 queries of Server may take at most (15)"
    )
    parser.add_argument("--trials", type=int, default=20, help="turns of each contestant, at least 3 (20)")
    parser.add_argument(
        "--budget-s", type=float, default=10.0, help="time for the calls of one row or scenario, in seconds (10)"
    )
    parser.add_argument(
        "--limit-s",
        type=float,
        default=300.0,
        help="time for loading and compiling one contestant at one batch size, in seconds (300)",
    )


def check_trials(arguments: argparse.Namespace) -> None:
    """Raises ValueError where there are too few trials or no time for them."""
    if arguments.trials < 3 or not arguments.budget_s > 0:
        found = f"{arguments.trials} and {arguments.budget_s}"
        raise ValueError(f"expected --trials of at least 3 and --budget-s above 0, got {found}")


def latency(arguments: argparse.Namespace) -> int:
    """Runs the command, for one model or for each of the repository."""
    from fitserve_benchmarks.subject import SubjectError

    plans = _plans(arguments)
    exit_code = 0
    for plan in plans:
        try:
            is_right = _measure(plan, arguments)
        except SubjectError as error:
            if len(plans) == 1:
                raise
            print(f"fitserve-bench latency: {error}", file=sys.stderr)
            is_right = False
        exit_code = exit_code if is_right else 1
    return exit_code


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    from fitserve_benchmarks.latency_plan import Plan
    from fitserve_benchmarks.scenarios import scenario_names

    check_trials(arguments)
    if not arguments.limit_s > 0 or not arguments.server_p99_ms > 0:
        found = f"{arguments.limit_s:g} and {arguments.server_p99_ms:g}"
        raise ValueError(f"expected --limit-s and --server-p99-ms above 0, got {found}")
    return [
        Plan(
            repository=str(arguments.repository),
            model=model,
            version=arguments.model_version,
            run_dir=_run_dir(arguments.run_dir, model),
            batch_sizes=arguments.batch_sizes,
            trials=arguments.trials,
            budget_s=arguments.budget_s,
            entry_names=tuple(name.strip() for name in arguments.contestants.split(",") if name.strip()),
            scenarios=scenario_names(arguments.scenarios),
            server_bound_s=arguments.server_p99_ms / 1e3,
            limit_s=arguments.limit_s,
        )
        for model in _models(arguments)
    ]


def _models(arguments: argparse.Namespace) -> list[str]:
    from fitserve_contract.repository import models

    if arguments.model != ALL_MODELS:
        return [arguments.model]
    if arguments.run_dir is not None or arguments.model_version is not None:
        raise ValueError("--model all: expected neither --run-dir nor --model-version, which name one model's")
    root = arguments.repository
    if root.is_dir() and (found := models(root)):
        return found
    raise ValueError(f"repository '{root}': expected models, found none")


def _run_dir(named: Path | None, model: str) -> str | None:
    usual = Path("runs", model)
    run_dir = usual if named is None and usual.is_dir() else named
    return None if run_dir is None else str(run_dir)


def _measure(plan: Plan, arguments: argparse.Namespace) -> bool:
    from fitserve_benchmarks.latency_report import print_report, report_console
    from fitserve_benchmarks.latency_run import run_latency
    from fitserve_benchmarks.threads import thread_settings

    result, paths = run_latency(plan, thread_settings(arguments.threads), arguments.output_dir)
    print_report(result, report_console())
    print("written: " + ", ".join(map(str, paths)))
    return all(row.agrees for row in result.rows)
