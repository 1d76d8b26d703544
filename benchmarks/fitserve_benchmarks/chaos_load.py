"""Load that knows every answer: callers over several servers, each answer held against what it must be.

The model answers a row `(id, 0)` with `(2 * id, version)`, so that an answer of another caller, of another row, of two
versions at once, or of a version that was never published whole, shows. Shapes: B rows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from fitserve_client import Client, FitserveError, Prediction
from fitserve_client.retry import RetryPolicy
from fitserve_contract.repository import MODEL_FILE

MODEL: Final = "chaos"
CRASHING: Final = "crashing"
_MOST_ROWS: Final = 8
_TIMEOUT_S: Final = 60.0
_LARGEST_ID: Final = 1 << 22
"""Whole numbers up to twice this are exact in FP32."""


def write_model(folder: Path, version: int) -> Path:
    """Writes the model that answers as this version into a folder; gives the folder."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"two": np.float32(2), "by": np.array([0, version], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["twice"]), helper.make_node("Add", ["twice", "by"], ["y"])],
        "chaos",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(built.SerializeToString())
    return folder


def write_crashing_model(folder: Path) -> Path:
    """Writes a model that kills its process by a value, and no other; gives the folder.

    The lowest integer has no quotient by -1: the processor raises SIGFPE, which ONNX Runtime 1.31 does not prevent.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "by"], ["y"])],
        "crash",
        [helper.make_tensor_value_info("x", TensorProto.INT32, ["B", 1])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["B", 1])],
        [numpy_helper.from_array(np.array([-1], np.int32), "by")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(built.SerializeToString())
    return folder


def crash(address: str) -> None:
    """Calls the crashing model by the value that kills; where it is set aside, that is refused."""
    lowest = np.array([[np.iinfo(np.int32).min]], np.int32)
    with Client(address, retry=RetryPolicy(max_attempts=1), timeout_s=_TIMEOUT_S) as client, suppress(FitserveError):
        client.predict(CRASHING, lowest)


@dataclass(slots=True)
class Tally:
    """What the callers saw. Written by all of them.

    Args:
        answer_count: Right answers.
        wrong: Answers that are not what they must be, in words.
        failed: Calls that failed in spite of the client's retry, in words.
        longest_s: The longest call.
        versions: Versions that answered.
    """

    answer_count: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    versions: set[int] = field(default_factory=set)


class VerifiedLoad:
    """Callers that call until they are stopped.

    Args:
        addresses: Servers, `host:port`; each caller knows all of them, in an order of its own.
        caller_count: Threads.
        seed: Decides the sizes of the requests.
    """

    def __init__(self, addresses: Sequence[str], caller_count: int, seed: int) -> None:
        self.tally = Tally()
        self.known_versions: set[int] = set()
        self.lowest_version = 0
        """Every call that begins from now on must be answered by this version or a later one."""
        self._addresses = addresses
        self._seed = seed
        self._ids = itertools.count(1)
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call_on, args=(n,)) for n in range(caller_count)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Calls while the context is open."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join()

    def _call_on(self, number: int) -> None:
        random = Random(f"{self._seed} {number}")
        turned = [*self._addresses[number % len(self._addresses) :], *self._addresses[: number % len(self._addresses)]]
        with Client(f"ipv4:{','.join(turned)}", timeout_s=_TIMEOUT_S) as client:
            while not self._is_over.is_set():
                self._call(client, random.randint(1, _MOST_ROWS))

    def _call(self, client: Client, row_count: int) -> None:
        ids = [next(self._ids) % _LARGEST_ID for _ in range(row_count)]
        rows = np.array([(number, 0) for number in ids], np.float32)
        lowest, began_s = self.lowest_version, time.monotonic()
        try:
            found = client.predict(MODEL, rows)
            problem, errors = self._problem(rows, found, lowest), self.tally.wrong
        except FitserveError as error:
            found, problem, errors = None, f"{type(error).__name__} {error}", self.tally.failed
        took_s = time.monotonic() - began_s
        with self._lock:
            self.tally.longest_s = max(self.tally.longest_s, took_s)
            if problem:
                errors.append(f"{problem} (after {took_s:.1f} s)")
            elif found is not None:
                self.tally.answer_count += 1
                self.tally.versions.add(found.version)

    def _problem(self, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]], found: Prediction, lowest: int) -> str:
        expected = rows * 2 + np.array([0, found.version], np.float32)
        if found.version not in self.known_versions or found.version < lowest:
            return f"answer by version {found.version}: expected one of {lowest} or later that was published"
        if found.array.shape != expected.shape or not (found.array == expected).all():
            return f"answer by version {found.version}: expected {expected.tolist()}, got {found.array.tolist()}"
        return ""
