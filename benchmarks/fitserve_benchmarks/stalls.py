"""`fitserve-bench hostile-messages`: each of the worst messages again and again, while others call.

Run as a module, it is the attacker: its arguments are the address, the index of the message, seconds and callers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from fitserve_benchmarks.hostile_innocents import innocent_callers
from fitserve_benchmarks.hostile_models import INNOCENT, put_good_models, wide
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.programs import RunningService, running_service
from fitserve_benchmarks.server_memory import peak_growth_mib, reset_peak
from fitserve_benchmarks.stall_messages import STALL_MESSAGES, STREAM, WIDE, StallMessage
from fitserve_oip import inference_pb2 as oip

MOST_MEDIAN_MS: Final = 50.0
MOST_WORST_MS: Final = 300.0
_LIVE: Final = "/inference.GRPCInferenceService/ServerLive"
_TIMEOUT_S: Final = 60.0
_OPTIONS: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True, slots=True)
class StallPlan:
    """What is to be done.

    Args:
        transports: `fast`, `stock`.
        seconds: Time of each message.
        callers: Calls with it at a time.
        only: Part of the names of the messages; empty: all.
    """

    transports: tuple[str, ...] = ("fast", "stock")
    seconds: float = 3.0
    callers: int = 1
    only: str = ""


@dataclass(frozen=True, slots=True)
class Stall:
    """What one message did.

    Args:
        transport: The server's.
        name: Of the message.
        code: Of its answers; several are a fault.
        expected_code: As the table has it.
        count: Of its answers.
        medians_ms: Of others: Predict, ServerLive.
        worsts_ms: Likewise.
        growth_mib: Peak of the server's memory, less what it had before.
        most_growth_mib: As the table has it.
        lost: What others got instead of right answers.
    """

    transport: str
    name: str
    code: str
    expected_code: str
    count: int
    medians_ms: tuple[float, float]
    worsts_ms: tuple[float, float]
    growth_mib: float
    most_growth_mib: float
    lost: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """The message was answered as it must, and nobody noticed."""
        is_calm = max(self.medians_ms) <= MOST_MEDIAN_MS and max(self.worsts_ms) <= MOST_WORST_MS
        return self.code == self.expected_code and is_calm and self.growth_mib <= self.most_growth_mib and not self.lost

    def line(self) -> str:
        """Writes it as a line of a table."""
        times = "  ".join(
            f"{name} {median:5.1f} {worst:6.1f}"
            for name, median, worst in zip(("predict", "live"), self.medians_ms, self.worsts_ms, strict=True)
        )
        mark = "" if self.is_right else "  FAULT"
        end = f"{times} ms {self.growth_mib:6.0f} MiB {len(self.lost)} lost{mark}"
        return f"{self.transport:5} {self.name:26} {self.count:6} {self.code:19} {end}"


def run_stalls(plan: StallPlan, say: Callable[[str], None]) -> list[Stall]:
    """Sends every message to each transport.

    Args:
        plan: What is to be done.
        say: Takes each line as it is known.
    """
    found = []
    for transport in plan.transports:
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            root = Path(folder, "repository")
            put_stall_models(root)
            options = ("--device", "cpu", "--canary", "off", "--transport", transport)
            with running_service(root, INNOCENT, 1, log_path=Path(folder, "log"), options=options) as service:
                for index, message in enumerate(STALL_MESSAGES):
                    if plan.only in message.name:
                        found.append(_stall(service, transport, index, message, plan))
                        say(found[-1].line())
    return found


def put_stall_models(root: Path) -> None:
    """Puts the models that the messages name into a repository."""
    put_good_models(root)
    folder = root / WIDE / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(wide())


def save(found: Sequence[Stall], path: Path) -> None:
    """Writes what was found as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(stall) | {"is_right": stall.is_right} for stall in found], indent=2) + "\n")


def answer_code(channel: Any, message: StallMessage, content: bytes) -> str:
    """Sends a message; gives the name of the status code of its answer."""
    try:
        if message.method == STREAM:
            (answer,) = channel.stream_stream(STREAM)(iter([content]), timeout=_TIMEOUT_S)
            text = oip.ModelStreamInferResponse.FromString(answer).error_message
            # The protocol has no code within a stream.
            return "RESOURCE_EXHAUSTED" if "expected at most" in text else text or "OK"
        channel.unary_unary(message.method)(content, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _stall(service: RunningService, transport: str, index: int, message: StallMessage, plan: StallPlan) -> Stall:
    before = reset_peak(service)
    with _live_caller(service.address) as live, innocent_callers(service.address, 1) as found:
        arguments = (service.address, str(index), str(plan.seconds), str(plan.callers))
        command = [sys.executable, "-m", "fitserve_benchmarks.stalls", *arguments]
        exit_code, output = run_child(command, stdout=subprocess.PIPE)
    if exit_code != 0:
        raise RuntimeError(f"attacker with '{message.name}': expected exit code 0, got {exit_code}")
    codes = json.loads(output)
    growth = peak_growth_mib(service, before)
    return Stall(
        transport,
        message.name,
        ", ".join(sorted(codes)),
        message.code,
        sum(codes.values()),
        (found.percentile_ms(50), float(np.median(live))),
        (found.percentile_ms(100), max(live)),
        growth,
        message.most_growth_mib,
        tuple(found.lost),
    )


class _live_caller:
    """Asks whether the server is live, again and again, until the block ends."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_over = threading.Event()
        self._elapsed_ms: list[float] = []
        self._thread = threading.Thread(target=self._call)

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self._elapsed_ms

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _call(self) -> None:
        with grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)]) as opened:
            channel: Any = opened
            live = channel.unary_unary(_LIVE)
            while not self._is_over.wait(0.002):
                begin_s = time.perf_counter()
                live(b"", timeout=_TIMEOUT_S)
                self._elapsed_ms.append((time.perf_counter() - begin_s) * 1e3)


def _attack(address: str, index: str, seconds: str, callers: str) -> dict[str, int]:
    message = STALL_MESSAGES[int(index)]
    content = message.make()
    end_s = time.monotonic() + float(seconds)
    codes: dict[str, int] = {}

    def send(channel: Any) -> None:
        while not codes or time.monotonic() < end_s:
            code = answer_code(channel, message, content)
            codes[code] = codes.get(code, 0) + 1

    with grpc.insecure_channel(address, options=list(_OPTIONS)) as channel:
        threads = [threading.Thread(target=send, args=(channel,)) for _ in range(int(callers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return codes


if __name__ == "__main__":
    print(json.dumps(_attack(*sys.argv[1:])))
