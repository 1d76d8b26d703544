"""Runs with kept buffers: the same answers as plain runs, graphs named for each shape, and captures alone.

The buffers lie in the CPU's memory here, and the runtime passes the graph's name by; the calls are those of a GPU.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import builders
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.onnx_file import read_facts
from fitserve_service import device_runs
from fitserve_service.device_runs import GRAPH_ID, CaptureGate, DeviceRuns, Tools
from fitserve_service.run_errors import DeviceError, GraphError
from fitserve_service.session import CPU_PROVIDER, CUDA_PROVIDER, Session, SessionOptions, cuda_problem
from fitserve_service.signature import Tensor


def new_buffer(shape: Any, dtype: Any) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cpu", 0)


TOOLS = Tools(new_buffer, onnxruntime.RunOptions)


def scaled(factor: float = 2.0) -> bytes:
    return builders.scaled(factor, width=4)


class Recording:
    """A session of the runtime that remembers which graph each run named."""

    def __init__(self, model: bytes) -> None:
        self._session = onnxruntime.InferenceSession(model, providers=[CPU_PROVIDER])
        self.graphs: list[str] = []
        self.threads: set[str] = set()

    def run(self, names: Any, feed: Any, options: Any) -> Any:
        self._remember(options)
        return self._session.run(names, feed, options)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._remember(options)
        self._session.run_with_iobinding(binding, options)

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def _remember(self, options: Any) -> None:
        self.graphs.append(options.get_run_config_entry(GRAPH_ID))
        self.threads.add(threading.current_thread().name)


def rows(count: int, offset: float = 0.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(4 * count, dtype=np.float32).reshape(count, 4) + np.float32(offset)


def new_input(node: Any, index: int) -> np.ndarray[Any, Any]:
    shape = [axis if isinstance(axis, int) else 3 for axis in node.shape]
    dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[node.type]
    return (np.arange(np.prod(shape)) + 7 * index).reshape(shape).astype(dtype)


def kept_runs(session: Any, *sizes: int, has_graphs: bool = False) -> DeviceRuns:
    runs = DeviceRuns(session, ["x"], ["y"], TOOLS, has_graphs=has_graphs)
    for size in sizes:
        runs.keep({"x": rows(size)})
    return runs


@pytest.mark.parametrize("has_graphs", [False, True])
def test_kept_and_plain_shapes_answer_as_the_session_does(has_graphs: bool) -> None:
    session = onnxruntime.InferenceSession(scaled(3.0), providers=[CPU_PROVIDER])
    runs = kept_runs(session, 1, 4, has_graphs=has_graphs)

    assert runs.kept_forms == (((1, 4),), ((4, 4),))
    for size in (1, 4, 3, 1, 4):
        (answer,) = runs.run({"x": rows(size, size)}, ["y"], None)
        np.testing.assert_array_equal(answer, session.run(None, {"x": rows(size, size)})[0])
    assert runs.kept_forms == (((1, 4),), ((4, 4),))


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.floats(-5, 5, width=32)), max_size=12))
def test_an_answer_is_the_callers_own_whatever_runs_after_it(runs_wanted: list[tuple[int, float]]) -> None:
    session = onnxruntime.InferenceSession(scaled(), providers=[CPU_PROVIDER])
    runs = kept_runs(session, 1, 2)
    answers = [runs.run({"x": rows(size, offset)}, ["y"], None)[0] for size, offset in runs_wanted]

    for (size, offset), answer in zip(runs_wanted, answers, strict=True):
        np.testing.assert_array_equal(answer, rows(size, offset) * np.float32(2.0))


def test_outputs_come_in_the_order_asked_for() -> None:
    session = onnxruntime.InferenceSession(builders.two_in_two_out(), providers=[CPU_PROVIDER])
    names, outputs = [node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()]
    runs = DeviceRuns(session, names, outputs, TOOLS, has_graphs=False)
    feed = {node.name: new_input(node, index) for index, node in enumerate(session.get_inputs())}
    runs.keep(feed)

    assert len(runs.kept_forms) == 1
    for wanted in (outputs, outputs[::-1], outputs[1:]):
        for found, expected in zip(runs.run(feed, wanted, None), session.run(wanted, feed), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_each_shape_has_a_graph_of_its_own_on_one_thread_and_other_runs_have_none() -> None:
    session = Recording(scaled())
    runs = kept_runs(session, 1, 4, has_graphs=True)
    assert session.graphs == ["-1", "1", "-1", "2"]
    assert {name.split("_")[0] for name in session.threads} == {"graphs"}
    session.graphs.clear()
    for size in (4, 1, 3):
        runs.run({"x": rows(size)}, ["y"], None)
    assert session.graphs == ["2", "1", "-1"]


def test_a_callers_options_are_those_of_the_run_and_name_its_graph() -> None:
    session = Recording(scaled())
    runs = kept_runs(session, 1, has_graphs=True)
    session.graphs.clear()
    options = onnxruntime.RunOptions()
    runs.run({"x": rows(1)}, ["y"], options)
    runs.run({"x": rows(2)}, ["y"], options)
    assert session.graphs == ["1", "-1"]
    options.terminate = True
    with pytest.raises(RuntimeError, match=r"terminate flag"):
        runs.run({"x": rows(1)}, ["y"], options)
    assert len(runs.run({"x": rows(1)}, ["y"], None)) == 1


def test_a_strided_view_is_taken_as_it_looks() -> None:
    runs = kept_runs(onnxruntime.InferenceSession(scaled(), providers=[CPU_PROVIDER]), 3)
    array = np.arange(12, dtype=np.float32).reshape(4, 3).T

    np.testing.assert_array_equal(runs.run({"x": array}, ["y"], None)[0], array * np.float32(2.0))


def test_a_run_that_cannot_be_captured_is_told_apart_from_values_that_are_refused() -> None:
    class Uncapturable(Recording):
        def run_with_iobinding(self, *_: Any) -> None:
            raise RuntimeError("Error in execution: CUDA failure 900: operation not permitted when stream is capturing")

        def _remember(self, options: Any) -> None:
            """What is refused need not be remembered."""

    with pytest.raises(GraphError, match=r"^a run could not be captured as a CUDA graph: .*900"):
        kept_runs(Uncapturable(scaled()), 1, has_graphs=True)
    with pytest.raises(DeviceError, match="900"):
        kept_runs(Uncapturable(scaled()), 1, has_graphs=False)


def test_what_kept_buffers_is_gone_with_its_last_user() -> None:
    session = onnxruntime.InferenceSession(scaled(), providers=[CPU_PROVIDER])
    runs = kept_runs(session, 1, has_graphs=True)
    runs.run({"x": rows(1)}, ["y"], None)
    gone = weakref.ref(session)
    gc.disable()
    try:
        del session, runs
        # The thread lets go of its last piece of work a moment after its result.
        for thread in threading.enumerate():
            if thread.name.startswith("graphs"):
                thread.join(10.0)
        assert gone() is None
    finally:
        gc.enable()


def test_a_session_is_gone_with_its_last_user() -> None:
    model = scaled()
    session = Session(model, read_facts(model), SessionOptions("cpu"))
    session.run({"x": Tensor("FP32", rows(1))}, ["y"])
    gone = weakref.ref(session)
    gc.disable()
    try:
        del session
        assert gone() is None
    finally:
        gc.enable()


def test_a_capture_waits_for_those_inside() -> None:
    gate, events = CaptureGate(), []

    def capture() -> None:
        with gate.alone():
            events.append("captured")

    capturing = threading.Thread(target=capture)
    with gate.together(), gate.together():
        capturing.start()
        events.append("used")
    capturing.join()
    with gate.together():
        events.append("used again")
    assert events == ["used", "captured", "used again"]


def test_nobody_is_inside_with_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, inside, seen = CaptureGate(), set[int](), []

    def use(number: int) -> None:
        for _ in range(300):
            with gate.alone() if number % 2 else gate.together():
                inside.add(number)
                seen.append(frozenset(inside))
                inside.discard(number)

    monkeypatch.setattr(device_runs, "_PATIENCE_S", 0.0)
    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1200
    assert all(len(numbers) == 1 or not any(number % 2 for number in numbers) for numbers in seen)


@pytest.mark.needs_gpu
@pytest.mark.parametrize("has_graphs", [False, True])
def test_on_a_gpu_kept_buckets_answer_as_plain_runs_do(has_graphs: bool) -> None:
    assert cuda_problem() is None
    model = scaled(3.0)
    options = SessionOptions("cuda", batch_size_buckets=(1, 4), has_graphs=has_graphs)
    session = Session(model, read_facts(model), options)
    for size in (1, 4):
        session.keep({"x": Tensor("FP32", rows(size))})
    for size in (1, 4, 3, 1):
        answer = session.run({"x": Tensor("FP32", rows(size, size))}, ["y"])["y"]
        np.testing.assert_allclose(answer.array, rows(size, size) * np.float32(3.0), rtol=1e-6)
    assert session.provider == CUDA_PROVIDER


@pytest.mark.needs_gpu
def test_on_a_gpu_graphs_replay_while_another_session_allocates() -> None:
    assert cuda_problem() is None
    model = scaled(3.0)
    options = SessionOptions("cuda", batch_size_buckets=(1,))
    first, second = (Session(model, read_facts(model), options) for _ in range(2))
    first.keep({"x": Tensor("FP32", rows(1))})
    worker = threading.Thread(target=second.keep, args=({"x": Tensor("FP32", rows(1))},))
    worker.start()
    for offset in range(200):
        answer = first.run({"x": Tensor("FP32", rows(1, offset))}, ["y"])["y"].array
        np.testing.assert_allclose(answer, rows(1, offset) * np.float32(3.0), rtol=1e-6)
    worker.join()
    assert second.run({"x": Tensor("FP32", rows(1))}, ["y"])["y"].array.shape == (1, 4)
