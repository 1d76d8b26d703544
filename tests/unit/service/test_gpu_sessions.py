"""Sessions as they are on a GPU, with the CPU's provider in the place of CUDA's: all else is what a GPU would see.

What only a GPU shows is in the tests marked `needs_gpu`.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

from fitserve_contract.onnx_file import read_facts
from fitserve_service import session as session_module
from fitserve_service.cuda_libraries import Driver
from fitserve_service.device_runs import DeviceRuns
from fitserve_service.loader import Loader
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.placement import Placement
from fitserve_service.run_errors import DeviceMemoryError, GraphError
from fitserve_service.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    Session,
    SessionError,
    SessionOptions,
    cuda_problem,
    cuda_version,
)
from fitserve_service.signature import Tensor


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Puts the CPU's provider in the place of CUDA's; gives the options that CUDA's would have been told."""
    told: list[dict[str, str]] = []

    def providers(options: SessionOptions) -> list[Any]:
        told.append(session_module.cuda_options(options))
        return [(CPU_PROVIDER, {})]

    monkeypatch.setattr(session_module, "_providers", providers)
    monkeypatch.setattr(session_module, "CUDA_PROVIDER", CPU_PROVIDER)
    monkeypatch.setattr(session_module, "_GPU", "cpu")
    return told


def rows(count: int) -> dict[str, Tensor]:
    return {"x": Tensor("FP32", np.arange(2.0 * count, dtype=np.float32).reshape(count, 2))}


def opened(model: bytes, **options: Any) -> Session:
    return Session(model, read_facts(model), SessionOptions("cuda", **options))


def kept(session: Session) -> tuple[Any, ...]:
    assert session._device_runs is not None
    return session._device_runs.kept_forms


@pytest.mark.parametrize("has_graphs", [False, True])
def test_buckets_keep_their_buffers_and_every_size_answers(monkeypatch: pytest.MonkeyPatch, has_graphs: bool) -> None:
    told = stand_in(monkeypatch)
    session = opened(builders.scaled(3.0), batch_size_buckets=(1, 4), has_graphs=has_graphs)
    for size in (1, 2, 4):
        session.keep(rows(size))

    assert ("enable_cuda_graph" in told[0]) is has_graphs
    assert kept(session) == (((1, 2),), ((4, 2),))
    assert session.placement.node_counts == {CPU_PROVIDER: 1}
    for size in (1, 2, 3, 4, 1):
        answer = session.run(rows(size), ["y"])["y"]
        np.testing.assert_array_equal(answer.array, rows(size)["x"].array * 3)


def test_a_model_of_one_shape_keeps_it_without_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    told = stand_in(monkeypatch)
    model = builders.fixed_shape()
    session = opened(model)
    name, shape = session.inputs[0].name, tuple(int(axis or 0) for axis in session.inputs[0].shape or ())
    session.keep({name: Tensor("FP32", np.ones(shape, np.float32))})

    assert told[0]["enable_cuda_graph"] == "1"
    assert kept(session) == ((shape,),)


@pytest.mark.parametrize("datatype", ["BF16", "BYTES"])
def test_what_no_graph_takes_is_refused_with_graphs_and_runs_without(
    monkeypatch: pytest.MonkeyPatch, datatype: str
) -> None:
    stand_in(monkeypatch)
    model = builders.identity(datatype)
    with pytest.raises(GraphError, match="expected numbers of fixed shapes behind the batch axis"):
        opened(model, batch_size_buckets=(1,))
    session = opened(model, batch_size_buckets=(1,), has_graphs=False)
    array = np.full((1, 2), b"a", object) if datatype == "BYTES" else np.full((1, 2), 0x3F80, "<u2")
    session.keep({"x": Tensor(datatype, array)})
    assert kept(session) == ()
    assert session.run({"x": Tensor(datatype, array)}, ["y"])["y"].array.tolist() == array.tolist()


def test_a_version_is_loaded_with_its_buckets_kept_and_says_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = stand_in(monkeypatch)
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    overrides = Overrides({"max_batch_size": 4, "batch_size_buckets": (1, 4), "device_memory_limit_bytes": 1 << 20})
    served = Loader("cuda", device_memory_limit_bytes=1 << 30).load(path, overrides)

    assert kept(served.session) == (((1, 2),), ((4, 2),))
    assert served.config.cuda_graphs
    assert re.search(r'device = "cuda"  # nodes: CPUExecutionProvider 1$', served.effective_toml, re.MULTILINE)
    assert {options["gpu_mem_limit"] for options in told} == {str(1 << 20)}
    Loader("cuda", device_memory_limit_bytes=1 << 30).load(path, Overrides({}))
    assert told[-1]["gpu_mem_limit"] == str(1 << 30)


def test_words_with_buckets_are_served_without_graphs_and_say_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch)
    path = builders.publish_version(tmp_path, "m", builders.identity("BYTES"))
    served = Loader("cuda").load(path, Overrides({"max_batch_size": 4, "batch_size_buckets": (1, 4)}))

    assert not served.config.cuda_graphs
    assert "cuda_graphs = false  # CUDA graphs: expected numbers of fixed shapes" in served.effective_toml


def test_a_capture_that_fails_at_the_warm_up_leaves_bound_buffers_without_graphs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = stand_in(monkeypatch)
    capture = DeviceRuns._capture

    def failing(runs: DeviceRuns, kept: Any) -> None:
        if runs._has_graphs:
            raise GraphError("a run could not be captured as a CUDA graph: 901")
        capture(runs, kept)

    monkeypatch.setattr(DeviceRuns, "_capture", failing)
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    served = Loader("cuda").load(path, Overrides({"max_batch_size": 4, "batch_size_buckets": (1, 4)}))

    assert "cuda_graphs = false  # a run could not be captured as a CUDA graph: 901" in served.effective_toml
    assert kept(served.session) == (((1, 2),), ((4, 2),))
    assert ["enable_cuda_graph" in options for options in told] == [True, False]


def test_nodes_left_to_the_cpu_refuse_the_version_unless_they_are_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(
        session_module, "placement_of", lambda *_: Placement({CPU_PROVIDER: 3}, {"NonMaxSuppression": 2})
    )
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    with pytest.raises(LoadError, match=r"^device 'cuda': expected no node that .* got 2: NonMaxSuppression ×2; allow"):
        Loader("cuda").load(path, Overrides({}))
    served = Loader("cuda").load(path, Overrides({"max_cpu_nodes": 2}))
    assert "(NonMaxSuppression ×2 left over)" in served.effective_toml
    assert Loader("auto").load(path, Overrides({})).config.device == "auto"


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "cuda_problem", lambda: None)
    monkeypatch.setattr(session_module, "cuda_version", lambda: "13.0")
    monkeypatch.setattr(session_module, "ask_driver", lambda: Driver("", (13, 0), 2))
    model = builders.scaled()
    with pytest.raises(SessionError, match=r"^device 'cuda:2': GPU 2: expected 0\.\.1, the driver has 2$"):
        Session(model, read_facts(model), SessionOptions("cuda:2"))


def test_a_gpu_that_takes_no_more_leaves_the_version_to_the_cpu_where_nobody_insists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(session_module, "device_kind", lambda device: "cpu" if device == "cpu" else "cuda")
    monkeypatch.setattr("fitserve_service.loader.device_kind", session_module.device_kind)
    real = session_module._providers

    def full(options: SessionOptions) -> list[Any]:
        if options.device != "cpu":
            raise SessionError("the GPU has no memory for the model")
        return real(options)

    monkeypatch.setattr(session_module, "_providers", full)
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    with pytest.raises(LoadError, match=r"^the GPU has no memory for the model$"):
        Loader("cuda").load(path, Overrides({}))
    served = Loader("auto").load(path, Overrides({}))

    assert served.config.device == "cpu"
    note = 'device = "cpu"  # the GPU does not take it: the GPU has no memory for the model'
    assert note in served.effective_toml.splitlines()
    assert "m version 1: the GPU does not take it: the GPU has no memory for the model; it is served" in caplog.text


def test_memory_that_is_gone_is_told_of_the_run_and_the_session_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    session = opened(builders.scaled(), batch_size_buckets=(1,))
    session.keep(rows(1))
    with monkeypatch.context() as broken:
        runs = session._device_runs

        def full(*_: Any) -> None:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

        broken.setattr(runs, "run", full)
        with pytest.raises(DeviceMemoryError, match="send fewer examples at once"):
            session.run(rows(1), ["y"])
    assert session.run(rows(1), ["y"])["y"].array.shape == (1, 2)


@pytest.mark.needs_gpu
def test_on_a_gpu_a_version_is_loaded_with_graphs_and_every_node_on_it(tmp_path: Path) -> None:
    assert cuda_problem() is None
    path = builders.publish_version(tmp_path, "m", builders.linear())
    served = Loader("cuda").load(path, Overrides({"max_batch_size": 4, "batch_size_buckets": (1, 4)}))

    assert served.provider == CUDA_PROVIDER
    assert served.config.cuda_graphs
    assert kept(served.session) == (((1, 2),), ((4, 2),))


@pytest.mark.needs_gpu
def test_on_a_gpu_a_memory_limit_is_an_error_that_names_it_and_a_smaller_run_goes_on() -> None:
    assert cuda_problem() is None
    model = builders.slow(rounds=2)
    session = opened(model, device_memory_limit_bytes=16 << 20)
    small, large = (Tensor("FP32", np.ones((size, 512), np.float32)) for size in (1, 1 << 16))
    with pytest.raises(DeviceMemoryError, match="the GPU has no memory left for this run"):
        session.run({"x": large}, ["y"])
    assert session.run({"x": small}, ["y"])["y"].array.shape == (1, 512)


@pytest.mark.needs_gpu
def test_on_a_gpu_memory_is_given_back_after_the_last_user() -> None:
    assert cuda_problem() is None

    runtime = ctypes.CDLL(f"libcudart.so.{cuda_version().split('.')[0]}")

    def free_bytes() -> int:
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        assert runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value

    model, tensor = builders.slow(rounds=2), Tensor("FP32", np.ones((1 << 16, 512), np.float32))
    opened(model).run({"x": tensor}, ["y"])  # what CUDA itself takes, it keeps
    before = free_bytes()
    session = opened(model)
    session.run({"x": tensor}, ["y"])
    assert free_bytes() < before - (64 << 20)
    del session
    assert free_bytes() >= before - (8 << 20)
