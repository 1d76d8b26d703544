"""Requests/s and latency over the wire: Predict on a running server, answers checked in the same run.

Levels of calls in flight take turns (A B C A B C …). Shapes: B examples of a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_benchmarks.contestants import OnnxRuntimeContestant
from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.load import LoadPlan, LoadResult, load_in_process
from fitserve_benchmarks.statistics import is_unstable, percentile
from fitserve_benchmarks.subject import Array, Batch, InputSpec, Subject, SubjectError, open_subject, random_batches
from fitserve_client import Client
from fitserve_client.models import VersionDetails
from fitserve_contract.datatypes import NUMPY_DTYPES, datatype_of
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tensor_bytes import decode, encode

PREDICT: Final = "/fitserve.inference.v1.InferenceService/Predict"
POOL_SIZE: Final = 16
"""Different random requests that are sent in rotation."""

TURNS: Final = 3
"""Turns of each level; a level whose turns differ by more than 10 % is unstable."""

MAX_CONNECTIONS: Final = 4
_AGREEMENT: Final = 1e-4
_SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class WirePlan:
    """What is measured.

    Args:
        server: `host:port`.
        model: Model name.
        batch_size: Examples in a request, >= 1.
        in_flight: Levels of calls in flight, each >= 1.
        duration_s: Time for each level, over all its turns.
        connections: TCP connections; None for at most four.
        repository: Repository that the server serves, to check answers against ONNX Runtime itself; None checks them
            against the server's own to one call at a time.
    """

    server: str
    model: str
    batch_size: int = 1
    in_flight: tuple[int, ...] = (1, 8, 32)
    duration_s: float = 6.0
    connections: int | None = None
    repository: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. ValueError: `server` is not `host:port`."""
        host, colon, port = self.server.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"server: expected HOST:PORT, got '{self.server}'")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class WireRow:
    """One level.

    Args:
        in_flight: Calls in flight at any time.
        connections: TCP connections they were spread over.
        batch_size: Examples in a request.
        requests_per_s: Answers a second, median of the turns.
        turn_rates: The same for each turn, in order.
        p50_s: Median latency.
        p99_s: 99th percentile; None where there are too few samples to print it.
        sample_count: Latencies measured.
        failed_count: Calls that were answered with an error.
        checked_count: Answers checked.
        wrong_count: Checked answers that differ from the expected ones by more than 1e-4 · max(1, largest).
        load_processor_share: Processors that the load itself kept busy, 0..1 for a single-threaded one.
    """

    in_flight: int
    connections: int
    batch_size: int
    requests_per_s: float
    turn_rates: tuple[float, ...]
    p50_s: float
    p99_s: float | None
    sample_count: int
    failed_count: int
    checked_count: int
    wrong_count: int
    load_processor_share: float

    @property
    def is_unstable(self) -> bool:
        """Tells whether the turns differ by more than 10 %."""
        return is_unstable(self.turn_rates)

    @property
    def is_right(self) -> bool:
        """Tells whether there were answers, none failed and none checked was wrong."""
        return self.sample_count > 0 and not self.failed_count and not self.wrong_count


@dataclass(frozen=True, slots=True)
class WireResult:
    """A whole run.

    Args:
        plan: What was measured.
        version: Version that answered.
        checked_against: Where the expected answers came from.
        environment: Hardware and versions.
        rows: One for each level.
    """

    plan: WirePlan
    version: int
    checked_against: str
    environment: Mapping[str, Any]
    rows: tuple[WireRow, ...]

    def save(self, path: Path) -> None:
        """Writes the result as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"schema_version": _SCHEMA_VERSION, "turns": TURNS, **asdict(self)}
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def measure_wire(plan: WirePlan, *, say: Callable[[str], None]) -> WireResult:
    """Measures a running server.

    Args:
        plan: What is measured.
        say: Takes a line of progress.

    Raises:
        FitserveError: the server cannot be asked for the model.
        LoadFailedError: the load could not be put on it.
        SubjectError: the model's inputs cannot be invented.
    """
    with Client(plan.server) as client:
        details = client.details(plan.model)
        batches = random_batches(_subject(plan, details), plan.batch_size, POOL_SIZE)
        answer, checked_against = _oracle(plan, details, client)
        expected = [answer(batch) for batch in batches]
    requests = [predict_request(plan.model, details.version.version, batch) for batch in batches]
    environment = describe_environment()
    turns: dict[int, list[LoadResult]] = {level: [] for level in plan.in_flight}
    for turn in range(TURNS):
        for level, results in turns.items():
            say(f"{plan.model} over the wire: {level} in flight, turn {turn + 1} of {TURNS}")
            results.append(load_in_process(_load_plan(plan, level), requests))
    rows = tuple(_row(_load_plan(plan, level), plan, results, expected) for level, results in turns.items())
    return WireResult(plan, details.version.version, checked_against, environment, rows)


def predict_request(model: str, version: int, batch: Batch) -> bytes:
    """Makes a serialized PredictRequest for one version."""
    tensors = [
        tensor_pb2.Tensor(
            name=name, datatype=(kind := datatype_of(array.dtype)), shape=array.shape, content=encode(array, kind)
        )
        for name, array in batch.items()
    ]
    request = inference_pb2.PredictRequest(model=tensor_pb2.ModelSpec(name=model, version=version), inputs=tensors)
    return request.SerializeToString()


def predict_answer(message: bytes) -> tuple[Array, ...]:
    """Reads the outputs of a serialized PredictResponse."""
    response = inference_pb2.PredictResponse.FromString(message)
    return tuple(decode(t.name, t.datatype, tuple(t.shape), t.content) for t in response.outputs)


def is_as_expected(found: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Tells whether an answer has the expected outputs, within 1e-4 · max(1, largest expected value)."""
    if [array.shape for array in found] != [array.shape for array in expected]:
        return False
    pairs = zip(found, expected, strict=True)
    return all(bool(np.all(np.abs(a - b) <= _AGREEMENT * np.abs(b).max(initial=1.0))) for a, b in pairs)


def _subject(plan: WirePlan, details: VersionDetails) -> Subject:
    """What random requests are made for: the repository's version where it is given, else the server's signature."""
    if plan.repository is not None:
        return open_subject(Path(plan.repository), plan.model, details.version.version)
    inputs = tuple(_input_spec(spec) for spec in details.inputs if not spec.is_optional)
    return Subject(plan.model, details.version.version, Path(), inputs)


def _input_spec(spec: TensorSpec) -> InputSpec:
    if not spec.shape or isinstance(spec.shape[0], int):
        raise SubjectError(
            f"input '{spec.name}': expected a free first axis that counts the examples, got {spec.shape}"
        )
    return InputSpec(spec.name, NUMPY_DTYPES[spec.datatype], spec.shape)


def _oracle(
    plan: WirePlan, details: VersionDetails, client: Client
) -> tuple[Callable[[Batch], tuple[Array, ...]], str]:
    version = details.version.version
    if plan.repository is None:
        return lambda batch: tuple(
            client.predict(plan.model, dict(batch), version=version).outputs.values()
        ), "the server's answers to one call at a time"
    contestant = OnnxRuntimeContestant(open_subject(Path(plan.repository), plan.model, version), "cpu", 1)
    contestant.prepare({})
    return contestant.run, "ONNX Runtime in this process"


def _load_plan(plan: WirePlan, level: int) -> LoadPlan:
    host, port = plan.address
    connections = min(level, plan.connections or MAX_CONNECTIONS)
    return LoadPlan(host, port, PREDICT, level, connections, plan.duration_s / TURNS)


def _row(load: LoadPlan, plan: WirePlan, turns: Sequence[LoadResult], expected: Sequence[tuple[Array, ...]]) -> WireRow:
    latencies_s = np.concatenate([turn.latencies_s for turn in turns])
    rates = tuple(len(turn.latencies_s) / turn.duration_s for turn in turns)
    samples = [sample for turn in turns for sample in turn.samples]
    return WireRow(
        in_flight=load.in_flight,
        connections=load.connections,
        batch_size=plan.batch_size,
        requests_per_s=float(np.median(rates)),
        turn_rates=rates,
        p50_s=float(np.median(latencies_s)) if latencies_s.size else 0.0,
        p99_s=percentile(latencies_s, 0.99),
        sample_count=latencies_s.size,
        failed_count=sum(turn.failed_count for turn in turns),
        checked_count=len(samples),
        wrong_count=sum(not is_as_expected(predict_answer(answer), expected[index]) for index, answer in samples),
        load_processor_share=sum(turn.cpu_s for turn in turns)
        / sum(turn.duration_s + load.warm_up_s for turn in turns),
    )
