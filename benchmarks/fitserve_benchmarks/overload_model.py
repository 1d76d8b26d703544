"""The model that is overloaded: milliseconds long, a batch costs as much as its rows, and every answer is known.

It rolls a row by one place a round, as a product with a permutation: ones and zeros leave every bit of FP32 as it was,
so that an answer is right or wrong without a tolerance. Shapes: B rows, W places, C copies of a row, R rounds.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_contract.certificate import PROBE_FILE, Probe
from fitserve_contract.manifest import Manifest, TensorSpec
from fitserve_contract.repository import MANIFEST_FILE, MODEL_FILE, publish, publishing

MODEL: Final = "overload"
PREDICT: Final = "/fitserve.inference.v1.InferenceService/Predict"
WIDTH: Final = 128
_COPIES: Final = 16
_TRIAL_ROUNDS: Final = 16
_TRIALS: Final = 20
_PROBE_ROWS: Final = 3

Rows = np.ndarray[Any, np.dtype[np.float32]]


def model_bytes(rounds: int) -> bytes:
    """Makes the model: x FP32 (B, W) -> y FP32 (B, W), which is x rolled by `rounds` places.

    Inside, each row is copied C times, so that a product is work and not a walk through the weights: those would cost
    a batch no more than a row.
    """
    from onnx import TensorProto, helper, numpy_helper

    names = ["h0", *[f"h{index}" for index in range(1, rounds + 1)]]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["alone"]),
        helper.make_node("Mul", ["alone", "copies"], ["h0"]),
        *[helper.make_node("MatMul", [left, "roll"], [right]) for left, right in pairwise(names)],
        helper.make_node("Gather", [names[-1], "first"], ["y"], axis=1),
    ]
    constants: dict[str, Any] = {
        "one": np.array([1], np.int64),
        "first": np.array(0, np.int64),
        "copies": np.ones((1, _COPIES, 1), np.float32),
        "roll": np.roll(np.eye(WIDTH, dtype=np.float32), 1, axis=1),
    }
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(built.SerializeToString())


def rounds_for(run_s: float) -> tuple[int, float]:
    """Finds how many rounds take about so long on one thread of this machine.

    Returns:
        Rounds, and the fastest run of one row of that model, seconds.
    """
    rounds = max(1, round(_TRIAL_ROUNDS * run_s / _fastest_s(_TRIAL_ROUNDS)))
    return rounds, _fastest_s(rounds)


def publish_model(root: Path, rounds: int) -> None:
    """Publishes the model with a certificate, and has one thread run it: the others are the load's and the server's."""
    rows = np.random.default_rng(0).standard_normal((_PROBE_ROWS, WIDTH)).astype(np.float32)
    answers = {"y": expected(rows, rounds)}
    probe = Probe({"x": rows}, answers, {"y": answers["y"].astype(np.float64)}).to_bytes()
    specs = ((TensorSpec("x", "FP32", ("B", WIDTH)),), (TensorSpec("y", "FP32", ("B", WIDTH)),))
    manifest = replace(
        Manifest(MODEL, "2026-01-01T00:00:00Z", *specs, None),
        verification={"tolerance": {"per_output": {"y": 0.0}}},
        files={PROBE_FILE: {"sha256": hashlib.sha256(probe).hexdigest()}},
    )
    files = {MODEL_FILE: model_bytes(rounds), MANIFEST_FILE: manifest.to_bytes(), PROBE_FILE: probe}
    with publishing(root, MODEL) as aside:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        publish(root, MODEL, aside)
    # The other cores are for the load, which a server that is called from elsewhere does not have beside it.
    (root / MODEL / "model.toml").write_text("intra_op_num_threads = 1\nparallel_runs = 1\n")


def expected(rows: Rows, rounds: int) -> Rows:
    """Gives the only right answer to rows (B, W)."""
    return np.roll(rows, rounds, axis=1)


def requests(rounds: int, count: int, seed: int) -> tuple[list[bytes], list[bytes]]:
    """Makes Predict requests of one row, and the content of the right answer to each."""
    rows = np.random.default_rng(seed).standard_normal((count, 1, WIDTH)).astype("<f4")
    messages = []
    for row in rows:
        tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=row.shape, content=row.tobytes())
        request = inference_pb2.PredictRequest(model=tensor_pb2.ModelSpec(name=MODEL), inputs=[tensor])
        messages.append(request.SerializeToString())
    return messages, [expected(row, rounds).tobytes() for row in rows]


def is_right(message: bytes, content: bytes) -> bool:
    """Tells whether a PredictResponse is the answer with this content, and nothing else."""
    try:
        outputs = inference_pb2.PredictResponse.FromString(message).outputs
    except Exception:  # whatever protobuf says of bytes that are no message, it is a wrong answer
        return False
    return len(outputs) == 1 and outputs[0].content == content


def _fastest_s(rounds: int) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model_bytes(rounds), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((1, WIDTH), np.float32)}
    times_s = []
    for _ in range(_TRIALS):
        begin_s = time.perf_counter()
        session.run(None, feed)
        times_s.append(time.perf_counter() - begin_s)
    return min(times_s)
