"""`fitserve-bench hostile`: hostile requests and hostile models against one server, while innocents measure."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc

from fitserve.control.v1 import control_pb2
from fitserve_benchmarks.hostile_attack import AttackPlan, AttackResult
from fitserve_benchmarks.hostile_innocents import Innocents, innocent_callers
from fitserve_benchmarks.hostile_models import INNOCENT, HostileModel, HostileModels, put_good_models
from fitserve_benchmarks.processes import children, run_child
from fitserve_benchmarks.programs import RunningService, running_service

MOST_GROWTH_BYTES: Final = 32 << 20
"""What an attack may add to the server's memory."""

_LIST_MODELS: Final = "/fitserve.control.v1.ModelControlService/ListModels"
_GROUP_SIZE: Final = 50
_WARM_SHARE: Final = 0.05
"""Requests before the memory's first measurement: the allocator has its arenas then."""

_SETTLE_S: Final = 300.0
_LOOK_S: Final = 0.2
_SETTLED: Final = ("READY", "FAILED")


@dataclass(frozen=True, slots=True)
class HostilePlan:
    """What is to be done.

    Args:
        requests: Hostile requests.
        models: Hostile models.
        seed: Of all of them.
        options: Further options of `fitserve-serve`.
    """

    requests: int
    models: int
    seed: int = 0
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class HostileResult:
    """What was lost, and what was not.

    Args:
        plan: What was done.
        codes: Status code of the hostile requests to how many.
        states: Kind of hostile model and the state that it came to, to how many.
        leaks: Answers, reasons and log lines that held a byte of the file outside, and escapes that were served.
        faults: Answers with INTERNAL or UNKNOWN, the first few.
        unsettled: Models that were neither READY nor FAILED in their time.
        is_same_process: The server's process is the one that was started.
        growth_bytes: Memory of the server after, less before.
        innocent_count: Right answers of innocents.
        innocent_lost: What came instead of right answers.
        p99_quiet_ms: Innocents' p99 before.
        p99_ms: Innocents' p99 while it lasted.
        elapsed_s: Time of it all.
    """

    plan: HostilePlan
    codes: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    is_same_process: bool = False
    growth_bytes: int = 0
    innocent_count: int = 0
    innocent_lost: list[str] = field(default_factory=list)
    p99_quiet_ms: float = 0.0
    p99_ms: float = 0.0
    elapsed_s: float = 0.0

    @property
    def is_right(self) -> bool:
        """Nothing was lost."""
        losses = (self.leaks, self.faults, self.unsettled, self.innocent_lost)
        return self.is_same_process and self.growth_bytes <= MOST_GROWTH_BYTES and not any(losses)

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self) | {"is_right": self.is_right}, indent=2, sort_keys=True) + "\n")

    def lines(self) -> list[str]:
        """Writes it as lines of a table."""
        codes = ", ".join(f"{code} {count}" for code, count in Counter(self.codes).most_common())
        rows = [
            ("hostile requests", f"{sum(self.codes.values())}: {codes}"),
            ("INTERNAL or UNKNOWN", f"{len(self.faults)}"),
            ("hostile models", f"{sum(self.states.values())}, {len(self.unsettled)} of them not settled"),
            *((f"  {kind}", f"{count}") for kind, count in sorted(self.states.items())),
            ("bytes from outside", f"{len(self.leaks)} leaks"),
            ("server's process", "the same" if self.is_same_process else "ANOTHER OR NONE"),
            ("its memory", f"{self.growth_bytes / 2**20:+.1f} MiB"),
            ("innocents", f"{self.innocent_count} right answers, {len(self.innocent_lost)} lost"),
            ("innocents' p99", f"{self.p99_ms:.1f} ms, {self.p99_quiet_ms:.1f} ms before"),
            ("time", f"{self.elapsed_s:.0f} s"),
        ]
        return [f"{name:24} {text}" for name, text in rows]


def run_hostile(plan: HostilePlan, say: Callable[[str], None]) -> HostileResult:
    """Attacks a server of its own.

    Args:
        plan: What is to be done.
        say: Takes lines of progress.
    """
    result = HostileResult(plan)
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        root, outside = Path(folder, "repository"), Path(folder, "outside.bin")
        outside.write_bytes(secrets.token_bytes(8))
        put_good_models(root)
        options = ("--device", "cpu", "--poll-interval-s", "0.2", "--canary-limit-s", "5", *plan.options)
        log_path = Path(folder, "log")
        with running_service(root, INNOCENT, 1, log_path=log_path, options=options) as service:
            _attack_all(plan, service, root, outside, result, say)
        if outside.read_bytes() in log_path.read_bytes():
            result.leaks.append("the server's log")
    result.elapsed_s = time.monotonic() - begin_s
    return result


def _attack_all(
    plan: HostilePlan,
    service: RunningService,
    root: Path,
    outside: Path,
    result: HostileResult,
    say: Callable[[str], None],
) -> None:
    (worker,) = children(service.pid)
    started = _started(worker)
    with innocent_callers(service.address) as quiet:
        time.sleep(1.0)
    secret = outside.read_bytes().hex()
    warm = int(plan.requests * _WARM_SHARE)
    _take(_attack(AttackPlan(service.address, warm, plan.seed + 1, secret)), result)
    before_bytes = _memory_bytes(worker)
    say(f"attacking: {plan.requests} requests, {plan.models} models; memory {before_bytes >> 20} MiB")
    with innocent_callers(service.address) as found:
        answers: list[AttackResult] = []
        rest = AttackPlan(service.address, plan.requests - warm, plan.seed, secret)
        attacker = threading.Thread(target=lambda: answers.append(_attack(rest)))
        attacker.start()
        _load_all(plan, service, HostileModels(root, outside, Random(plan.seed)), secret, result, say)
        attacker.join()
    for each in answers:
        _take(each, result)
    result.growth_bytes = _memory_bytes(worker) - before_bytes
    result.is_same_process = started == _started(worker) and bool(answers)
    _take_innocents(quiet, found, result)


def _load_all(
    plan: HostilePlan,
    service: RunningService,
    models: HostileModels,
    secret: str,
    result: HostileResult,
    say: Callable[[str], None],
) -> None:
    with grpc.insecure_channel(service.address) as channel:
        for first in range(0, plan.models, _GROUP_SIZE):
            group = [models.put(number) for number in range(first, min(first + _GROUP_SIZE, plan.models))]
            states = _settled(channel, {model.name for model in group})
            for model in group:
                _judge(model, *states.get(model.name, ("", "")), bytes.fromhex(secret), result)
                models.remove(model)
            say(f"{first + len(group)} models")
        _settled(channel, set())


def _judge(model: HostileModel, state: str, reason: str, secret: bytes, result: HostileResult) -> None:
    came_to = f"{model.kind}: {state or 'not settled'}"
    result.states[came_to] = result.states.get(came_to, 0) + 1
    if state not in _SETTLED:
        result.unsettled.append(f"{model.kind} ({model.name}): '{state}'")
    if (model.is_escape and state == "READY") or secret in reason.encode():
        result.leaks.append(f"{model.kind} ({model.name}): {state}: {reason[:200]}")


def _settled(channel: Any, names: set[str]) -> dict[str, tuple[str, str]]:
    """Waits until models are READY or FAILED, and no other hostile ones are left; gives their states and reasons."""
    end_s = time.monotonic() + _SETTLE_S
    while True:
        message = channel.unary_unary(_LIST_MODELS)(b"", timeout=_SETTLE_S)
        found = {
            model.name: (
                control_pb2.State.Name(model.versions[-1].state).removeprefix("STATE_"),
                model.versions[-1].reason,
            )
            for model in control_pb2.ListModelsResponse.FromString(message).models
            if model.versions
        }
        is_settled = all(found.get(name, ("",))[0] in _SETTLED for name in names)
        if is_settled or time.monotonic() > end_s:
            return found
        time.sleep(_LOOK_S)


def _attack(plan: AttackPlan) -> AttackResult:
    if plan.count == 0:
        return AttackResult()
    command = [sys.executable, "-m", "fitserve_benchmarks.hostile_attack"]
    exit_code, output = run_child(command, message=json.dumps(asdict(plan)).encode(), stdout=subprocess.PIPE)
    if exit_code != 0:
        raise RuntimeError(f"attacker: expected exit code 0, got {exit_code}")
    return AttackResult(**json.loads(output))


def _take(attacked: AttackResult, result: HostileResult) -> None:
    result.codes = dict(Counter(result.codes) + Counter(attacked.codes))
    result.faults += attacked.examples
    result.leaks += ["an answer"] * attacked.leaks


def _take_innocents(quiet: Innocents, found: Innocents, result: HostileResult) -> None:
    result.innocent_count = len(found.elapsed_ms)
    result.innocent_lost = quiet.lost + found.lost
    result.p99_quiet_ms = quiet.percentile_ms(99)
    result.p99_ms = found.percentile_ms(99)


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _started(pid: int) -> str:
    """When a process was started; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""
