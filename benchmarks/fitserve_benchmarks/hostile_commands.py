"""The command `hostile` of `fitserve-bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final


def add_hostile_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("hostile", help="hostile requests and models, while innocents measure")
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


def _hostile(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.hostile import HostilePlan, run_hostile

    plan = HostilePlan(arguments.requests, arguments.models, arguments.seed, tuple(arguments.serve_option))
    result = run_hostile(plan, lambda line: print(line, file=sys.stderr, flush=True))
    path = arguments.output_dir / "hostile.json"
    result.save(path)
    print("\n".join(result.lines()))
    print(f"written: {path}")
    return 0 if result.is_right else 1


HOSTILE_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {"hostile": _hostile}
