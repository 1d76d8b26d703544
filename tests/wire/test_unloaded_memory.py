"""What a version took is given back with its last user: no collector is waited for."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from pathlib import Path
from typing import Any

import builders
import grpc
import numpy as np
import pytest
from tests.wire.serving import serving, url

from fitserve_client import Client
from fitserve_oip import inference_pb2 as oip
from fitserve_service.intake import Order


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_an_unloaded_versions_session_is_gone(tmp_path: Path, transport: str) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task())
    with serving(tmp_path, transport=transport) as server, Client(url(server)) as client:
        for size in (1, 2, 3):
            client.predict("m", np.ones((size, 2), np.float32))
        is_gone = threading.Event()
        lease = server.registry.lease("m")
        weakref.finalize(lease.served.session, is_gone.set)
        lease.release()
        del lease
        # Calls that ended may have left the collector something; the version itself must not.
        gc.collect()
        gc.disable()
        try:
            client.unload("m")
            assert is_gone.wait(10.0)
        finally:
            gc.enable()


@pytest.mark.parametrize("transport", ["fast", "stock"])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["unary", "streamed"])
def test_answered_requests_leave_no_cycle(tmp_path: Path, transport: str, is_streamed: bool) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled())
    request = oip.ModelInferRequest(model_name="m", raw_input_contents=[np.ones((1, 2), np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    with serving(tmp_path, transport=transport) as server, grpc.insecure_channel(url(server)) as channel:
        method = "/inference.GRPCInferenceService/Model" + ("StreamInfer" if is_streamed else "Infer")
        messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call: Any = (channel.stream_stream if is_streamed else channel.unary_unary)(method)  # type: ignore[call-arg]
        answers = call(iter(messages.get, None)) if is_streamed else None

        def ask() -> None:
            if answers is None:
                call(request.SerializeToString(), timeout=10)
            else:
                messages.put(request.SerializeToString())
                next(answers)

        ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                ask()
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            assert [one for one in gc.garbage if isinstance(one, Order)] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            messages.put(None)
