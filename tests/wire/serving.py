"""Servers for wire tests: the whole product in this process, on free ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from fitserve.inference.v1 import inference_pb2_grpc
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import datatype_of
from fitserve_service.server import Server, running_server
from fitserve_service.settings import ServerSettings
from fitserve_service.status import DETAILS_KEY

WAIT_S = 30.0
"""Longer than any call here takes; what runs into it has failed."""


@contextmanager
def serving(root: Path, **changes: Any) -> Iterator[Server]:
    """Serves a repository, looked at every 50 ms; inside the block it is ready."""
    values = {
        "port": 0,
        "metrics_port": None,
        "device": "cpu",
        "canary": "off",
        "poll_interval_s": 0.05,
        "grace_s": 5.0,
    } | changes
    with running_server(ServerSettings(repository=root, **values)) as server:
        yield server


def url(server: Server) -> str:
    """Where a client connects to."""
    return f"127.0.0.1:{server.port}"


@contextmanager
def connected(server: Server) -> Iterator[Any]:
    """Opens a channel with a connection of its own; Any, because grpc-stubs knows no calls of plain bytes."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(url(server), options=options) as channel:
        yield channel


@contextmanager
def served_stub(server: Server) -> Iterator[Any]:
    """Opens the stub of Predict and Evaluate."""
    with connected(server) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def tensor(name: str, array: Any, datatype: str | None = None) -> tensor_pb2.Tensor:
    """Writes an array as a message; `datatype` where the array cannot tell."""
    kind = datatype or datatype_of(array.dtype)
    content = tensor_bytes.encode(array, kind)
    return tensor_pb2.Tensor(name=name, datatype=kind, shape=array.shape, content=content)


def refused(call: Any, *arguments: Any, **keywords: Any) -> tuple[str, str, str]:
    """Makes a call that must fail.

    Returns:
        Code's name, reason of the ErrorInfo, and the text.
    """
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **{"timeout": WAIT_S, **keywords})
    error: Any = caught.value
    trailing: dict[str, Any] = dict(error.trailing_metadata())
    status = Status.FromString(trailing[DETAILS_KEY])
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return error.code().name, info.reason, status.message
