"""Chooses the transport: `fast` where grpcio is one that it was run on and answers a call to itself, else `stock`."""

from __future__ import annotations

import functools
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import grpc

from fitserve_service.calls import MethodTable, UnaryCall
from fitserve_service.settings import TRANSPORTS
from fitserve_service.transport import Transport, TransportOptions

if TYPE_CHECKING:
    from fitserve_service.transport_fast import FastTransport

_METHOD: Final = "/fitserve.SelfTest/Echo"
_MESSAGE: Final = bytes(range(256))
_WAIT_S: Final = 5.0

_log = logging.getLogger(__name__)


def choose(name: str, options: TransportOptions) -> Transport:
    """Makes a transport; where `fast` cannot be had, warns in one line and makes `stock`.

    Starts threads of grpcio, so a process that forks must have forked before.

    Args:
        name: One of `TRANSPORTS`; "auto" is the fastest that works here.
        options: Where it listens and what it lets in.

    Raises:
        ValueError: the name is none of `TRANSPORTS`.
    """
    if name not in TRANSPORTS:
        raise ValueError(f"transport: expected one of {', '.join(TRANSPORTS)}, got {name!r}")
    problem = None if name == "stock" else why_not_fast()
    if problem is not None:
        _log.warning(
            "transport: 'fast' is not for this installation (%s); serving with 'stock', which is slower", problem
        )
    if name == "stock" or problem is not None:
        from fitserve_service.transport_stock import StockTransport

        return StockTransport(options)
    from fitserve_service.transport_fast import FastTransport

    return FastTransport(options)


@functools.cache
def why_not_fast() -> str | None:
    """Finds out, once in a process, whether `fast` works; gives what speaks against it, None where nothing does."""
    try:
        # Private parts of grpcio: a release without them fails here, in whatever way.
        from fitserve_service import completion_queue
        from fitserve_service.transport_fast import FastTransport

        first, last = completion_queue.TESTED_FIRST, completion_queue.TESTED_LAST
        if not completion_queue.is_tested(grpc.__version__):
            window = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
            return f"grpcio: expected a release that it was tested on, {window}, got {grpc.__version__}"
        _self_test(FastTransport(TransportOptions(port=0)))
    except Exception as error:
        return f"self-test: expected its call to be answered, got {type(error).__name__}: {str(error)[:200]}"
    return None


def _self_test(transport: FastTransport) -> None:
    """Has a private server answer a call by way of everything that the loop does, then stop.

    Raises:
        Exception: whatever went wrong.
    """
    started: Future[int] = Future()
    thread = threading.Thread(target=_serve, args=(transport, started), name="self-test", daemon=True)
    thread.start()
    port = started.result(_WAIT_S)
    try:
        answer = _call_itself(port)
    finally:
        # The caller has hung up: nothing is left to wait for, and nothing to cut off, which grpcio would log.
        transport.post(lambda: transport.stop(_WAIT_S))
        thread.join(_WAIT_S)
    if answer != _MESSAGE:
        raise RuntimeError(f"expected the {len(_MESSAGE)} bytes that were sent, got {answer[:32]!r}")
    if thread.is_alive():
        raise TimeoutError(f"expected the server to stop within {_WAIT_S} s")


def _serve(transport: FastTransport, started: Future[int]) -> None:
    def answer(call: UnaryCall, message: bytes) -> None:
        transport.call_soon(lambda: transport.call_later(0, lambda: transport.post(lambda: call.reply(message))))

    try:
        transport.run(MethodTable({_METHOD: answer}, {}), started.set_result)
    except BaseException as error:
        if not started.done():
            started.set_exception(error)


def _call_itself(port: int) -> bytes:
    # A proxy of the environment is not asked for an address of this machine.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call: Any = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)
        answer: bytes = call(_MESSAGE, timeout=_WAIT_S)
        return answer
