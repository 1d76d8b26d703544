"""The commands of `fitserve-bench` that look for what faults can cost: simulate, chaos, soak."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

_STEPS: Final = 1_000_000


def add_fault_commands(commands: Any) -> None:
    """Adds their parsers to the sub-commands of a parser."""
    _add_simulate(
        commands.add_parser("simulate", help="the service's state machines on a virtual clock, by seeded chance")
    )


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Drives engine, batcher, registry, reconciler and version policy by chance, and holds them to their laws."
    )
    parser.epilog = "example: fitserve-bench simulate --seed 0 --steps 1000000"
    parser.add_argument("--seed", type=int, default=0, help="of the first world (0)")
    parser.add_argument("--steps", type=int, default=_STEPS, help=f"steps in all worlds together ({_STEPS})")


def _simulate(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.simulation import simulate
    from fitserve_benchmarks.simulation_laws import BrokenLawError

    try:
        result = simulate(arguments.seed, arguments.steps)
    except BrokenLawError as error:
        print(error)
        return 1
    print(
        f"{result.step_count} steps in {result.world_count} worlds from seed {result.seed} "
        f"in {result.elapsed_s:.0f} s: {result.job_count} requests, "
        f"{result.version_count} versions READY, no law broken; digest {result.digest:08x}"
    )
    return 0


FAULT_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {"simulate": _simulate}
