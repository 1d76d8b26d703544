"""The command `fitserve-bench serve`: our servers, their floors and their peers, or another checkout, in one run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.option_values import positive_numbers

_ALONE: Final = {"turns": "turns", "peers": "peers", "poisson_s": "poisson-seconds", "has_large": "no-large"}
_AGAINST: Final = {"pairs": "pairs", "transport": "transport"}
"""Fields of one plan and not of the other, with their options."""


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = (
        "Measures both transports, the echoes of grpcio's stock servers, grpc.aio with ONNX Runtime inline and other "
        "servers, in turns, answers checked. With --against: this checkout's server and another's, in pairs of turns; "
        "exit code 1 where the whole 95 % interval of the ratio of requests/s lies below 0.95 at any level."
    )
    parser.epilog = (
        "examples:\n  fitserve-bench serve --models lenet --peers none\n"
        "  fitserve-bench serve --models lenet,bert-multilabel --peers all --batch-sizes 1,8,64\n"
        "  git worktree add ../before HEAD~1 && fitserve-bench serve --against ../before"
    )
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", default=Path("repository"), help="model repository (repository)"
    )
    parser.add_argument("--models", default="lenet", metavar="NAME,…", help="models, the highest version each (lenet)")
    parser.add_argument(
        "--batch-sizes", type=positive_numbers, metavar="N,N,…", help="examples of a request (1,8,64; --against: 1)"
    )
    parser.add_argument(
        "--in-flight", type=positive_numbers, metavar="N,N,…", help="levels (1,8,32,64,128; --against: 1,8,32,128)"
    )
    parser.add_argument("--turns", type=int, help="turns of each contestant at each level (3)")
    parser.add_argument("--seconds", type=float, dest="turn_s", help="time of a turn (1; --against: 2)")
    parser.add_argument(
        "--threads", type=int, dest="thread_count", help="threads inside an operator, for everybody (1)"
    )
    parser.add_argument(
        "--peers",
        help="other servers, each in an environment of its own in the cache: none, all, names with commas, or auto: "
        "those that are installed already (auto)",
    )
    parser.add_argument(
        "--poisson-seconds",
        type=float,
        dest="poisson_s",
        help="open loop of each contestant, 0: none (4)",
    )
    parser.add_argument(
        "--no-large", action="store_const", const=False, dest="has_large", help="leave 10 MB in and out out"
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout of fitserve to compare with")
    parser.add_argument("--pairs", type=int, help="with --against: turns of each side at each level (15)")
    parser.add_argument("--transport", choices=("fast", "stock"), help="with --against: of both sides (fast)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where JSON and SVG go")


def serve(arguments: argparse.Namespace) -> int:
    """Measures and reports; 1 where an answer was wrong, or this checkout is slower than the one compared with."""
    return _serve_alone(arguments) if arguments.against is None else _serve_against(arguments)


def _serve_alone(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.peers import chosen_peers
    from fitserve_benchmarks.serve_plot import plot_serve
    from fitserve_benchmarks.serve_report import print_serve_report
    from fitserve_benchmarks.serve_run import ServePlan, run_serve

    given = _given(arguments, _ALONE, _AGAINST)
    result = run_serve(ServePlan(**{**given, "peers": chosen_peers(given.get("peers", "auto"))}), _say)
    json_path, svg_path = arguments.output_dir / "serve.json", arguments.output_dir / "serve.svg"
    result.save(json_path)
    plot_serve(result, svg_path)
    print_serve_report(result, report_console())
    print(f"written: {json_path}, {svg_path}")
    return 0 if result.is_right else 1


def _serve_against(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.serve_against import AgainstPlan, run_against
    from fitserve_benchmarks.serve_against_report import print_against_report

    given = _given(arguments, _AGAINST, _ALONE)
    result = run_against(AgainstPlan(against=arguments.against, **given), _say)
    path = arguments.output_dir / "serve-against.json"
    result.save(path)
    print_against_report(result, report_console())
    print(f"written: {path}")
    return 0 if result.has_passed else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _given(arguments: argparse.Namespace, fields: dict[str, str], foreign: dict[str, str]) -> dict[str, Any]:
    """Returns the fields of a plan that were given as options; the plan knows what the others are.

    Raises:
        ValueError: an option is outside its range, or of the other plan.
    """
    options = vars(arguments)
    for name, option in foreign.items():
        if options[name] is not None:
            where = "without" if options["against"] else "with"
            raise ValueError(f"--{option}: expected only {where} --against; leave it out")
    shared = ("batch_sizes", "in_flight", "turn_s", "thread_count")
    given = {name: options[name] for name in (*shared, *fields) if options[name] is not None}
    counts = [given.get(name, 1) for name in ("turns", "pairs", "thread_count")]
    if min(counts) < 1 or not given.get("turn_s", 1) > 0 or given.get("poisson_s", 0) < 0:
        raise ValueError(
            "expected --turns, --pairs and --threads of at least 1, --seconds above 0, --poisson-seconds from 0"
        )
    models = tuple(dict.fromkeys(name.strip() for name in arguments.models.split(",")))
    return {"repository": arguments.repository, "models": models, **given}
