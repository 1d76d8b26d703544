"""Both clients against a gRPC server that fails on purpose: retries, pauses, deadlines."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from fitserve.control.v1 import control_pb2
from fitserve_client import AsyncClient, Client, DeadlineExceededError, FitserveError
from fitserve_client.retry import Timing

MODELS = control_pb2.ListModelsResponse(models=[control_pb2.Model(name="m")]).SerializeToString()


@contextmanager
def _failing(codes: list[grpc.StatusCode]) -> Iterator[str]:
    """A server that ends calls with the codes in turn, and answers every method with one model after them."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if codes:
            context.abort(codes.pop(0), "on purpose")
        return MODELS

    with _grpc_server(answer) as target:
        yield target


@contextmanager
def _grpc_server(answer: Any) -> Iterator[str]:
    class Router(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Router()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


def _call(is_async: bool, target: str, method: str, *names: str, **connection: Any) -> tuple[Any, list[float]]:
    """Makes a call with a sleep that only counts; gives the answer and the pauses."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> Any:
        async with AsyncClient(target, sleep=pause, **connection) as client:
            return await getattr(client, method)(*names)

    if is_async:
        return asyncio.run(run()), pauses
    with Client(target, sleep=pauses.append, **connection) as client:
        return getattr(client, method)(*names), pauses


both = pytest.mark.parametrize("is_async", [False, True])


@both
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_what_a_stopping_server_does_is_retried(is_async: bool, code: grpc.StatusCode):
    with _failing([code] * 4) as target:
        models, pauses = _call(is_async, target, "models", timing=Timing(chance=lambda: 1.0))
    assert [model.name for model in models] == ["m"]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6])


@both
def test_the_fifth_failure_is_the_last(is_async: bool):
    codes = [grpc.StatusCode.UNAVAILABLE] * 6
    with _failing(codes) as target, pytest.raises(FitserveError, match="on purpose"):
        _call(is_async, target, "models")
    assert len(codes) == 1


@both
@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_nothing_else_is_retried(is_async: bool, code: grpc.StatusCode):
    codes = [code] * 2
    with _failing(codes) as target, pytest.raises(FitserveError) as raised:
        _call(is_async, target, "models")
    assert raised.value.code is code
    assert len(codes) == 1


@both
@pytest.mark.parametrize("method", ["load", "unload"])
def test_what_changes_the_server_is_not_retried(is_async: bool, method: str):
    codes = [grpc.StatusCode.UNAVAILABLE] * 2
    with _failing(codes) as target, pytest.raises(FitserveError):
        _call(is_async, target, method, "m")
    assert len(codes) == 1


@both
def test_a_server_that_is_silent_meets_the_deadline(is_async: bool):
    is_over = threading.Event()

    def silent(_: bytes, __: grpc.ServicerContext) -> bytes:
        is_over.wait()
        return MODELS

    with _grpc_server(silent) as target:
        try:
            with pytest.raises(DeadlineExceededError, match=rf"{target}: expected an answer before"):
                _call(is_async, target, "models", timeout_s=0.2)
        finally:
            is_over.set()


@both
def test_no_retry_goes_past_the_deadline(is_async: bool):
    codes = [grpc.StatusCode.UNAVAILABLE] * 5
    clock = iter(range(100))
    with _failing(codes) as target, pytest.raises(FitserveError, match="on purpose"):
        _call(is_async, target, "models", timeout_s=3.5, timing=Timing(lambda: float(next(clock)), lambda: 1.0))
    assert len(codes) >= 3


def test_closing_a_client_ends_its_calls_without_another_attempt():
    begun, is_over, calls, pauses = threading.Event(), threading.Event(), [], []

    def silent(_: bytes, __: grpc.ServicerContext) -> bytes:
        calls.append(1)
        begun.set()
        is_over.wait()
        return MODELS

    with _grpc_server(silent) as target:
        client = Client(target, sleep=pauses.append)
        threading.Thread(target=lambda: (begun.wait(), client.close())).start()
        with pytest.raises(FitserveError) as raised:
            client.models()
        is_over.set()
    assert raised.value.code is grpc.StatusCode.CANCELLED
    assert (calls, pauses) == ([1], [])
