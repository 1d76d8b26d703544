"""Servers to compare with, a process each: echoes of the request's bytes, and grpc.aio with ONNX Runtime inline.

`python -m fitserve_benchmarks.serve_floor KIND PORT [MODEL=FILE …]`; prints `READY` once it listens.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any, Final

import grpc

from fitserve_benchmarks.peers_model import InlineModels
from fitserve_benchmarks.serve_requests import MODEL_INFER
from fitserve_service import completion_queue as core

_SERVICE, _METHOD = MODEL_INFER.strip("/").split("/")
_MESSAGE_LIMIT: Final = 64 << 20
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),
]
_SYNC_THREADS: Final = 2
_AHEAD_COUNT: Final = 64
_MOST_AT_ONCE: Final = 256

Answer = Callable[[bytes], bytes]


def serve_aio(port: int, answer: Answer) -> None:
    """Runs grpc.aio on uvloop, each call answered on the event loop."""
    import uvloop

    async def behaviour(message: bytes, _: Any) -> bytes:
        return answer(message)

    async def run() -> None:
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_handlers(grpc.unary_unary_rpc_method_handler(behaviour)),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        _say_ready()
        await server.wait_for_termination()

    uvloop.run(run())


def serve_sync(port: int, answer: Answer) -> None:
    """Runs grpcio's stock server with two threads."""

    def behaviour(message: bytes, _: grpc.ServicerContext) -> bytes:
        return answer(message)

    server = grpc.server(ThreadPoolExecutor(_SYNC_THREADS), options=_OPTIONS)
    server.add_generic_rpc_handlers((_handlers(grpc.unary_unary_rpc_method_handler(behaviour)),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    _say_ready()
    server.wait_for_termination()


def serve_queue(port: int, answer: Answer) -> None:
    """Runs nothing but grpcio's completion queue: the floor of a loop on it."""
    server = core.CoreServer(_OPTIONS)
    server.listen(f"127.0.0.1:{port}")

    def on_request(event: core.Event) -> None:
        if event.success:
            server.request()
            core.receive_message(event.call, partial(on_message, event.call))

    def on_message(call: core.CoreCall, event: core.Event) -> None:
        message = core.message_of(event)
        if message is None:
            core.abort(call, 1, "cancelled")
        else:
            core.send_reply(call, answer(message), (), core.ignore)

    server.start(_AHEAD_COUNT, on_request)
    _say_ready()
    while True:
        server.gather(1.0, _MOST_AT_ONCE)


def _handlers(handler: Any) -> Any:
    return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler})


def _echo(message: bytes) -> bytes:
    return message


KINDS: Final[Mapping[str, Callable[[int, Answer], None]]] = {
    "echo-aio": serve_aio,
    "echo-sync": serve_sync,
    "echo-queue": serve_queue,
    "inline-aio": serve_aio,
}


def main(arguments: Sequence[str]) -> None:
    """Serves until it is ended."""
    kind, port, thread_count, *models = arguments
    signal.signal(signal.SIGTERM, _leave)
    answer = InlineModels(models, int(thread_count)).answer if kind == "inline-aio" else _echo
    KINDS[kind](int(port), answer)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _say_ready() -> None:
    print("READY", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
