"""What the server needs of a transport, and where it listens; `transport_stock` is one, others may stand beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from fitserve_service.access.tls_files import TlsFiles, TlsWatcher
from fitserve_service.calls import Call, Loop, Metadata, MethodTable, OnRefused
from fitserve_service.connections import can_be_held, has_headroom
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.listening import address_text, is_unix
from fitserve_service.unix_socket import target_of

_MAX_PENDING: Final = 65_536
"""Calls that the loop has not seen, over all connections; beyond, grpcio cancels arrivals. Some 10 KB each."""

_HEADROOM: Final = 1_024
"""Calls of one connection that are over and still hold memory, because the loop has not seen it; beyond, grpcio refuses
new ones. A caller may have a thousand calls cancelled at once behind a busy loop without losing another."""

_SIGN_SHARE: Final = 1 / 3
"""How long a sign of life may take, as a share of the time between two."""

_MAX_METADATA_BYTES: Final = 1 << 14
"""As grpcio bounds it by itself, but for callers that have not acknowledged its settings: those may send 16 MiB."""

_ENTRY_BYTES: Final = 32
"""What each entry counts beside its name and value. Source: RFC 9113, 6.5.2."""

MAX_ENTRIES: Final = _MAX_METADATA_BYTES // _ENTRY_BYTES
"""More entries are beyond the bound whatever is in them."""

_LEAST_REMAINING_S: Final = 0.001
"""grpcio rounds a deadline up to whole milliseconds: one that has passed already arrives as 1 ms. Measured on 1.85."""


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Where a transport listens and what it lets in.

    Args:
        host: Name or address, or `unix:PATH`.
        port: TCP port; 0 takes a free one.
        max_message_bytes: Larger requests are refused with TOO_LARGE.
        max_concurrent_streams: Calls at once on one connection; callers queue what is beyond. 100: clients begin
            as many before they know the limit. Source: RFC 9113, 6.5.2.
        handshake_timeout_s: A connection that does not speak HTTP/2 by then is closed.
        is_shared: Other processes of this user listen on the same port; the kernel deals connections out.
        max_unread_answers: Small unary answers (below 4 KiB), over all connections, that their callers have not taken;
            beyond, the calls of the oldest are cut off. On `fast` alone.
        max_unread_bytes: Bytes of other answers, over all connections, that their callers have not taken; a connection
            may hold half of them. Beyond, `fast` cuts off the oldest of the connection that has most, `stock` refuses
            further answers.
        max_waiting_calls: Calls, over all connections, whose message has not come; beyond, the oldest are given up.
        message_limit_s: How long a call may wait for its first message.
        connection_age_s: A connection is asked to end after about this long, so that it is dealt anew; 0: never.
        keepalive_s: A connection that is quiet for so long is asked for a sign of life, and closed without one: what
            a caller who never reads has open is not held for good.
        tls: Certificate and key, or who watches them; None: cleartext.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    max_message_bytes: int = 64 << 20
    max_concurrent_streams: int = 100
    handshake_timeout_s: float = 5.0
    is_shared: bool = False
    connection_age_s: float = 0.0
    max_waiting_calls: int = 4096
    max_unread_answers: int = 8192
    max_unread_bytes: int = 1 << 30
    message_limit_s: float = 30.0
    keepalive_s: float = 60.0
    tls: TlsFiles | TlsWatcher | None = None

    @property
    def address(self) -> str:
        """`host:port`, an IPv6 address in brackets; or `unix:PATH`."""
        return target_of(self.host) if is_unix(self.host) else address_text(self.host, self.port)


class Transport(Loop, Protocol):
    """A gRPC server that carries a method table on one loop thread."""

    def run(self, table: MethodTable, on_start: Callable[[int], None]) -> None:
        """Serves on this thread, which becomes the loop thread, until `stop` has ended; once only.

        Args:
            table: The methods.
            on_start: Called on the loop thread with the port once calls are taken.

        Raises:
            listening.ListenError: the address cannot be listened on.
        """
        ...

    def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets those in flight end for at most `grace_s`, then cancels them; from the loop thread.

        Streams see a half-close, so that those with nothing left to answer end.
        """
        ...


def channel_options(options: TransportOptions) -> list[tuple[str, int]]:
    """Gives the options of grpcio's server that make it hold under hostile callers, the same for every transport."""
    # grpcio drops a larger message without saying ours is the limit: it gets twice the room, to bound the memory alone.
    hard_limit = min(2 * options.max_message_bytes, 2**31 - 1)
    age = [("grpc.max_connection_age_ms", int(options.connection_age_s * 1000))] if options.connection_age_s else []
    return [
        *age,
        ("grpc.max_receive_message_length", hard_limit),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        # It refuses calls beyond the limit that hold memory, whether they are over for their caller or not. Without
        # headroom those are calls of well-behaved clients at the limit; `ResetGuard` does its work then, where it can.
        ("grpc.http.overload_protection", int(has_headroom() or not can_be_held())),
        ("grpc.http2.max_deallocating_streams", _HEADROOM),
        # Past 1,000 calls that it has not handed over, grpcio cancels arrivals at random: 2,000 stalled bodies at once
        # cost innocents theirs. This bounds the memory alone.
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
        ("grpc.server_handshake_timeout_ms", int(options.handshake_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        # Releases differ in which of the two it is that ends a connection.
        ("grpc.keepalive_timeout_ms", int(options.keepalive_s * 1000 * _SIGN_SHARE)),
        ("grpc.http2.ping_timeout_ms", int(options.keepalive_s * 1000 * _SIGN_SHARE)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two servers on one port would share its connections in silence; workers of one server are to.
        ("grpc.so_reuseport", int(options.is_shared)),
    ]


def metadata_error(metadata: Metadata) -> ServiceError | None:
    """Makes the error of a call with too much metadata: it may name one large entry thousands of times, in a byte each.

    Returns:
        TOO_LARGE; None where the metadata is within the bound.
    """
    size = sum(_ENTRY_BYTES + len(name) + len(value) for name, value in metadata)
    if size <= _MAX_METADATA_BYTES:
        return None
    return ServiceError(Reason.TOO_LARGE, f"metadata: expected at most {_MAX_METADATA_BYTES} bytes, got {size}")


def check_arrival(size_bytes: int, max_bytes: int, remaining_s: float | None) -> None:
    """Refuses a request that is too large, or whose caller has stopped waiting, before it costs anything.

    Args:
        size_bytes: Size of the message.
        max_bytes: The most that is taken.
        remaining_s: Time to the caller's deadline as the request arrives; None: it has none.

    Raises:
        ServiceError: TOO_LARGE or DEADLINE_PASSED.
    """
    if size_bytes > max_bytes:
        text = f"message: expected at most {max_bytes} bytes (the server's --max-message-bytes), got {size_bytes}"
        raise ServiceError(Reason.TOO_LARGE, text)
    if remaining_s is not None and remaining_s < _LEAST_REMAINING_S:
        raise ServiceError(Reason.DEADLINE_PASSED, "deadline: passed before the request was read")


def check_request(
    message: bytes | None, max_bytes: int, remaining_s: float | None, call: Call, on_refused: OnRefused | None
) -> bytes:
    """Takes a message of a call; as `check_arrival`, and None is no message.

    Args:
        message: The message.
        max_bytes: The most that is taken.
        remaining_s: Time to the caller's deadline; None: it has none.
        call: Its call.
        on_refused: Is told of a message that is refused here; None: nobody is.

    Raises:
        ServiceError: as `check_arrival`, MALFORMED_MESSAGE where the caller ended the call without a message or with a
            torn one, or what `on_refused` raises.
    """
    try:
        if message is None:
            raise ServiceError(Reason.MALFORMED_MESSAGE, "call: expected one request message, got none that is whole")
        check_arrival(len(message), max_bytes, remaining_s)
    except ServiceError:
        if on_refused is not None:
            on_refused(call)
        raise
    return message
