"""The command `fitserve-bench overload`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_overload(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = (
        "Overloads a server of its own with ten times what it can do, answers checked: goodput, p99 of what is "
        "admitted, refusals, health, and the time back to normal, each against its bound."
    )
    parser.epilog = "example: fitserve-bench overload --seconds 10 --transport fast"
    parser.add_argument("--seconds", type=float, default=10.0, help="time at ten times the capacity (10)")
    parser.add_argument("--run-ms", type=float, default=6.5, help="what a run of the model should take (6.5)")
    parser.add_argument("--times", type=float, default=10.0, help="how many times the capacity (10)")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="deadline of the requests (1000)")
    parser.add_argument("--transport", default="auto", choices=("auto", "fast", "stock"), help="the server's (auto)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and requests (0)")
    parser.add_argument(
        "--serve-option",
        action="append",
        default=[],
        metavar="=OPTION",
        help="a further option of fitserve-serve, for example --serve-option=--max-queue-ms=0; may be repeated",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def overload(arguments: argparse.Namespace) -> int:
    """Measures and reports; 1 where a figure was not reached."""
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.overload import OverloadPlan, run_overload
    from fitserve_benchmarks.overload_report import print_overload_report

    if not (arguments.seconds >= 1 and arguments.run_ms >= 0.1 and arguments.times > 0 and arguments.deadline_ms > 0):
        raise ValueError("expected --seconds from 1, --run-ms from 0.1, --times and --deadline-ms above 0")
    plan = OverloadPlan(
        seconds=arguments.seconds,
        run_s=arguments.run_ms / 1e3,
        times=arguments.times,
        timeout_ms=arguments.deadline_ms,
        transport=arguments.transport,
        seed=arguments.seed,
        options=tuple(arguments.serve_option),
    )
    result = run_overload(plan, lambda line: print(line, file=sys.stderr, flush=True))
    path = arguments.output_dir / "overload.json"
    result.save(path)
    print_overload_report(result, report_console())
    print(f"written: {path}")
    return 0 if result.is_held else 1
