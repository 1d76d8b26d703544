"""The blocking and the asynchronous client against a running server, with numpy in and numpy out."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fitserve_client import (
    AsyncClient,
    CallCancelledError,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from fitserve_contract.manifest import Manifest
from fitserve_contract.repository import MANIFEST_FILE, MODEL_FILE, publish, publishing
from fitserve_contract.scoring import score
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.server import Server, running_server
from fitserve_service.settings import ServerSettings

ONE_OF_N = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("shirt", "boot", "bag"))
ANY_OF_N = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("joy", "anger", "fear"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)

Tensors = dict[str, tuple[int, list[int | str]]]
X: Tensors = {"x": (TensorProto.FLOAT, ["B", 3])}
Y: Tensors = {"y": (TensorProto.FLOAT, ["B", 3])}


def _onnx(operator: str, inputs: Tensors, outputs: Tensors) -> bytes:
    nodes = [helper.make_node(operator, list(inputs), [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in inputs.items()],
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _publish(root: Path, name: str, content: bytes, task: Task | None = None) -> int:
    with publishing(root, name) as aside:
        (aside / MODEL_FILE).write_bytes(content)
        (aside / MANIFEST_FILE).write_bytes(Manifest(name, "2026-01-01T00:00:00Z", (), (), task).to_bytes())
        return publish(root, name, aside).version


def _settings(root: Path, port: int = 0) -> ServerSettings:
    return ServerSettings(root, port=port, metrics_port=None, device="cpu", poll_interval_s=0.05)


@contextmanager
def _serving(root: Path) -> Iterator[tuple[Server, str]]:
    with running_server(_settings(root)) as server:
        yield server, f"127.0.0.1:{server.port}"


class _Blocking:
    """The asynchronous client, each of its methods run to its end: so that one test holds for both clients."""

    def __init__(self, target: str, **connection: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(target, **connection)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(*positional: Any, **named: Any) -> Any:
            return await getattr(self._client, method)(*positional, **named)

        return lambda *positional, **named: self._runner.run(call(*positional, **named))

    def __enter__(self) -> "_Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


both_clients = pytest.mark.parametrize("connect", [Client, _Blocking])


@both_clients
def test_numpy_in_and_numpy_out(tmp_path: Path, connect: Callable[..., Any]):
    _publish(tmp_path, "identity", _onnx("Identity", X, Y))
    with _serving(tmp_path) as (_, target), connect(target) as client:
        images = np.arange(6, dtype=np.float64).reshape(2, 3)
        prediction = client.predict("identity", images)
        assert (prediction.model, prediction.version) == ("identity", 1)
        assert prediction.array.dtype == np.float32
        assert np.array_equal(prediction, images)
        assert np.argmax(prediction, axis=1).tolist() == [2, 2]
        assert client.predict("identity", [[1, 2, 3]])["y"].tolist() == [[1, 2, 3]]
        assert client.predict("identity", {"x": [[1, 2, 3]]}, outputs=["y"], version=1).array.shape == (1, 3)


@both_clients
def test_several_inputs_and_outputs_by_name(tmp_path: Path, connect: Callable[..., Any]):
    two: Tensors = {"a": (TensorProto.INT64, ["B"]), "b": (TensorProto.INT64, ["B"])}
    sums: Tensors = {"s": (TensorProto.INT64, ["B"]), "t": (TensorProto.INT64, ["B"])}
    _publish(tmp_path, "add", _onnx("Add", two, sums))
    with _serving(tmp_path) as (_, target), connect(target) as client:
        prediction = client.predict("add", {"a": [1, 2], "b": np.array([3, 4], np.int8)})
        assert {name: array.tolist() for name, array in prediction.outputs.items()} == {"s": [4, 6], "t": [4, 6]}
        assert list(client.predict("add", {"b": [1], "a": [1]}, outputs=["t"]).outputs) == ["t"]
        with pytest.raises(ValueError, match="expected 1 output, got 2: s, t"):
            np.asarray(prediction)
        with pytest.raises(InvalidArgumentError, match="expected a mapping with 'a', 'b', got one list"):
            client.predict("add", [1, 2])


@both_clients
def test_the_servers_refusals_arrive_with_reason_and_names(tmp_path: Path, connect: Callable[..., Any]):
    _publish(tmp_path, "identity", _onnx("Identity", X, Y))
    _publish(tmp_path, "broken", b"no model")
    with _serving(tmp_path) as (_, target), connect(target) as client:
        with pytest.raises(NotFoundError) as raised:
            client.predict("nobody", [1.0])
        assert raised.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(NotFoundError) as raised:
            client.predict("identity", [1.0], version=9)
        assert raised.value.reason == "VERSION_NOT_FOUND"
        with pytest.raises(NotFoundError) as raised:
            client.predict("identity", [1.0], label="canary")
        assert raised.value.reason == "LABEL_NOT_FOUND"
        with pytest.raises(InvalidArgumentError, match=r"'x'.*expected.*got \(2, 2\)") as refused:
            client.predict("identity", np.zeros((2, 2)))
        assert refused.value.reason == "INVALID_INPUT"
        with pytest.raises(InvalidArgumentError, match="'z'"):
            client.predict("identity", np.zeros((1, 3)), outputs=["z"])
        with pytest.raises(FailedPreconditionError) as failed:
            client.predict("broken", [1.0])
        assert failed.value.reason == "MODEL_FAILED"
        with pytest.raises(FailedPreconditionError, match="task") as untasked:
            client.evaluate("identity", np.zeros((2, 3)), [0, 1])
        assert untasked.value.reason == "NO_TASK"


@both_clients
@pytest.mark.parametrize("batch_size", [None, 1, 7, 1000])
def test_an_evaluation_equals_the_score_of_the_whole_set(
    tmp_path: Path, connect: Callable[..., Any], batch_size: int | None
):
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((50, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 50).astype(np.uint8)
    _publish(tmp_path, "identity", _onnx("Identity", X, Y), ONE_OF_N)
    with _serving(tmp_path) as (_, target), connect(target) as client:
        evaluation = client.evaluate("identity", logits.astype(np.float64), labels, batch_size=batch_size)
    assert evaluation.sums == score(ONE_OF_N, logits, labels)
    assert evaluation["accuracy"] == (logits.argmax(1) == labels).mean()
    if batch_size is not None:
        assert evaluation.batch_count == -(-50 // batch_size)


@both_clients
def test_the_other_tasks_are_scored_too(tmp_path: Path, connect: Callable[..., Any]):
    rng = np.random.default_rng(6)
    outputs = rng.random((20, 3)).astype(np.float32)
    truth = rng.random((20, 3)) < 0.4
    targets = rng.standard_normal((20, 3))
    _publish(tmp_path, "many", _onnx("Identity", X, Y), ANY_OF_N)
    _publish(tmp_path, "values", _onnx("Identity", X, Y), VALUES)
    with _serving(tmp_path) as (_, target), connect(target) as client:
        many = client.evaluate("many", outputs, truth.astype(np.int64), batch_size=6)
        values = client.evaluate("values", {"x": outputs}, targets, batch_size=6)
    assert many.sums == score(ANY_OF_N, outputs, truth)
    assert values.sums == score(VALUES, outputs, targets.astype(np.float32))
    assert values["r_squared"] < 0 < values["mse"]


@both_clients
def test_labels_that_no_class_has_end_the_evaluation(tmp_path: Path, connect: Callable[..., Any]):
    _publish(tmp_path, "identity", _onnx("Identity", X, Y), ONE_OF_N)
    with _serving(tmp_path) as (_, target), connect(target) as client:
        with pytest.raises(InvalidArgumentError, match=r"labels: expected 0\.\.2, got 3") as raised:
            client.evaluate("identity", np.zeros((40, 3)), [0] * 39 + [3], batch_size=4)
        assert raised.value.reason == "INVALID_LABELS"


@both_clients
def test_models_are_listed_described_unloaded_and_loaded(tmp_path: Path, connect: Callable[..., Any]):
    _publish(tmp_path, "b", _onnx("Identity", X, Y), ONE_OF_N)
    _publish(tmp_path, "a", b"no model")
    with _serving(tmp_path) as (_, target), connect(target) as client:
        client.wait_until_ready("b", version=1)
        assert [(model.name, model.is_ready) for model in client.models()] == [("a", False), ("b", True)]
        failed = client.model("a").versions[0]
        assert failed.state == "FAILED"
        assert failed.reason
        details = client.details("b")
        assert [(spec.name, spec.datatype, spec.shape) for spec in details.inputs] == [("x", "FP32", ("B", 3))]
        assert (details.task, details.version.execution_provider) == (ONE_OF_N, "CPUExecutionProvider")
        assert "max_batch_size" in details.effective_config_toml
        client.unload("b")
        assert not client.model("b").is_ready
        assert client.load("b").is_ready
        with pytest.raises(FailedPreconditionError):
            client.load("a")
        with pytest.raises(FailedPreconditionError, match="model 'a' version 1: expected state READY, got FAILED"):
            client.wait_until_ready("a")


@both_clients
def test_waiting_ends_when_the_model_is_published(tmp_path: Path, connect: Callable[..., Any]):
    with _serving(tmp_path) as (_, target), connect(target) as client:
        client.wait_until_ready()
        assert client.models() == ()
        with pytest.raises(TimeoutError, match=r"model 'late': expected to be READY .* got: .*'late'"):
            client.wait_until_ready("late", timeout_s=0.05)
        _publish(tmp_path, "late", _onnx("Identity", X, Y))
        client.wait_until_ready("late")
        assert client.model("late").is_ready


@both_clients
def test_a_message_too_large_to_send_is_said_so(tmp_path: Path, connect: Callable[..., Any]):
    _publish(tmp_path, "identity", _onnx("Identity", X, Y))
    with _serving(tmp_path) as (_, target), connect(target, max_message_bytes=4096) as client:
        with pytest.raises(ResourceExhaustedError) as raised:
            client.predict("identity", np.zeros((1000, 3)))
        assert raised.value.reason == "TOO_LARGE"


@both_clients
def test_a_new_version_with_another_signature_is_followed(tmp_path: Path, connect: Callable[..., Any]):
    _publish(tmp_path, "m", _onnx("Identity", X, Y))
    with _serving(tmp_path) as (_, target), connect(target) as client:
        assert client.predict("m", [[1, 2, 3]]).array.dtype == np.float32
        integers = {name: (TensorProto.INT64, ["B", 2]) for name in "xy"}
        content = _onnx("Identity", {"x": integers["x"]}, {"y": integers["y"]})
        _publish(tmp_path, "m", content)
        client.wait_until_ready("m", version=2)
        prediction = client.predict("m", [[1, 2]])
        assert (prediction.version, prediction.array.dtype) == (2, np.int64)


def test_an_evaluation_under_a_hot_swap_is_of_one_version(tmp_path: Path):
    rng = np.random.default_rng(7)
    logits, labels = rng.standard_normal((400, 3)).astype(np.float32), rng.integers(0, 3, 400)
    expected = {1: score(ONE_OF_N, logits, labels), 2: score(ONE_OF_N, -logits, labels)}
    _publish(tmp_path, "m", _onnx("Identity", X, Y), ONE_OF_N)
    with _serving(tmp_path) as (_, target), Client(target) as client:
        seen = [client.evaluate("m", logits, labels, batch_size=2)]
        publisher = threading.Thread(target=_publish, args=(tmp_path, "m", _onnx("Neg", X, Y), ONE_OF_N))
        publisher.start()
        while seen[-1].version == 1:
            seen.append(client.evaluate("m", logits, labels, batch_size=2))
        publisher.join()
    assert expected[1] != expected[2]
    assert all(evaluation.sums == expected[evaluation.version] for evaluation in seen)


def test_a_restart_of_the_server_loses_no_call(tmp_path: Path):
    _publish(tmp_path, "identity", _onnx("Identity", X, Y))
    callers = [_Caller(), _Caller()]
    with running_server(_settings(tmp_path)) as server:
        port = server.port
        for caller in callers:
            caller.start(f"127.0.0.1:{port}")
        for caller in callers:
            caller.await_answers(20)
    with running_server(_settings(tmp_path, port)):
        for caller in callers:
            caller.await_answers(20)
        for caller in callers:
            caller.stop()
    assert [caller.failure for caller in callers] == [None, None]


class _Caller:
    """Calls Predict over and over on a thread of its own."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._answered = threading.Semaphore(0)
        self._is_over = threading.Event()

    def start(self, target: str) -> None:
        self._thread = threading.Thread(target=self._work, args=(target,))
        self._thread.start()

    def await_answers(self, count: int) -> None:
        """Waits for answers from now on."""
        while self._answered.acquire(blocking=False):
            pass
        for _ in range(count):
            self._answered.acquire()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self, target: str) -> None:
        with Client(target) as client:
            while not self._is_over.is_set():
                try:
                    client.predict("identity", [[1.0, 2.0, 3.0]])
                except Exception as error:
                    self.failure = error
                    self._answered.release(1000)
                    return
                self._answered.release()


@both_clients
def test_a_closed_client_says_that_it_is_closed(connect: Callable[..., Any]):
    with connect("127.0.0.1:1") as client:
        client.close()
        with pytest.raises(CallCancelledError, match="expected to be open"):
            client.models()


def test_one_client_serves_many_threads(tmp_path: Path):
    _publish(tmp_path, "identity", _onnx("Identity", X, Y))
    answers: list[bool] = []

    def call(client: Client, number: int) -> None:
        answers.extend(client.predict("identity", [[number, 0, 0]]).array[0, 0] == number for _ in range(20))

    with _serving(tmp_path) as (_, target), Client(target) as client:
        threads = [threading.Thread(target=call, args=(client, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [True] * 160


def test_a_cancelled_task_ends_at_once(tmp_path: Path):
    async def cancel_while_waiting(target: str) -> None:
        async with AsyncClient(target) as client:
            waiting = asyncio.ensure_future(client.wait_until_ready("never"))
            await client.models()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    with _serving(tmp_path) as (_, target):
        asyncio.run(cancel_while_waiting(target))


def test_the_client_needs_neither_the_service_nor_any_framework():
    code = "import sys, fitserve_client.cli, fitserve_client; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "grpc" in loaded
    assert not {"torch", "onnx", "onnxruntime", "fitserve_service", "fitserve_training", "PIL"} & set(loaded)
