"""The bulk of a long soak: calls whose every answer is checked, in rounds of a process each.

A right answer to a request is known after its first one was read; the others need only have the same bytes, so that
checking costs next to nothing.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from random import Random
from subprocess import PIPE
from typing import Final

import numpy as np

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_benchmarks.chaos_load import MODEL
from fitserve_benchmarks.http2 import Answer, frame_message
from fitserve_benchmarks.http2_lines import Http2Lines, LoadFailedError
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.serve_requests import MODEL_INFER, infer_answer, infer_request
from fitserve_benchmarks.subject import Array

PREDICT: Final = "/fitserve.inference.v1.InferenceService/Predict"
METHODS: Final = (PREDICT, MODEL_INFER)

_POOL_SIZE: Final = 64
_MOST_ROWS: Final = 4
_LARGEST_ID: Final = 1 << 22
_PATIENCE_S: Final = 30.0
_MOST_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class KnownCall:
    """A request of the model that chaos serves, and what must come of it.

    Args:
        method: `/package.Service/Method`.
        request: Serialized.
        expected: (B, 2) FP32, `(2 * id, version)` for each row `(id, 0)`.
    """

    method: str
    request: bytes
    expected: Array

    def is_right(self, answer: bytes | None) -> bool:
        """Tells whether an answer is the one."""
        try:
            return answer is not None and bool(np.array_equal(self._found(answer), self.expected))
        except Exception:  # a message that is none is a wrong answer, whatever protobuf or numpy says of it
            return False

    def _found(self, answer: bytes) -> Array:
        if self.method == MODEL_INFER:
            return infer_answer(answer)["y"]
        (output,) = inference_pb2.PredictResponse.FromString(answer).outputs
        return np.frombuffer(output.content, "<f4").reshape(tuple(output.shape))


def known_calls(method: str, random: Random, count: int = _POOL_SIZE, version: int = 1) -> list[KnownCall]:
    """Makes calls of 1 to 4 rows."""
    return [_known_call(method, random, version) for _ in range(count)]


def _known_call(method: str, random: Random, version: int) -> KnownCall:
    ids = [random.randrange(_LARGEST_ID) for _ in range(random.randint(1, _MOST_ROWS))]
    rows = np.array([(number, 0) for number in ids], "<f4")
    expected = rows * 2 + np.array([0, version], "<f4")
    if method == MODEL_INFER:
        return KnownCall(method, infer_request(MODEL, {"x": rows}), expected)
    tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=rows.shape, content=rows.tobytes())
    request = inference_pb2.PredictRequest(model=tensor_pb2.ModelSpec(name=MODEL), inputs=[tensor])
    return KnownCall(method, request.SerializeToString(), expected)


@dataclass(frozen=True, slots=True)
class BulkPlan:
    """A round.

    Args:
        port: TCP port of this machine.
        method: One of `METHODS`.
        call_count: Calls.
        seed: Of the requests.
        connections: TCP connections.
        in_flight: Calls in flight, a multiple of the connections.
    """

    port: int
    method: str
    call_count: int
    seed: int
    connections: int = 4
    in_flight: int = 64


@dataclass(slots=True)
class BulkResult:
    """What came back.

    Args:
        right_count: Right answers.
        wrong_count: Others, calls that failed or were never answered included.
        examples: The first few of those, in words.
        elapsed_s: Time of the round.
        cpu_s: Processor time of its process.
    """

    right_count: int = 0
    wrong_count: int = 0
    examples: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0


def bulk_in_process(plan: BulkPlan) -> BulkResult:
    """Calls, from a child process.

    Raises:
        LoadFailedError: it could not be put on, or not to its end.
    """
    command = [sys.executable, "-m", "fitserve_benchmarks.soak_bulk"]
    exit_code, output = run_child(command, message=json.dumps(asdict(plan)).encode(), stdout=PIPE)
    if exit_code != 0:
        raise LoadFailedError(f"bulk of calls: expected exit code 0, got {exit_code}")
    answer = json.loads(output)
    if "error" in answer:
        raise LoadFailedError(answer["error"])
    return BulkResult(**answer)


class _Round:
    """What is on its way, and what has come back."""

    def __init__(self, plan: BulkPlan, calls: Sequence[KnownCall], lines: Http2Lines) -> None:
        self._calls = calls
        self._framed = [frame_message(call.request) for call in calls]
        self._lines = lines
        self._rotation = cycle(range(len(calls)))
        self._known: list[bytes | None] = [None] * len(calls)
        self._pending: list[dict[int, int]] = [{} for _ in lines.connections]
        self._left_count = plan.call_count
        self.result = BulkResult()

    def run(self, in_flight: int) -> None:
        for slot in range(in_flight):
            self._send(slot % len(self._pending))
        end_s = time.perf_counter() + _PATIENCE_S
        while any(self._pending) and time.perf_counter() < end_s:
            for index in self._lines.wait_until(end_s):
                for answer in self._lines.receive(index):
                    self._take(answer, self._pending[index].pop(answer.stream))
                    self._send(index)
                end_s = time.perf_counter() + _PATIENCE_S
        for pending in self._pending:
            for number in pending.values():
                self._note(number, f"no answer in {_PATIENCE_S:.0f} s")

    def _send(self, index: int) -> None:
        if self._left_count:
            self._left_count -= 1
            number = next(self._rotation)
            self._pending[index][self._lines.send(index, self._framed[number])] = number

    def _take(self, answer: Answer, number: int) -> None:
        if answer.message is not None and answer.message == self._known[number]:
            self.result.right_count += 1
        elif self._calls[number].is_right(answer.message):
            self._known[number] = answer.message
            self.result.right_count += 1
        else:
            self._note(number, f"gRPC status {answer.status}, {(answer.message or b'')[:200]!r}")

    def _note(self, number: int, what: str) -> None:
        self.result.wrong_count += 1
        if len(self.result.examples) < _MOST_EXAMPLES:
            call = self._calls[number]
            self.result.examples.append(f"{call.method}: expected {call.expected.tolist()}, got {what}")


def put_bulk(plan: BulkPlan) -> BulkResult:
    """Calls, from this process.

    Raises:
        OSError: the server cannot be reached, or ended a connection.
        LoadFailedError: it is no HTTP/2 server.
    """
    begin_s = time.perf_counter()
    calls = known_calls(plan.method, Random(plan.seed))
    lines = Http2Lines("127.0.0.1", plan.port, plan.method, plan.connections, reads_status=True)
    try:
        turn = _Round(plan, calls, lines)
        turn.run(plan.in_flight)
    finally:
        lines.close()
    turn.result.elapsed_s, turn.result.cpu_s = time.perf_counter() - begin_s, time.process_time()
    return turn.result


def main() -> int:
    """The child: the plan as JSON on stdin, the result as JSON on stdout."""
    plan = BulkPlan(**json.load(sys.stdin))
    gc.disable()  # nothing here is part of a cycle
    try:
        result = put_bulk(plan)
    except (OSError, LoadFailedError) as error:
        json.dump({"error": f"bulk of calls: {error}"}, sys.stdout)
        return 0
    json.dump(asdict(result), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
