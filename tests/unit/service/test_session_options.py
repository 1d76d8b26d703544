"""How sessions run: what CUDA's provider is told, and where buffers and graphs make sense."""

from __future__ import annotations

import pytest

from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_file import OnnxFacts
from fitserve_service.session_options import SessionOptions, cuda_options, has_kept_shapes, is_kept_size, settled

IMAGES = TensorSpec("x", "FP32", ("B", 1, 28, 28), False)
TOKENS = TensorSpec("x", "INT64", ("B", "S"), False)
FIXED = TensorSpec("x", "FP32", (4, 2), False)
LOGITS = TensorSpec("y", "FP32", ("B", 10), False)


def test_the_provider_is_told_the_gpu_its_memory_and_whether_graphs_are_captured() -> None:
    plain = {"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    assert cuda_options(SessionOptions("cuda", batch_size_buckets=(1, 8), has_graphs=False)) == plain
    any_shape = plain | {"cudnn_conv_algo_search": "HEURISTIC"}
    assert cuda_options(SessionOptions("cuda", has_graphs=False)) == any_shape
    options = SessionOptions("cuda:3", device_memory_limit_bytes=1 << 30)
    assert cuda_options(options) == plain | {
        "device_id": "3",
        "gpu_mem_limit": "1073741824",
        "enable_cuda_graph": "1",
    }


def test_graphs_are_left_out_where_no_shape_comes_again() -> None:
    free, fixed = OnnxFacts(input_shapes={"x": ("B", 2)}), OnnxFacts(input_shapes={"x": (4, 2)})
    looping = OnnxFacts(input_shapes={"x": (4, 2)}, has_loops=True)
    buckets = SessionOptions("cuda", batch_size_buckets=(1, 8))

    assert settled(buckets, free).has_graphs
    assert settled(SessionOptions("cuda"), fixed).has_graphs
    assert not settled(SessionOptions("cuda"), free).has_graphs
    assert not settled(SessionOptions("cuda"), OnnxFacts(input_shapes={"x": None})).has_graphs
    assert not settled(buckets, looping).has_graphs
    assert not settled(SessionOptions("cuda", batch_size_buckets=(1,), has_graphs=False), free).has_graphs


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ((IMAGES,), (LOGITS,), True),
        ((FIXED,), (FIXED,), True),
        ((TOKENS,), (LOGITS,), False),
        ((IMAGES,), (TensorSpec("y", "FP32", ("B", "N"), False),), False),
        ((IMAGES,), (TensorSpec("y", "FP32", None, False),), False),
        ((TensorSpec("x", "BYTES", ("B", 1), False),), (LOGITS,), False),
        ((TensorSpec("x", "BF16", ("B", 1), False),), (LOGITS,), False),
        ((IMAGES, TensorSpec("t", "FP32", (1,), True)), (LOGITS,), False),
        ((), (FIXED,), False),
    ],
)
def test_buffers_are_kept_for_numbers_of_known_shapes(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], expected: bool
) -> None:
    assert has_kept_shapes(inputs, outputs) is expected


def test_only_buckets_are_kept_or_the_one_shape_that_there_is() -> None:
    assert is_kept_size((IMAGES,), [(8, 1, 28, 28)], (1, 8))
    assert not is_kept_size((IMAGES,), [(4, 1, 28, 28)], (1, 8))
    assert not is_kept_size((IMAGES,), [(4, 1, 28, 28)], ())
    assert not is_kept_size((IMAGES, IMAGES), [(8, 1, 28, 28), (1, 1, 28, 28)], (8,))
    assert is_kept_size((FIXED,), [(4, 2)], ())
