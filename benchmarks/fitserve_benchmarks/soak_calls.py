"""Millions of calls against one server on one transport: `fitserve-bench soak --calls N`.

The bulk (`soak_bulk`) is checked answer by answer; rude callers (`soak_rude`) reset, cancel and malform beside it. What
the server's processes hold is read all the while and must not grow; the process that answered the first call must
answer the last one. A server that leaks on purpose is measured the same way, and must fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.chaos import publish
from fitserve_benchmarks.chaos_load import write_model
from fitserve_benchmarks.chaos_servers import ChaosServer
from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.malformed_frames import PATH_NO_TEXT
from fitserve_benchmarks.processes import child_process
from fitserve_benchmarks.soak import LEAK, Growth, Sample, growth_lines, growths, sample
from fitserve_benchmarks.soak_bulk import METHODS, BulkPlan, BulkResult, bulk_in_process
from fitserve_benchmarks.soak_rude import RudeResult

_ROUND: Final = 250_000
_SAMPLES_PER_LINE: Final = 30
_REST_S: Final = 2.0
_LEFT_OUT: Final = {"fast": (), "stock": (PATH_NO_TEXT,)}
"""Kinds of malformed frames. grpc.aio 1.85 ends its server over such a path; ours begins another, but every connection
ends, those of the bulk as well. `tests/wire/test_transport_hostile.py` has it."""

_SAID_OF_CALLERS: Final = "Invalid encoding on"
"""What grpcio logs as an error of a header that is no text."""

_ERROR_LEVELS: Final = ("error", "critical")


@dataclass(frozen=True, slots=True)
class CallSoakPlan:
    """What is to be done.

    Args:
        call_count: Calls of the bulk; what is rude comes on top.
        transport: `fast` or `stock`.
        seed: Of requests and rudeness.
        rude_rate: Rude streams and connections a second.
        period_s: Time between two looks at what the server holds.
        has_leak: The negative control: the server leaks on purpose.
    """

    call_count: int
    transport: str = "fast"
    seed: int = 0
    rude_rate: float = 600.0
    period_s: float = 1.0
    has_leak: bool = False


@dataclass(slots=True)
class CallSoakResult:
    """What a soak came to.

    Args:
        plan: What was done.
        bulk: What came of the bulk, all rounds together.
        rude: What was done beside it, and what came of the calls among it.
        samples: What the server's processes held, over time.
        growths: Judgement of them.
        before: What they held before the first call.
        after: What they held 2 s after the last one.
        is_same_process: Server and worker are the processes that were started, and ended with exit code 0.
        log_errors: Lines of the server's log at level error or above, the first few.
        elapsed_s: Time of the load.
        environment: Hardware, versions and load at the start.
    """

    plan: CallSoakPlan
    bulk: BulkResult = field(default_factory=BulkResult)
    rude: RudeResult = field(default_factory=RudeResult)
    samples: list[Sample] = field(default_factory=list)
    growths: tuple[Growth, ...] = ()
    before: Sample | None = None
    after: Sample | None = None
    is_same_process: bool = False
    log_errors: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Nothing grew, nothing crashed, and whoever asked properly was answered rightly."""
        is_answered = self.bulk.right_count == self.plan.call_count and not self.bulk.wrong_count
        is_quiet = not self.rude.wrong_count and not self.log_errors
        return is_answered and is_quiet and self.is_same_process and all(each.is_allowed for each in self.growths)

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self) | {"is_right": self.is_right}, indent=1) + "\n")

    def lines(self) -> list[str]:
        """Says it in words."""
        rude = self.rude
        done = ", ".join(f"{count:,} {name}" for name, count in _counted(rude, is_answer=False))
        answered = ", ".join(f"{count:,} {name.strip()}" for name, count in _counted(rude, is_answer=True))
        return [
            f"{self.plan.transport}: {self.bulk.right_count:,} right answers in {self.elapsed_s:.0f} s "
            f"({self.bulk.right_count / max(self.elapsed_s, 1e-9):,.0f}/s), {self.bulk.wrong_count} wrong or missing",
            f"beside them {rude.done_count:,} rude streams and connections: {done}",
            f"  what came back: {answered}",
            f"  right answers on the same connections: {rude.right_count:,}, wrong or missing: {rude.wrong_count}",
            f"before {_held(self.before)}; after {_held(self.after)}",
            *growth_lines(self.growths),
            f"processes: {'the same, ended with 0' if self.is_same_process else 'OTHERS, OR NOT ENDED WITH 0'}; "
            f"{len(self.log_errors)} errors in the log",
            *self.bulk.examples,
            *rude.wrong,
            *self.log_errors,
        ]


def soak_calls(work: Path, plan: CallSoakPlan, progress: Callable[[str], None]) -> CallSoakResult:
    """Soaks one server.

    Args:
        work: Empty folder.
        plan: How.
        progress: Takes a line now and then.

    Raises:
        ServerError: the server did not start.
        LoadFailedError: the load could not be put on, or not to its end.
        ValueError: it was over before the sixth look at what the server holds.
    """
    result = CallSoakResult(plan, environment=describe_environment())
    before, options = LEAK if plan.has_leak else "", ("--transport", plan.transport)
    server = ChaosServer(work / "repository", work / "server.log", 1, before=before, options=options)
    publish(work / "repository", write_model(work / "prepared-1", 1))
    try:
        server.start()
        processes = [server.process_id, *server.workers()]
        result.before = sample(processes, 0.0)
        port = int(server.address.rpartition(":")[2])
        with _rude_callers(port, plan, result), _Bulk(port, plan, result.bulk) as bulk:
            _watch(server, bulk, result, progress)
        bulk.reraise()
        time.sleep(_REST_S)
        result.after = sample([server.process_id, *server.workers()], result.elapsed_s + _REST_S)
        is_same = processes == [server.process_id, *server.workers()]
        server.stop()
        result.is_same_process = is_same
    finally:
        server.close()
    result.log_errors = _log_errors(work / "server.log")
    result.growths = growths(result.samples)
    return result


def _watch(server: ChaosServer, bulk: _Bulk, result: CallSoakResult, progress: Callable[[str], None]) -> None:
    """Looks at what the server holds until the bulk is over."""
    begin_s = time.monotonic()
    while bulk.is_running:
        now_s = time.monotonic() - begin_s
        result.samples.append(sample([server.process_id, *server.workers()], now_s))
        if len(result.samples) % _SAMPLES_PER_LINE == 0:
            progress(f"{now_s:.0f} s: {result.bulk.right_count:,} answers, {_held(result.samples[-1])}")
        bulk.wait(max(0.0, begin_s + now_s + result.plan.period_s - time.monotonic()))
    result.elapsed_s = time.monotonic() - begin_s


class _Bulk:
    """The rounds of the bulk, one after the other on a thread of its own while the context is open."""

    def __init__(self, port: int, plan: CallSoakPlan, total: BulkResult) -> None:
        self._port = port
        self._plan = plan
        self._total = total
        self._error: Exception | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Bulk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, longest_s: float) -> None:
        self._thread.join(longest_s)

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for number, count in enumerate(_rounds(self._plan.call_count)):
                if self._is_over.is_set():
                    return
                method = METHODS[number % len(METHODS)]
                self._add(bulk_in_process(BulkPlan(self._port, method, count, self._plan.seed + number)))
        except Exception as error:  # it is raised again on the thread that waits
            self._error = error

    def _add(self, found: BulkResult) -> None:
        self._total.right_count += found.right_count
        self._total.wrong_count += found.wrong_count
        self._total.examples += found.examples
        self._total.elapsed_s += found.elapsed_s
        self._total.cpu_s += found.cpu_s


def _rounds(call_count: int) -> list[int]:
    """Shares calls out to rounds of at most a quarter of a million, two at least, so that each method has one."""
    count = max(len(METHODS), -(-call_count // _ROUND))
    return [call_count // count + (number < call_count % count) for number in range(count)]


@contextmanager
def _rude_callers(port: int, plan: CallSoakPlan, result: CallSoakResult) -> Iterator[None]:
    """Has rude callers beside what is done in the context; their result is there after it."""
    numbers = [str(port), str(plan.seed), str(plan.rude_rate)]
    command = [sys.executable, "-m", "fitserve_benchmarks.soak_rude", *numbers, *_LEFT_OUT[plan.transport]]
    with child_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield
        output, _ = process.communicate()
    if process.returncode != 0:
        raise LoadFailedError(f"rude callers: expected exit code 0, got {process.returncode}")
    result.rude = RudeResult(**json.loads(output))


def _counted(rude: RudeResult, *, is_answer: bool) -> list[tuple[str, int]]:
    return [(name, n) for name, n in Counter(rude.counts).most_common() if name.startswith("  ") == is_answer]


def _held(one: Sample | None) -> str:
    if one is None:
        return "unknown"
    return f"{one.memory_mib:.0f} MiB, {one.descriptors} descriptors, {one.threads} threads"


def _log_errors(path: Path) -> list[str]:
    """Gives the first few lines at level error or above, and what is no line of the log at all (a traceback)."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            said = json.loads(line)
            is_error = said["level"] in _ERROR_LEVELS and not said["message"].startswith(_SAID_OF_CALLERS)
        except (ValueError, KeyError, TypeError):
            is_error = True
        if is_error:
            found.append(line[:300])
    return found[:5]
