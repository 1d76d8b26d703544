"""A forced claim that rows are independent is found out while serving, and all workers stop joining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tests import builders
from tests.wire.test_workers import PREDICT, WAIT_S, started, wait_until

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2


def predict_message(value: float) -> bytes:
    content = np.full((1, 2), value, np.float32).tobytes()
    tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=(1, 2), content=content)
    return pb.PredictRequest(model=tensor_pb2.ModelSpec(name="coupled"), inputs=[tensor]).SerializeToString()


def answers(call: Any, values: range) -> list[float]:
    futures = [call.future(predict_message(value), timeout=WAIT_S) for value in values]
    outputs = [pb.PredictResponse.FromString(future.result()).outputs[0] for future in futures]
    return [float(np.frombuffer(output.content, np.float32)[0]) for output in outputs]


def version_status(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page)["models"][0]["versions"][0]
    return found


def is_found(running: Any) -> bool:
    status = version_status(running.page("/status.json"))
    is_told = status["joining"].startswith("not joinable: a spot check found")
    return is_told and running.log.read_text().count("a spot check found") >= 2


def test_one_workers_mismatch_stops_joining_in_all(tmp_path: Path) -> None:
    folder = builders.bare_version(tmp_path, "coupled", 1, builders.mean_over_batch()).folder.parent
    (folder / "model.toml").write_text("joinable = true\nspot_check_share = 1.0\n")
    with started(tmp_path, "--canary", "off") as running:
        status = version_status(running.page("/status.json"))
        assert (status["joining"], status["spot_mismatch_count"]) == ("joinable", 0)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(running.address, options=options) as channel:
            call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
            wait_until(lambda: bool(answers(call, range(16))) and is_found(running))
            # Alone each row is its own mean.
            assert answers(call, range(16)) == [0.0] * 16
        log = running.log.read_text()
        assert log.count("a spot check found a row that depends on its neighbours: output 'y'") >= 2
        assert "spot_check_share = 0 in model.toml accepts such differences" in log
        metrics = running.page("/metrics")
        assert 'fitserve_version_joinable{model="coupled",version="1"} 0' in metrics
        assert 'fitserve_spot_checks_total{model="coupled",result="mismatch",version="1"}' in metrics
