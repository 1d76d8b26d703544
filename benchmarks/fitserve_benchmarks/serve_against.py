"""The server of this checkout against another checkout's, for instance the commit before a change to the hot path.

Both are up all the time; the load goes to one at a time, in pairs of turns. Shapes: B examples of a request.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.serve_checkout import Checkout, check_descendants, checkout_launch, open_checkout, own_checkout
from fitserve_benchmarks.serve_checks import check_answers
from fitserve_benchmarks.serve_inprocess import in_process_turn
from fitserve_benchmarks.serve_load import load_source, put_turn
from fitserve_benchmarks.serve_pairs import AgainstResult, PairedRow, SideTurn, TurnPair, is_ours_first, make_side_turn
from fitserve_benchmarks.serve_requests import Traffic, make_traffic
from fitserve_benchmarks.serve_rows import Check
from fitserve_benchmarks.serve_run import turn_times
from fitserve_benchmarks.serve_servers import Contestant, Served, copy_served, running
from fitserve_benchmarks.subject import open_subject

OURS: Final = "this checkout"
OTHER: Final = "other checkout"


@dataclass(frozen=True)
class AgainstPlan:
    """What is compared.

    Args:
        against: The other checkout.
        repository: Model repository.
        models: Names; the highest version of each.
        batch_sizes: Examples in a request.
        in_flight: Calls in flight.
        pairs: Turns of each side at each level.
        turn_s: Time that counts of a turn, at least: slow models have longer ones.
        thread_count: Threads inside an operator, for both.
        transport: "fast" or "stock", for both.
    """

    against: Path
    repository: Path
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (1,)
    in_flight: tuple[int, ...] = (1, 8, 32, 128)
    pairs: int = 15
    turn_s: float = 2.0
    thread_count: int = 1
    transport: str = "fast"


def run_against(plan: AgainstPlan, say: Callable[[str], None]) -> AgainstResult:
    """Measures; nothing that it starts goes on after it.

    Args:
        plan: What.
        say: Takes a line of progress.

    Raises:
        CheckoutError: a checkout cannot be served, or a process of its server has modules from elsewhere.
        SubjectError: a model cannot be measured.
        PeerError: a server did not come up.
        LoadFailedError: the load could not be put on, or nothing was answered.
    """
    ours, other = own_checkout(), open_checkout(plan.against)
    environment = describe_environment()
    commits = ours.describe(), other.describe()
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as folder, ExitStack() as stack:
        served = copy_served(plan.repository, plan.models, plan.thread_count, Path(folder))
        message = make_traffic(open_subject(served.repository, plan.models[0]), 1, 1).messages[0]

        def start(name: str, checkout: Checkout) -> Contestant:
            say(f"starting the server of {name}, '{checkout.folder}'")
            launch = checkout_launch(name, checkout, plan.transport, served)
            contestant = stack.enter_context(running(launch, served, message))
            check_descendants(contestant.pid, checkout)
            return contestant

        bench = _PairedBench(plan, start(OURS, ours), start(OTHER, other), say)
        bench.measure(served)
    return AgainstResult(
        settings=_settings(plan),
        environment=environment,
        load_average_after=os.getloadavg(),
        ours=commits[0],
        other=commits[1],
        rows=bench.rows,
        checks=bench.checks,
    )


def _settings(plan: AgainstPlan) -> dict[str, object]:
    places = {"repository": plan.repository.name, "against": plan.against.name}
    return {**asdict(plan), **places, "load_source": load_source()}


class _PairedBench:
    """The pairs of turns, and what they gave."""

    def __init__(self, plan: AgainstPlan, ours: Contestant, other: Contestant, say: Callable[[str], None]) -> None:
        self.rows: list[PairedRow] = []
        self.checks: list[Check] = []
        self._plan = plan
        self._ours = ours
        self._other = other
        self._say = say

    def measure(self, served: Served) -> None:
        """Runs each model at each batch size and level."""
        plan = self._plan
        for model in plan.models:
            subject = open_subject(served.repository, model)
            for batch_size in plan.batch_sizes:
                traffic = make_traffic(subject, batch_size)
                alone = in_process_turn(subject.onnx_path, plan.thread_count, 1, plan.turn_s, traffic.batches[0])
                call_s = float(np.median(alone.latencies_s))
                self.rows += [self._level(traffic, level, call_s) for level in plan.in_flight]

    def _level(self, traffic: Traffic, level: int, call_s: float) -> PairedRow:
        times = turn_times(self._plan.turn_s, level, call_s)
        # The checks' load is at this level, so that each server is used to it before its first turn.
        sizes = {side.name: self._check(side, traffic, level) for side in (self._ours, self._other)}
        where = f"{traffic.model}, batch {traffic.batch_size}, {level} in flight"
        pairs = []
        for number in range(self._plan.pairs):
            self._say(f"{where}, pair {number + 1} of {self._plan.pairs}")
            begins = is_ours_first(number)
            found = {}
            for side in (self._ours, self._other) if begins else (self._other, self._ours):
                found[side.name] = self._turn(side, traffic, sizes[side.name], level, times)
            pairs.append(TurnPair(found[OURS], found[OTHER], begins))
        return PairedRow(traffic.model, traffic.batch_size, level, tuple(pairs))

    def _check(self, side: Contestant, traffic: Traffic, level: int) -> int:
        size, check = check_answers(side, traffic, level)
        self.checks.append(check)
        return size

    def _turn(self, side: Contestant, traffic: Traffic, size: int, level: int, times: tuple[float, float]) -> SideTurn:
        before_s = side.cpu_s()
        turn = put_turn(side.launch.target, traffic.messages, size, level, *times)
        cpu_s = side.cpu_s() - before_s
        if not turn.latencies_s.size or not turn.rate > 0:
            raise LoadFailedError(
                f"{side.name}, {traffic.model}, {level} in flight: expected answers within a turn, found none; give "
                "longer turns with --seconds"
            )
        return make_side_turn(turn, cpu_s)
