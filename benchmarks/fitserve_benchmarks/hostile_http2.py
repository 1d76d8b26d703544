"""`fitserve-bench hostile-http2`: each abuse of HTTP/2 against a server of its own, while innocents measure."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fitserve_benchmarks.hostile_frames import ATTACKS
from fitserve_benchmarks.hostile_innocents import innocent_callers
from fitserve_benchmarks.hostile_models import INNOCENT, put_good_models
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.programs import RunningService, running_service
from fitserve_benchmarks.server_memory import peak_growth_mib, reset_peak


@dataclass(frozen=True, slots=True)
class Abuse:
    """What one attack did.

    Args:
        transport: The server's.
        kind: Which attack.
        count: Frames, calls or connections of the attacker.
        innocent_count: Right answers while it lasted.
        innocent_lost: What came instead of right answers.
        p99_quiet_ms: Innocents' p99 just before.
        p99_ms: Innocents' p99 while it lasted.
        slowest_ms: Innocents' slowest right answer while it lasted.
        growth_mib: Peak of the server's memory above what it had before, of the process that grew most.
    """

    transport: str
    kind: str
    count: int
    innocent_count: int
    innocent_lost: tuple[str, ...]
    p99_quiet_ms: float
    p99_ms: float
    slowest_ms: float
    growth_mib: float

    def line(self) -> str:
        """Writes it as a line of a table."""
        lost = f"{self.innocent_count:6} right, {len(self.innocent_lost)} lost"
        times = f"p99 {self.p99_quiet_ms:.1f} -> {self.p99_ms:.1f} ms ({self.p99_ms / self.p99_quiet_ms:.1f} x)"
        cost = f"slowest {self.slowest_ms:.0f} ms, memory +{self.growth_mib:.0f} MiB"
        return f"{self.transport:6} {self.kind:20} {self.count:9} sent  {lost}  {times}  {cost}"


def run_abuse(transports: Sequence[str], seconds: float, say: Callable[[str], None]) -> list[Abuse]:
    """Carries out every attack against each transport.

    Args:
        transports: `fast`, `stock`.
        seconds: Time of each attack, and of the quiet before it.
        say: Takes each line as it is known.
    """
    found = []
    for transport in transports:
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            root = Path(folder, "repository")
            put_good_models(root)
            options = ("--device", "cpu", "--canary", "off", "--transport", transport)
            with running_service(root, INNOCENT, 1, log_path=Path(folder, "log"), options=options) as service:
                for kind in ATTACKS:
                    found.append(_abuse(service, transport, kind, seconds))
                    say(found[-1].line())
    return found


def save(found: Sequence[Abuse], path: Path) -> None:
    """Writes what was found as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(abuse) for abuse in found], indent=2) + "\n")


def _abuse(service: RunningService, transport: str, kind: str, seconds: float) -> Abuse:
    host, port = service.address.split(":")
    with innocent_callers(service.address) as quiet:
        time.sleep(seconds)
    before = reset_peak(service)
    with innocent_callers(service.address) as found:
        command = [sys.executable, "-m", "fitserve_benchmarks.hostile_frames", host, port, kind, str(seconds)]
        exit_code, output = run_child(command, stdout=subprocess.PIPE)
    if exit_code != 0:
        raise RuntimeError(f"attacker of '{kind}': expected exit code 0, got {exit_code}")
    return Abuse(
        transport,
        kind,
        int(output),
        len(found.elapsed_ms),
        (*quiet.lost, *found.lost),
        quiet.percentile_ms(99),
        found.percentile_ms(99),
        found.percentile_ms(100),
        peak_growth_mib(service, before),
    )
