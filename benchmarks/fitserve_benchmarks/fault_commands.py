"""The commands of `fitserve-bench` that look for what faults can cost: simulate, chaos, soak."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_STEPS: Final = 1_000_000


def add_fault_commands(commands: Any) -> None:
    """Adds their parsers to the sub-commands of a parser."""
    _add_simulate(
        commands.add_parser("simulate", help="the service's state machines on a virtual clock, by seeded chance")
    )
    _add_chaos(commands.add_parser("chaos", help="faults by seeded chance under load that knows every answer"))
    _add_soak(commands.add_parser("soak", help="what a server holds after a long load: memory, descriptors, threads"))


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Drives engine, batcher, registry, reconciler and version policy by chance, and holds them to their laws."
    )
    parser.epilog = "example: fitserve-bench simulate --seed 0 --steps 1000000"
    parser.add_argument("--seed", type=int, default=0, help="of the first world (0)")
    parser.add_argument("--steps", type=int, default=_STEPS, help=f"steps in all worlds together ({_STEPS})")


def _add_chaos(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Publishes under faults (killed at each system call, without room, raced), then runs two servers through hot "
        "swaps, flipped links, slow copies, mounts that go away, corrupt publishes, kills, stops, hung workers and "
        "rolling restarts while callers check every answer."
    )
    parser.epilog = "example: fitserve-bench chaos --seed 0 --minutes 5"
    parser.add_argument("--seed", type=int, default=0, help="of faults and load (0)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of servers under faults (5)")
    parser.add_argument("--callers", type=int, default=4, help="callers at once (4)")
    parser.add_argument("--races", type=int, default=1000, help="rounds of 32 publishers that race; 0: none (1000)")
    parser.add_argument("--every", type=int, default=1, help="kill at each so many system calls; 0: at none (1)")
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="empty folder to work in (a temporary one)")


def _add_soak(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Loads one server for long and fails where its memory, descriptors or threads grow: by time, with versions "
        "that come and go, or by calls on one transport, with streams reset, calls cancelled, and frames and messages "
        "malformed beside them."
    )
    parser.epilog = (
        "examples:\n  fitserve-bench soak --minutes 30\n  fitserve-bench soak --minutes 1 --leak\n"
        "  fitserve-bench soak --calls 5000000 --transport fast"
    )
    parser.add_argument("--seed", type=int, default=0, help="of faults and load (0)")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--calls", type=int, metavar="N", help="so many calls instead of minutes")
    parser.add_argument(
        "--transport", default="fast", choices=("fast", "stock"), help="with --calls: the server's (fast)"
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="with --calls: where the JSON goes (nowhere)")
    parser.add_argument("--leak", action="store_true", help="the negative control: a server that leaks, and must fail")
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="empty folder to work in (a temporary one)")


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


def _chaos(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.chaos import run_chaos

    with _folder(arguments.work_dir) as work:
        _publish_faults(work, arguments)
        result = run_chaos(work / "chaos", arguments.seed, arguments.minutes * 60, _say, caller_count=arguments.callers)
    tally = result.tally
    _say("; ".join(f"{count} {name}" for name, count in sorted(result.faults.items())))
    _say(
        f"seed {result.seed}, {result.elapsed_s:.0f} s: {tally.answer_count} right answers by "
        f"{len(tally.versions)} versions, {len(tally.wrong)} wrong, {len(tally.failed)} failed, "
        f"longest call {tally.longest_s:.1f} s"
    )
    for line in [*tally.wrong, *tally.failed][:20]:
        _say(line)
    return 0 if result.is_right else 1


def _publish_faults(work: Path, arguments: argparse.Namespace) -> None:
    from fitserve_benchmarks.chaos_publish import kill_at_every_call, publish_on_full_disk, publish_without_room, race

    full = publish_on_full_disk(work / "full")
    _say(
        "publish on a full disk: no file system may be mounted here"
        if full is None
        else f"publish on a full disk: {full} publishes failed, none left anything"
    )
    _say(f"publish without room: {publish_without_room(work / 'room')} publishes failed, none left anything")
    if arguments.every:
        kills = kill_at_every_call(work / "killed", _say, every=arguments.every)
        _say(
            f"publish killed at {kills.call_count} system calls: {kills.old_count} times as before, {kills.new_count} "
            f"times the new version, torn 0 times; {kills.leftover_count} left a folder, removed"
        )
    if arguments.races:
        raced = race(work / "raced", 32, arguments.races)
        _say(f"32 publishers raced {arguments.races} times: {raced} versions, all distinct and whole")


def _soak(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.soak import growth_lines, soak

    if arguments.calls is not None:
        return _soak_calls(arguments)
    with _folder(arguments.work_dir) as work:
        result = soak(work, arguments.seed, arguments.minutes * 60, _say, leak=arguments.leak)
    _say(
        f"{result.elapsed_s:.0f} s, {result.tally.answer_count} right answers, {len(result.tally.wrong)} wrong, "
        f"{len(result.tally.failed)} failed, {result.swap_count} hot swaps"
    )
    for line in [*growth_lines(result.growths), *result.tally.wrong[:5], *result.tally.failed[:5]]:
        _say(line)
    return 0 if result.is_right else 1


def _soak_calls(arguments: argparse.Namespace) -> int:
    from fitserve_benchmarks.soak_calls import CallSoakPlan, soak_calls

    if arguments.calls < 1:
        raise ValueError(f"--calls: expected at least 1, got {arguments.calls}")
    plan = CallSoakPlan(arguments.calls, arguments.transport, arguments.seed, has_leak=arguments.leak)
    with _folder(arguments.work_dir) as work:
        result = soak_calls(work, plan, _say)
    for line in result.lines():
        _say(line)
    if arguments.output_dir is not None:
        path = arguments.output_dir / f"soak-{plan.transport}.json"
        result.save(path)
        _say(f"written: {path}")
    return 0 if result.is_right else 1


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """Gives a folder to work in; a temporary one is removed afterwards, a named one stays."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="fitserve-faults-") as made:
            yield Path(made)
    else:
        named.mkdir(parents=True, exist_ok=True)
        if any(named.iterdir()):
            raise ValueError(f"--work-dir {named}: expected an empty folder")
        yield named


def _say(line: str) -> None:
    print(line, flush=True)


FAULT_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "simulate": _simulate,
    "chaos": _chaos,
    "soak": _soak,
}
