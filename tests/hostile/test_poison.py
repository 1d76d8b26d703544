"""Requests that make an operator fail, joined with innocent ones: each caller gets what it would have got alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import grpc
import numpy as np
import pytest
from onnx import helper
from tests.wire.serving import WAIT_S, served_stub, serving, tensor

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2

CLASSES, REQUESTS = 5, 16


def embedding() -> bytes:
    """index INT64 (B) -> y FP32 (B, 8): a row of a table times a matrix; an index outside the table is refused."""
    random = np.random.default_rng(0)
    weights = {
        "table": random.standard_normal((CLASSES, 32)).astype(np.float32),
        "w": random.standard_normal((32, 8)).astype(np.float32),
    }
    nodes = [helper.make_node("Gather", ["table", "index"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    index = builders.value("index", ("B",), builders.ELEMENT_TYPES["INT64"])
    return builders.model(nodes, [index], [builders.value("y", ("B", 8))], weights)


def request(index: int) -> Any:
    return inference_pb2.PredictRequest(
        model=tensor_pb2.ModelSpec(name="m"), inputs=[tensor("index", np.array([index, 1], np.int64))]
    )


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_innocents_get_the_bits_that_they_get_alone(tmp_path: Path, transport: str) -> None:
    path = builders.bare_version(tmp_path, "m", 1, embedding())
    (path.folder.parent / "model.toml").write_text("max_batch_size = 64\nmax_queue_delay_ms = 20\n")
    with serving(tmp_path, transport=transport) as server, served_stub(server) as stub:
        alone = [stub.Predict(request(index), timeout=WAIT_S).outputs[0].content for index in range(CLASSES)]
        lease = server.registry.lease("m")
        lease.release()
        before = lease.served.statistics.inference_count
        for bad_count in range(1, 9):
            random = np.random.default_rng(bad_count)
            indices = random.integers(0, CLASSES, REQUESTS).tolist()
            for place in random.choice(REQUESTS, bad_count, replace=False):
                indices[place] = CLASSES + 100
            calls = [stub.Predict.future(request(index), timeout=WAIT_S) for index in indices]
            for index, call in zip(indices, calls, strict=True):
                if index < CLASSES:
                    assert call.result().outputs[0].content == alone[index]
                else:
                    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        statistics = lease.served.statistics
        # They did run together: fewer runs than requests, though each culprit was looked for by halves.
        assert max(statistics.batch) > 2
        assert statistics.inference_count > before
