"""Innocent callers who go on predicting while others attack: every answer is checked, every call is timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_benchmarks.hostile_models import INNOCENT

_METHOD: Final = "/fitserve.inference.v1.InferenceService/Predict"
_TIMEOUT_S: Final = 60.0


@dataclass(slots=True)
class Innocents:
    """What became of the calls.

    Args:
        elapsed_ms: Time of each call that was answered rightly.
        lost: What came instead of a right answer.
    """

    elapsed_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """Gives a percentile of the times; NaN where there are none."""
        return float(np.percentile(self.elapsed_ms, percent)) if self.elapsed_ms else float("nan")


@contextmanager
def innocent_callers(address: str, count: int = 2) -> Iterator[Innocents]:
    """Calls, each caller on a connection of its own, until the block ends; the result is whole then.

    Args:
        address: `host:port`.
        count: Callers.
    """
    found = Innocents()
    is_over = threading.Event()
    threads = [threading.Thread(target=_call, args=(address, seed, found, is_over)) for seed in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _call(address: str, seed: int, found: Innocents, is_over: threading.Event) -> None:
    random = np.random.default_rng(seed)
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as opened:
        channel: Any = opened  # grpc-stubs knows no calls of plain bytes.
        method = channel.unary_unary(_METHOD)
        while not is_over.is_set():
            x = random.standard_normal((int(random.integers(1, 5)), 2)).astype("<f4")
            begin_s = time.perf_counter()
            problem = _problem(method, x)
            if problem:
                found.lost.append(problem)
            else:
                found.elapsed_ms.append((time.perf_counter() - begin_s) * 1e3)
            is_over.wait(0.002)


def _problem(method: Any, x: np.ndarray[Any, Any]) -> str:
    tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=x.shape, content=x.tobytes())
    request = inference_pb2.PredictRequest(model=tensor_pb2.ModelSpec(name=INNOCENT), inputs=[tensor])
    try:
        answer = inference_pb2.PredictResponse.FromString(method(request.SerializeToString(), timeout=_TIMEOUT_S))
    except grpc.RpcError as error:
        return str(error)[:500]
    expected = (x * np.float32(2)).tobytes()
    is_right = len(answer.outputs) == 1 and answer.outputs[0].content == expected
    return "" if is_right else f"expected 2 x, got {str(answer)[:200]}"
