"""A grpcio server that gives bytes back: what the load is tested against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

METHOD = "/test.Echo/Echo"


@contextmanager
def serving(
    behaviour: Callable[[bytes, grpc.ServicerContext], bytes],
    service: str = "test.Echo",
    name: str = "Echo",
    /,
    *,
    thread_count: int = 4,
    **options: int,
) -> Iterator[int]:
    """Runs grpcio's own server with one method on bytes; gives its port."""
    server = grpc.server(ThreadPoolExecutor(thread_count), options=list(options.items()))
    handler = grpc.unary_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
    return request
