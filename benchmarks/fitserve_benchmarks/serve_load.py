"""A turn of closed-loop load on any contestant: by `h2load` where it is on PATH, else by our own HTTP/2 load.

Shapes: N calls answered.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from fitserve_benchmarks.http2 import frame_message
from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.load import LoadPlan, load_in_process
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.statistics import Times

H2LOAD: Final = "h2load"
OWN_LOAD: Final = "fitserve-bench"
WARM_UP_S: Final = 0.3
MAX_CONNECTIONS: Final = 4

_DONE = re.compile(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded")
_DATA = re.compile(r"traffic: .*\((\d+)\) data")
_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")

_FEW_GENERATIONS: Final = 20
"""Where batches of all calls in flight end together, counting is off by up to one of so many: 5 %."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a contestant is called.

    Args:
        port: TCP port of this machine.
        path: What is posted to: a gRPC method or an HTTP path.
        protocol: "grpc" over HTTP/2, or "http" with the message as the body of an HTTP/1.1 request.
        content_type: Of an HTTP/1.1 request.
    """

    port: int
    path: str
    protocol: Literal["grpc", "http"] = "grpc"
    content_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn of load gave.

    Args:
        rate: Answers a second, see `answers_per_s`.
        latencies_s: (N) seconds.
        failed_count: Calls that were not answered with a message.
        samples: Request number and answer, where the source keeps some.
        load_cpu_s: Processor time of the load source.
        elapsed_s: Time that this processor time was taken in.
    """

    rate: float
    latencies_s: Times
    failed_count: int
    samples: tuple[tuple[int, bytes], ...]
    load_cpu_s: float
    elapsed_s: float


def load_source() -> str:
    """Names the program that puts the load on."""
    return H2LOAD if shutil.which(H2LOAD) else OWN_LOAD


def answers_per_s(counted_rate: float, ends_s: Times, latencies_s: Times, duration_s: float) -> float:
    """Gives the rate of a turn that may be short against its calls.

    A server that joins requests answers many calls at once. Where a turn holds only a few such moments, how many of
    them fall into it is a matter of chance, so that the rate is taken from their distance: the slope of the straight
    line through the answers' times (least squares). Otherwise it is the count over the time.

    Args:
        counted_rate: Answers over the turn's time.
        ends_s: (N) when each answer came.
        latencies_s: (N) how long each call took.
        duration_s: Time of the turn.
    """
    is_long = not latencies_s.size or duration_s >= _FEW_GENERATIONS * float(np.median(latencies_s))
    ordered_s = np.sort(ends_s)
    if is_long or ordered_s[0] == ordered_s[-1]:
        return counted_rate
    centred_s = ordered_s - ordered_s.mean()
    return float(centred_s @ np.arange(ordered_s.size) / (centred_s @ centred_s))


def put_turn(
    target: Target,
    messages: Sequence[bytes],
    answer_bytes: int,
    in_flight: int,
    duration_s: float,
    warm_up_s: float = WARM_UP_S,
) -> Turn:
    """Puts one turn of load on a contestant.

    Args:
        target: Whom to call.
        messages: Requests; h2load sends the first one alone.
        answer_bytes: Length of a right answer, by which h2load's answers are counted: it reads none of them.
        in_flight: Calls in flight.
        duration_s: Time that counts.
        warm_up_s: Time before it.

    Raises:
        LoadFailedError: the load could not be put on.
    """
    if load_source() == H2LOAD:
        return _h2load_turn(target, messages[0], answer_bytes, in_flight, duration_s, warm_up_s)
    return own_turn(target, messages, in_flight, duration_s, warm_up_s)


def own_turn(
    target: Target, messages: Sequence[bytes], in_flight: int, duration_s: float, warm_up_s: float = WARM_UP_S
) -> Turn:
    """Puts a turn of our own load on a gRPC contestant; keeps samples of its answers.

    Raises:
        LoadFailedError: the load could not be put on, or the contestant speaks no gRPC.
    """
    if target.protocol != "grpc":
        raise LoadFailedError(f"load on HTTP/1.1: expected {H2LOAD} on PATH, found none")
    connections = connection_count(in_flight)
    plan = LoadPlan("127.0.0.1", target.port, target.path, in_flight, connections, duration_s, warm_up_s)
    result = load_in_process(plan, messages)
    counted = len(result.latencies_s) / result.duration_s
    return Turn(
        rate=answers_per_s(counted, result.ends_s, result.latencies_s, result.duration_s),
        latencies_s=result.latencies_s,
        failed_count=result.failed_count,
        samples=result.samples,
        load_cpu_s=result.cpu_s,
        elapsed_s=result.duration_s + warm_up_s,
    )


def connection_count(in_flight: int) -> int:
    """Gives the connections that calls in flight are spread over evenly: at most four."""
    return next(count for count in range(MAX_CONNECTIONS, 0, -1) if in_flight % count == 0)


def h2load_arguments(
    target: Target, in_flight: int, duration_s: float, body: Path, log: Path, warm_up_s: float = WARM_UP_S
) -> list[str]:
    """Writes h2load's command line; HTTP/1.1 has one call on a connection."""
    connections = connection_count(in_flight) if target.protocol == "grpc" else in_flight
    kind = (
        ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        if target.protocol == "grpc"
        else ["--h1", "-H", f"content-type: {target.content_type}"]
    )
    times = [f"--duration={1e3 * duration_s:.0f}ms", f"--warm-up-time={1e3 * warm_up_s:.0f}ms"]
    places = ["-d", str(body), f"--log-file={log}", f"http://127.0.0.1:{target.port}{target.path}"]
    return [H2LOAD, *times, "-t1", f"-c{connections}", f"-m{in_flight // connections}", *kind, *places]


def _h2load_turn(
    target: Target, message: bytes, answer_bytes: int, in_flight: int, duration_s: float, warm_up_s: float
) -> Turn:
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(frame_message(message) if target.protocol == "grpc" else message)
        before_s = _children_cpu_s()
        command = h2load_arguments(target, in_flight, duration_s, body, log, warm_up_s)
        exit_code, output = run_child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        load_cpu_s = _children_cpu_s() - before_s
        text = output.decode(errors="replace")
        if exit_code != 0 or not log.exists():
            raise LoadFailedError(f"{H2LOAD}: expected exit code 0 and a log, got {exit_code}: {text[-300:]}")
        starts_s, latencies_s = _logged_times_s(log.read_text())
    framing_bytes = 5 if target.protocol == "grpc" else 0
    failed_count = failures(text, answer_bytes + framing_bytes)
    rate = answers_per_s(_found(_RATE, text), starts_s + latencies_s, latencies_s, duration_s)
    return Turn(rate, latencies_s, failed_count, (), load_cpu_s, duration_s + warm_up_s)


def failures(text: str, answer_bytes: int) -> int:
    """Counts calls in h2load's report that were not answered, or not with as many bytes as a right answer has.

    gRPC answers an error with HTTP status 200 and no data, so that the bytes have to tell. They include those of the
    warm-up, which can hide so many failures: a turn of samples must stand beside it.
    """
    done = _DONE.search(text)
    if done is None:
        raise LoadFailedError(f"{H2LOAD}: expected a count of requests, got: {text[-300:]}")
    answered = int(_found(_DATA, text)) // max(1, answer_bytes)
    done_count, succeeded_count = int(done.group(1)), int(done.group(2))
    return max(done_count - succeeded_count, done_count - answered, 0)


def _logged_times_s(log: str) -> tuple[Times, Times]:
    """Reads when each call began and how long it took."""
    lines = [line.split("\t") for line in log.splitlines()]
    starts_s, latencies_s = ([int(fields[place]) / 1e6 for fields in lines] for place in (0, 2))
    return np.array(starts_s, np.float64), np.array(latencies_s, np.float64)


def _found(pattern: re.Pattern[str], text: str) -> float:
    found = pattern.search(text)
    if found is None:
        raise LoadFailedError(f"{H2LOAD}: expected a report with '{pattern.pattern}', got: {text[-300:]}")
    return float(found.group(1))


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
