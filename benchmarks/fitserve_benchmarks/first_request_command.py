"""The command `fitserve-bench first-request`: what a server's first request costs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_first_request(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = "Starts a server again and again: the first request after it is ready, against a later one."
    parser.epilog = "example: fitserve-bench first-request --repository repository --model lenet"
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("repository"))
    parser.add_argument("--model", default="lenet", help="model name, its highest version (lenet)")
    parser.add_argument("--starts", type=int, default=20, help="servers started (20)")
    parser.add_argument("--transport", choices=("auto", "fast", "stock"), default="auto", help="the server's (auto)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def first_request(arguments: argparse.Namespace) -> int:
    """Measures and reports; 1 where an answer was wrong."""
    from fitserve_benchmarks.first_request import FirstPlan, run_first

    if arguments.starts < 1:
        raise ValueError(f"--starts: expected at least 1, got {arguments.starts}")
    plan = FirstPlan(arguments.repository, arguments.model, arguments.starts, arguments.transport)
    result = run_first(plan, _say)
    path = arguments.output_dir / f"first-request-{plan.model}.json"
    result.save(path)
    print(result.text())
    print(f"written: {path}")
    return 0 if result.is_right else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
