"""The runtime's errors in words for callers: values that are refused, memory that is gone, graphs that cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fitserve_service.run_errors import (
    DeviceError,
    DeviceMemoryError,
    GraphError,
    OperatorError,
    RunawayError,
    SessionError,
    has_no_memory,
    is_of_runtime,
    load_error,
    run_error,
)

FULL_ARENA = """
import sys
import builders, numpy, onnxruntime
onnxruntime.set_default_logger_severity(4)
place = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                  onnxruntime.OrtMemType.DEFAULT)
onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(1 << 20, 1, -1, -1))
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.use_env_allocators", "1")
options.enable_mem_pattern = False
try:
    session = onnxruntime.InferenceSession(builders.slow(rounds=2), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": numpy.ones((4096, 512), numpy.float32)})
except Exception as error:
    sys.stdout.write(str(error))
"""


def text_of_a_full_arena() -> str:
    """What the runtime says where an arena's limit is reached: on a GPU the same arena has the same words."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests')\n{FULL_ARENA}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_arena_at_its_limit_is_memory_that_is_gone_on_a_gpu_and_a_runaway_on_the_cpu() -> None:
    text = text_of_a_full_arena()
    assert "smaller than requested" in text or "Failed to allocate" in text

    on_gpu = run_error(RuntimeError(text), is_ended=False, is_on_gpu=True)
    assert type(on_gpu) is DeviceMemoryError
    assert str(on_gpu).startswith(
        "the GPU has no memory left for this run: send fewer examples at once, or free memory"
    )
    on_cpu = run_error(RuntimeError(text), is_ended=False, is_on_gpu=False)
    assert type(on_cpu) is RunawayError
    assert str(on_cpu).startswith("out of memory in operator ")
    assert "refused" not in str(on_cpu)
    assert has_no_memory(str(on_cpu))
    refused = load_error(RuntimeError(text), is_on_gpu=True)
    assert str(refused).startswith("the GPU has no memory for the model (")
    assert "--device-memory-limit-bytes" in str(refused)
    assert "--variant" in str(refused)
    assert ".cc" not in str(refused)
    assert "GPU" not in str(load_error(RuntimeError(text), is_on_gpu=False))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=/a/cuda_allocator.cc ; line=48 ; expr=cudaMalloc",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 5003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "/o/bfc_arena.cc:376 AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 99",
    ],
)
def test_each_way_to_run_out_of_memory_on_a_gpu_is_known(text: str) -> None:
    assert isinstance(run_error(RuntimeError(text), is_ended=False, is_on_gpu=True), DeviceMemoryError)


def test_a_gpu_that_failed_is_not_blamed_on_the_values() -> None:
    text = (
        "Error in execution: CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=/a.cc ; line=1"
    )
    error = run_error(RuntimeError(text), is_ended=False, is_on_gpu=True)
    assert type(error) is DeviceError
    assert str(error) == "the GPU failed: CUDA error 700, an illegal memory access was encountered"
    refused = load_error(RuntimeError("CUDA failure 36: API call is not supported ; GPU=-1"), is_on_gpu=True)
    assert type(refused) is DeviceError
    assert str(refused) == "the GPU failed: CUDA error 36, API call is not supported"


def test_a_run_that_was_told_to_end_is_no_matter_of_memory() -> None:
    error = run_error(RuntimeError("out of memory"), is_ended=True, is_on_gpu=True)
    assert type(error) is RunawayError


def test_a_graph_that_cannot_be_captured_is_told_apart_from_a_model_that_is_refused() -> None:
    text = "This session cannot use the graph capture feature as requested by the user as the model has control flow"
    assert type(load_error(RuntimeError(text), is_on_gpu=True)) is GraphError
    assert type(load_error(RuntimeError("no such operator"), is_on_gpu=True)) is SessionError


def test_what_the_runtime_raises_is_told_from_faults_of_ours() -> None:
    assert is_of_runtime(RuntimeError("Error in execution: Non-zero status code"))
    assert is_of_runtime(RuntimeError("CUDA failure 2: out of memory ; GPU=0"))
    assert is_of_runtime(RuntimeError("Failed to allocate memory for requested buffer of size 4096"))
    assert not is_of_runtime(RuntimeError("dictionary changed size during iteration"))
    assert not is_of_runtime(KeyError("x"))


def test_the_operator_and_its_node_are_named_without_places() -> None:
    text = "Non-zero status code returned while running Gather node. Name:'pick' Status Message: /o/gather.cc:1 idx=9"
    error = run_error(RuntimeError(text), is_ended=False, is_on_gpu=False)
    assert type(error) is OperatorError
    assert str(error) == "operator Gather (node 'pick') refused the values: … idx=9"
