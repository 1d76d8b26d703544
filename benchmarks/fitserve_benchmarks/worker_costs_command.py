"""The command `fitserve-bench workers`: what further workers give and cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from fitserve_benchmarks.worker_costs import WorkersResult, WorkersRow


def add_workers(parser: argparse.ArgumentParser, numbers: Callable[[str], tuple[int, ...]]) -> None:
    """Adds the command's options.

    Args:
        parser: Of the command.
        numbers: Reads positive numbers with commas.
    """
    parser.description = (
        "Serves a model with one worker and with several, loaded in turns: processor time of a request, requests a "
        "second, and the memory that a further worker takes."
    )
    parser.epilog = "example: fitserve-bench workers --repository repository --model lenet --counts 1,2,4"
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", default=Path("repository"), help="model repository (repository)"
    )
    parser.add_argument("--model", default="lenet", help="model name, its highest version (lenet)")
    parser.add_argument("--counts", type=numbers, default=(1, 2), metavar="N,N,…", help="workers (1,2)")
    parser.add_argument("--in-flight", type=int, default=32, help="calls in flight, a connection each (32)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each number of workers (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of a turn (2)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def workers(arguments: argparse.Namespace) -> int:
    """Measures and reports; 1 where a call failed or an answer was wrong."""
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.worker_costs import WorkersPlan, run_workers

    if arguments.turns < 1 or not arguments.seconds > 0 or arguments.in_flight < 1:
        raise ValueError("expected --turns and --in-flight of at least 1 and --seconds above 0")
    plan = WorkersPlan(
        repository=arguments.repository,
        model=arguments.model,
        counts=tuple(dict.fromkeys(arguments.counts)),
        in_flight=arguments.in_flight,
        turns=arguments.turns,
        turn_s=arguments.seconds,
    )
    result = run_workers(plan, lambda line: print(line, file=sys.stderr, flush=True))
    path = arguments.output_dir / f"workers-{plan.model}.json"
    result.save(path)
    report_console().print(workers_table(result))
    for line in verdicts(result):
        print(line)
    print(f"written: {path}")
    return 0 if result.is_right else 1


def workers_table(result: WorkersResult) -> Table:
    """Makes the table, a row for each number of workers."""
    from rich.table import Table

    title = f"{result.settings['model']} by workers, {result.settings['in_flight']} in flight"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("workers", "CPU/request", "ratio", "requests/s", "ratio", "memory", "a further one", "checked"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row))
    return table


def verdicts(result: WorkersResult) -> list[str]:
    """Holds each row but the first against what is aimed for, in words."""
    from fitserve_benchmarks.worker_costs import LEAST_PROCESSORS, LEAST_RATE_RATIO, MOST_CPU_RATIO

    lines, processors = [], len(result.environment["usable_processors"])
    base = result.rows[0].count
    for row in result.rows[1:]:
        held = "holds" if row.cpu_ratio <= MOST_CPU_RATIO else "missed"
        what = f"{row.count} workers over {base}"
        lines.append(f"{what}: CPU time of a request {row.cpu_ratio:.2f}, at most {MOST_CPU_RATIO}: {held}")
        if row.rate_ratio is None:
            lines.append(f"{what}: throughput not measured ({processors} cores, expected at least {LEAST_PROCESSORS})")
        else:
            held = "holds" if row.rate_ratio >= LEAST_RATE_RATIO else "missed"
            lines.append(f"{what}: throughput {row.rate_ratio:.2f}, at least {LEAST_RATE_RATIO} at 2: {held}")
    if lines:
        what = f"{base} worker{'s' if base > 1 else ''} beside others that keep the processors busy"
        lines.append(f"{what}: CPU time of a request {result.busy_ratio:.2f}, for a machine that is shared")
    return lines


def _cells(row: WorkersRow) -> tuple[str, ...]:
    from fitserve_benchmarks.quantities import duration, three_digits

    total_bytes = sum(worker.get("proportional_bytes", 0) for worker in row.memory)
    return (
        str(row.count),
        duration(row.cpu_s),
        f"{row.cpu_ratio:.2f}",
        three_digits(row.rate),
        "" if row.rate_ratio is None else f"{row.rate_ratio:.2f}",
        f"{total_bytes / 2**20:.0f} MiB",
        f"{row.further_bytes / 2**20:.0f} MiB",
        f"{row.checked_count - row.wrong_count} of {row.checked_count}",
    )
