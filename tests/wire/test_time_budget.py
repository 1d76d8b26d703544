"""Each answer says where its time went; the same stands in the metrics, and the client prints it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from tests import builders
from tests.wire.serving import WAIT_S, connected, served_stub, serving, tensor, url

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_client import AsyncClient, Client, FitserveError, cli
from fitserve_client.messages import timing_of
from fitserve_oip import inference_pb2 as oip

PARTS = ["decode", "queue", "run", "encode"]
INFER = "/inference.GRPCInferenceService/ModelInfer"


def request() -> pb.PredictRequest:
    inputs = [tensor("x", np.ones((1, 2), np.float32))]
    return pb.PredictRequest(model=tensor_pb2.ModelSpec(name="twice"), inputs=inputs)


def infer_request() -> bytes:
    message = oip.ModelInferRequest(model_name="twice", raw_input_contents=[np.ones((1, 2), np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    content: bytes = message.SerializeToString()
    return content


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_each_answer_says_where_its_time_went(tmp_path: Path, transport: str) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    with serving(tmp_path, transport=transport) as server:
        with served_stub(server) as stub:
            _, predicted = stub.Predict.with_call(request(), timeout=WAIT_S)
        with connected(server) as channel:
            call: Any = channel.unary_unary(INFER)
            _, inferred = call.with_call(infer_request(), timeout=WAIT_S)
    for answered in (predicted, inferred):
        timing = timing_of(answered.trailing_metadata())
        assert list(timing) == PARTS
        assert all(0 <= time_us < WAIT_S * 1e6 for time_us in timing.values())


def test_metrics_have_each_part_of_each_answer(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    with serving(tmp_path, metrics_port=0) as server:
        with served_stub(server) as stub:
            stub.Predict(request(), timeout=WAIT_S)
        with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=WAIT_S) as answer:
            text = answer.read().decode()
    counts = dict(re.findall(r'fitserve_(\w+)_seconds_count\{model="twice",version="1"\} (\S+)', text))
    assert {part: counts[part] for part in PARTS} == dict.fromkeys(PARTS, "1.0")


def test_the_client_prints_it_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    np.save(tmp_path / "x.npy", np.ones((1, 2), np.float32))
    with serving(tmp_path) as server:
        arguments = ["predict", "twice", str(tmp_path / "x.npy"), "--server", url(server)]
        assert cli.main([*arguments, "--timing"]) == 0
        told = capsys.readouterr().err
        assert cli.main(arguments) == 0
    assert re.search(r"time on the server: [\d,]+ µs: decode [\d,]+ µs, queue .*, run .*, encode [\d,]+ µs", told)
    assert "time on the server" not in capsys.readouterr().err


@pytest.mark.parametrize("is_async", [True, False])
def test_both_clients_hand_the_times_of_each_answer_on(tmp_path: Path, is_async: bool) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    taken: list[Mapping[str, int]] = []

    async def call(address: str) -> None:
        async with AsyncClient(address, on_timing=taken.append) as client:
            await client.predict("twice", np.ones((1, 2), np.float32))
            with pytest.raises(FitserveError):
                await client.predict("nobody", np.ones((1, 2), np.float32))

    with serving(tmp_path) as server:
        address = f"127.0.0.1:{server.port}"
        if is_async:
            asyncio.run(call(address))
        else:
            with Client(address, on_timing=taken.append) as client:
                client.predict("twice", np.ones((1, 2), np.float32))
                with pytest.raises(FitserveError):
                    client.predict("nobody", np.ones((1, 2), np.float32))
    assert [list(timing) for timing in taken] == [PARTS]
