"""The command `fitserve-bench serve`: our servers, their floors and their peers, in one run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fitserve_benchmarks.option_values import positive_numbers


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = (
        "Measures both transports, the echoes of grpcio's stock servers, grpc.aio with ONNX Runtime inline and other "
        "servers, in turns, answers checked."
    )
    parser.epilog = (
        "examples:\n  fitserve-bench serve --models lenet --peers none\n"
        "  fitserve-bench serve --models lenet,bert-multilabel --peers all --batch-sizes 1,8,64"
    )
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", default=Path("repository"), help="model repository (repository)"
    )
    parser.add_argument("--models", default="lenet", metavar="NAME,…", help="models, the highest version each (lenet)")
    parser.add_argument("--batch-sizes", type=positive_numbers, default=(1, 8, 64), metavar="N,N,…")
    parser.add_argument("--in-flight", type=positive_numbers, default=(1, 8, 32, 64, 128), metavar="N,N,…")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant at each level (3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of a turn (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads inside an operator, for everybody (1)")
    parser.add_argument(
        "--peers",
        default="auto",
        help="other servers, each in an environment of its own in the cache: none, all, names with commas, or auto: "
        "those that are installed already (auto)",
    )
    parser.add_argument("--poisson-seconds", type=float, default=4.0, help="open loop of each contestant, 0: none (4)")
    parser.add_argument("--no-large", action="store_true", help="leave 10 MB in and out out")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where JSON and SVG go")


def serve(arguments: argparse.Namespace) -> int:
    """Measures and reports; 1 where an answer was wrong."""
    from fitserve_benchmarks.latency_report import report_console
    from fitserve_benchmarks.serve_plot import plot_serve
    from fitserve_benchmarks.serve_report import print_serve_report
    from fitserve_benchmarks.serve_run import run_serve

    result = run_serve(_plan(arguments), lambda line: print(line, file=sys.stderr, flush=True))
    json_path, svg_path = arguments.output_dir / "serve.json", arguments.output_dir / "serve.svg"
    result.save(json_path)
    plot_serve(result, svg_path)
    print_serve_report(result, report_console())
    print(f"written: {json_path}, {svg_path}")
    return 0 if result.is_right else 1


def _plan(arguments: argparse.Namespace) -> Any:
    from fitserve_benchmarks.peers import chosen_peers
    from fitserve_benchmarks.serve_run import ServePlan

    if arguments.turns < 1 or not arguments.seconds > 0 or arguments.threads < 1 or arguments.poisson_seconds < 0:
        raise ValueError("expected --turns and --threads of at least 1, --seconds above 0, --poisson-seconds from 0")
    return ServePlan(
        repository=arguments.repository,
        models=tuple(dict.fromkeys(name.strip() for name in arguments.models.split(","))),
        batch_sizes=arguments.batch_sizes,
        in_flight=arguments.in_flight,
        turns=arguments.turns,
        turn_s=arguments.seconds,
        thread_count=arguments.threads,
        peers=chosen_peers(arguments.peers),
        poisson_s=arguments.poisson_seconds,
        has_large=not arguments.no_large,
    )
