"""`fitserve-bench`: measures torch against ONNX Runtime, a server over the wire, and runs the demo.

Exit codes: 0 done; 1 measured, but an answer was wrong or a step failed; 2 what was asked for cannot be done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fitserve_benchmarks.fault_commands import FAULT_COMMANDS, add_fault_commands
from fitserve_benchmarks.first_request_command import add_first_request, first_request
from fitserve_benchmarks.hostile_commands import HOSTILE_COMMANDS, add_hostile_commands
from fitserve_benchmarks.joining.command import add_joining, joining
from fitserve_benchmarks.large_data.command import add_large_data, large_data
from fitserve_benchmarks.latency_command import add_latency, check_trials, latency
from fitserve_benchmarks.option_values import positive_numbers
from fitserve_benchmarks.overload_command import add_overload, overload
from fitserve_benchmarks.performance_commands import PERFORMANCE_COMMANDS, add_performance_commands
from fitserve_benchmarks.serve_command import add_serve, serve
from fitserve_benchmarks.worker_costs_command import add_workers, workers

_DESCRIPTION: Final = "Measures what fitserve trains, exports and serves."
_EXAMPLES: Final = """examples:
  fitserve-bench latency --model lenet --run-dir runs/lenet
  fitserve-bench wire --server localhost:8001 --model lenet --in-flight 1,8,32
  fitserve-bench demo
  fitserve-bench training --recipes lenet
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    arguments = _parser().parse_args(argv)
    from fitserve_benchmarks.processes import orderly_ending
    from fitserve_client.errors import FitserveError

    try:
        with orderly_ending():
            return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print("fitserve-bench: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FitserveError) as error:
        print(f"fitserve-bench {arguments.command}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"fitserve-bench {arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "fitserve-bench", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=formatter
    )
    parser.add_argument(
        "--version", action="version", version=f"fitserve-bench {importlib.metadata.version('fitserve')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_latency(
        commands.add_parser(
            "latency", formatter_class=formatter, help="torch eager, torch.compile and ONNX Runtime, in turns"
        )
    )
    _add_wire(commands.add_parser("wire", formatter_class=formatter, help="requests/s and latency of a running server"))
    add_serve(
        commands.add_parser(
            "serve", formatter_class=formatter, help="our servers, their floors and their peers, in turns"
        )
    )
    _add_demo(
        commands.add_parser(
            "demo", formatter_class=formatter, help="train, export, serve, predict, evaluate and benchmark LeNet"
        )
    )
    _add_reproduce(
        commands.add_parser("reproduce", formatter_class=formatter, help="published figures on the real data")
    )
    _add_training(
        commands.add_parser("training", formatter_class=formatter, help="our training loop against the textbook's")
    )
    add_performance_commands(commands)
    add_fault_commands(commands)
    add_hostile_commands(commands)
    add_overload(
        commands.add_parser(
            "overload", formatter_class=formatter, help="ten times what a server can do, each figure against its bound"
        )
    )
    add_joining(
        commands.add_parser(
            "joining", formatter_class=formatter, help="which models' requests share a run, and why not"
        )
    )
    add_large_data(commands)
    add_first_request(
        commands.add_parser("first-request", formatter_class=formatter, help="what a server's first request costs")
    )
    add_workers(
        commands.add_parser("workers", formatter_class=formatter, help="what further workers give and cost"),
        positive_numbers,
    )
    return parser


def _add_wire(parser: argparse.ArgumentParser) -> None:
    parser.description = "Loads a running server with Predict calls, answers checked in the same run."
    parser.epilog = "example: fitserve-bench wire --server localhost:8001 --model lenet --in-flight 1,8,32 --seconds 6"
    parser.add_argument("--server", default=os.environ.get("FITSERVE_SERVER", "localhost:8001"), metavar="HOST:PORT")
    parser.add_argument("--model", default="lenet", help="model name (lenet)")
    parser.add_argument("--batch-size", type=int, default=1, help="examples in a request (1)")
    parser.add_argument("--in-flight", type=positive_numbers, default=(1, 8, 32), metavar="N,N,…")
    parser.add_argument("--connections", type=int, help="TCP connections (at most 4)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each level of calls in flight (6)")
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="the server's repository: answers are checked against its files"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes (results)"
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = "Trains, verifies, exports, benchmarks, serves and evaluates LeNet; ends with a short table."
    parser.epilog = "example: fitserve-bench demo --repository repository --runs runs --train-option=--set=epochs=5"
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", default=Path("repository"), help="where to publish (repository)"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", default=Path("runs"), help="folder of runs (runs)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where JSON and SVG go (results)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda, for training and serving (auto)")
    parser.add_argument(
        "--train-option",
        action="append",
        default=[],
        metavar="=OPTION",
        help="a further option of fitserve-train, for example --train-option=--data=digits; may be repeated",
    )
    parser.add_argument("--batch-sizes", type=positive_numbers, default=(1, 8, 64), metavar="N,N,…")
    parser.add_argument("--trials", type=int, default=20, help="turns of each contestant, at least 3 (20)")
    parser.add_argument("--budget-s", type=float, default=2.0, help="time for the calls of one latency row (2)")
    parser.add_argument("--in-flight", type=positive_numbers, default=(1, 8, 32), metavar="N,N,…")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each level of calls in flight (3)")


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    parser.description = "Trains the recipes on the real data and holds them against their published figures."
    parser.epilog = "example: DATA_DIR=~/data fitserve-bench reproduce --seeds 0 1 2"
    parser.add_argument("--runs", type=Path, metavar="DIR", default=Path("runs/reproduce"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds (0 1 2)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures our training loop and the textbook's in turns; or kills and resumes; or compiles twice."
    )
    parser.epilog = (
        "examples:\n  fitserve-bench training --recipes softmax lenet --threads 1\n"
        "  fitserve-bench training --kills 20\n  fitserve-bench training --compile-twice module step"
    )
    parser.add_argument("--recipes", nargs="+", default=["softmax", "lenet"], metavar="RECIPE", help="softmax, lenet")
    parser.add_argument("--trials", type=int, default=7, help="turns of each loop, an epoch each (7)")
    parser.add_argument("--examples", type=int, default=12_800, help="examples of an epoch (12800)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both loops (the recipe's own)")
    parser.add_argument("--compile", default="auto", choices=("auto", "off", "module", "step"), help="of ours (auto)")
    parser.add_argument(
        "--transform", default="picture", choices=("picture", "tensor"), help="of the textbook (picture)"
    )
    parser.add_argument("--kills", type=int, metavar="N", help="kill N runs at random moments and resume them instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--compile-twice", nargs="+", metavar="MODE", help="time two runs' first step per mode instead")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="data files (environment variable DATA_DIR)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def _wire(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.wire import WirePlan, measure_wire
    from fitserve_benchmarks.wire_report import print_wire_report

    if arguments.batch_size < 1 or not arguments.seconds > 0 or (arguments.connections or 1) < 1:
        raise ValueError("expected --batch-size and --connections of at least 1 and --seconds above 0")
    plan = WirePlan(
        server=arguments.server,
        model=arguments.model,
        batch_size=arguments.batch_size,
        in_flight=arguments.in_flight,
        duration_s=arguments.seconds,
        connections=arguments.connections,
        repository=None if arguments.repository is None else str(arguments.repository),
    )
    result = measure_wire(plan, say=lambda line: print(line, file=sys.stderr, flush=True))
    path = arguments.output_dir / f"wire-{plan.model}.json"
    result.save(path)
    print_wire_report(result, report_console())
    print(f"written: {path}")
    return 0 if all(row.is_right for row in result.rows) else 1


def _demo(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.demo import DemoPlan, run_demo
    from fitserve_benchmarks.demo_report import print_demo_report
    from fitserve_benchmarks.latency_report import report_console

    check_trials(arguments)
    plan = DemoPlan(
        repository=arguments.repository,
        runs=arguments.runs,
        output_dir=arguments.output_dir,
        device=arguments.device,
        train_options=arguments.train_option,
        batch_sizes=arguments.batch_sizes,
        trials=arguments.trials,
        budget_s=arguments.budget_s,
        in_flight=arguments.in_flight,
        wire_s=arguments.seconds,
    )
    console = report_console()
    result = run_demo(plan, console)
    print_demo_report(result, console)
    return 0 if result.is_right else 1


def _reproduce(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.reproduce import reproduce, reproduction_table

    figures = reproduce(arguments.runs, arguments.seeds, arguments.output_dir)
    report_console().print(reproduction_table(figures))
    return 0 if all(figure.is_inside for figure in figures) else 1


def _training(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.training_kills import kill_and_resume, save_kills
    from fitserve_benchmarks.training_processes import first_steps

    if arguments.kills is not None:
        kills = kill_and_resume(arguments.kills, arguments.seed, lambda line: print(line, flush=True))
        identical = sum(kill.is_identical for kill in kills)
        path = arguments.output_dir / "training-kills.json"
        save_kills(path, kills, arguments.seed)
        print(f"{len(kills)} runs killed and resumed, {identical} with identical final weights\nwritten: {path}")
        return 0 if identical == len(kills) else 1
    if arguments.compile_twice:
        first_steps(arguments.compile_twice, lambda line: print(line, flush=True))
        return 0
    return _training_speed(arguments)


def _training_speed(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.training_speed import SpeedPlan, measure_speed

    for recipe in arguments.recipes:
        result = measure_speed(
            SpeedPlan(
                recipe=recipe,
                trials=arguments.trials,
                example_count=arguments.examples,
                threads=arguments.threads,
                compile=arguments.compile,
                transform=arguments.transform,
                data_dir=arguments.data_dir,
            )
        )
        path = arguments.output_dir / f"training-{recipe}.json"
        result.save(path)
        print("\n".join(result.lines()))
        print(f"written: {path}")
    return 0


_COMMANDS: Final = {
    "latency": latency,
    "wire": _wire,
    "serve": serve,
    "workers": workers,
    "first-request": first_request,
    "demo": _demo,
    "reproduce": _reproduce,
    "training": _training,
    **PERFORMANCE_COMMANDS,
    **FAULT_COMMANDS,
    **HOSTILE_COMMANDS,
    "overload": overload,
    "joining": joining,
    "large-data": large_data,
}
