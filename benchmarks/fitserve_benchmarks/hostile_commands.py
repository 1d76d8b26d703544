"""The commands `hostile`, `hostile-http2` and `hostile-messages` of `fitserve-bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final


def add_hostile_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands."""
    _add_hostile(commands.add_parser("hostile", help="hostile requests and models, while innocents measure"))
    _add_http2(commands.add_parser("hostile-http2", help="abuse of HTTP/2 in raw frames, while innocents measure"))
    _add_stalls(commands.add_parser("hostile-messages", help="the worst messages, while innocents measure"))


def _add_hostile(parser: argparse.ArgumentParser) -> None:
    parser.description = "Attacks a server of its own with hostile requests and models; innocents must lose nothing."
    parser.epilog = "example: fitserve-bench hostile --requests 1000000 --models 1000"
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="hostile requests (100000)")
    parser.add_argument("--models", type=int, default=200, metavar="N", help="hostile models (200)")
    parser.add_argument("--seed", type=int, default=0, help="of all of them (0)")
    parser.add_argument(
        "--serve-option",
        action="append",
        default=[],
        metavar="=OPTION",
        help="a further option of fitserve-serve, for example --serve-option=--transport=stock; may be repeated",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def _add_http2(parser: argparse.ArgumentParser) -> None:
    parser.description = "Abuses HTTP/2 against a server of its own on each transport; innocents must lose nothing."
    parser.epilog = "example: fitserve-bench hostile-http2 --seconds 5"
    parser.add_argument("--transports", nargs="+", default=["fast", "stock"], choices=("fast", "stock"))
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each attack, and of the quiet before (5)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def _add_stalls(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Sends a server of its own the worst messages; others wait 50 ms at most in the median, and 300."
    )
    parser.epilog = "example: fitserve-bench hostile-messages --seconds 3 --callers 4"
    parser.add_argument("--transports", nargs="+", default=["fast", "stock"], choices=("fast", "stock"))
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each message (3)")
    parser.add_argument("--callers", type=int, default=1, metavar="N", help="calls with it at a time (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="messages whose name holds this (all)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", default=Path("results"), help="where the JSON goes")


def _stalls(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.stalls import StallPlan, run_stalls, save

    plan = StallPlan(tuple(arguments.transports), arguments.seconds, arguments.callers, arguments.only)
    found = run_stalls(plan, lambda line: print(line, flush=True))
    path = arguments.output_dir / "hostile-messages.json"
    save(found, path)
    print(f"written: {path}")
    return 0 if all(stall.is_right for stall in found) else 1


def _hostile(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.hostile import HostilePlan, run_hostile

    plan = HostilePlan(arguments.requests, arguments.models, arguments.seed, tuple(arguments.serve_option))
    result = run_hostile(plan, lambda line: print(line, file=sys.stderr, flush=True))
    path = arguments.output_dir / "hostile.json"
    result.save(path)
    print("\n".join(result.lines()))
    print(f"written: {path}")
    return 0 if result.is_right else 1


def _http2(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.hostile_http2 import run_abuse, save

    found = run_abuse(arguments.transports, arguments.seconds, lambda line: print(line, flush=True))
    path = arguments.output_dir / "hostile-http2.json"
    save(found, path)
    print(f"written: {path}")
    return 1 if any(abuse.innocent_lost for abuse in found) else 0


HOSTILE_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "hostile": _hostile,
    "hostile-http2": _http2,
    "hostile-messages": _stalls,
}
