"""The open connections of a port of this process: how many calls each has unfinished, and how to hold one back.

grpcio counts the streams of each connection (channelz), and has no way to slow down one connection of a server. Its
socket belongs to this process, so it is found by the two addresses that it joins and given a filter that drops the data
that arrives: TCP sends it again later, and nothing is lost. Linux alone.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import ipaddress
import json
import mmap
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import grpc._cython.cygrpc as cygrpc

_DESCRIPTORS: Final = Path("/proc/self/fd")

_QUERIES: Final = ("channelz_get_servers", "channelz_get_server_sockets", "channelz_get_socket")
"""Private parts of grpcio that are needed here; they answer with JSON. Source: grpc/channelz/channelz.proto."""

_ATTACH_FILTER: Final = 26
_DETACH_FILTER: Final = 27
"""SO_ATTACH_FILTER and SO_DETACH_FILTER. Source: linux/include/uapi/asm-generic/socket.h."""

_SMALL_BUFFER_BYTES: Final = 1 << 16
"""What a connection that was ever held may have sent ahead of being read: what has arrived already is read even so."""

_DROP_DATA: Final = (
    (0x30, 0, 0, 12),  # A = the byte with the length of the TCP header, in words of 4 bytes, in its upper half
    (0x54, 0, 0, 0xF0),
    (0x74, 0, 0, 2),
    (0x07, 0, 0, 0),  # X = A
    (0x80, 0, 0, 0),  # A = the length of the segment
    (0x1D, 0, 1, 0),  # is A == X?
    (0x06, 0, 0, 0xFFFFFFFF),  # keep it
    (0x06, 0, 0, 0),  # drop it
)
"""A socket filter that drops segments with data; those that acknowledge, close or reset a connection come through.

Source: RFC 9293, 3.1 (TCP header); linux/Documentation/networking/filter.rst (instructions, seen from the TCP header).
"""

_DROP_BEGINS: Final = (
    (0x30, 0, 0, 13),  # A = the byte with the flags of the TCP header
    (0x54, 0, 0, 0x12),
    (0x15, 1, 0, 0x02),  # of SYN and ACK, is SYN alone set?
    (0x06, 0, 0, 0xFFFFFFFF),  # keep it
    (0x06, 0, 0, 0),  # drop it
)
"""A socket filter for a listener that drops what begins a connection; it does nothing to those that there are.

Sources as of `_DROP_DATA`.
"""

_Filter: TypeAlias = tuple[tuple[int, int, int, int], ...]

Peer: TypeAlias = tuple[str, int]
"""Address and port of the other end."""


class Connection(NamedTuple):
    """One connection.

    Args:
        peer: The other end.
        unfinished_count: Calls that it began and that hold memory here, whether they are over for it or not.
        number: Its own, higher than those of the connections before it.
    """

    peer: Peer
    unfinished_count: int
    number: int = 0


class PortConnections:
    """The connections of the servers of this process that have one TCP port, seen from any thread.

    Args:
        port: The port.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._has_port: dict[int, bool] = {}

    def begun_count(self) -> int:
        """Counts the calls that were ever begun there, by the servers that are still open."""
        return sum(int(server["data"].get("callsStarted", 0)) for server in self._servers())

    def open_ones(self, after: int = 0) -> Iterator[Connection]:
        """Yields the connections that are open, in the order of their numbers, from the one after a number on."""
        for server in self._servers():
            for number in _socket_numbers(_server_number(server), after + 1):
                found = _socket(number)
                if found is not None and "tcpipAddress" in found.get("remote", {}):
                    data = found["data"]
                    over = int(data.get("streamsSucceeded", 0)) + int(data.get("streamsFailed", 0))
                    yield Connection(_address(found["remote"]), int(data.get("streamsStarted", 0)) - over, number)

    def hold(self, peers: Collection[Peer]) -> None:
        """Takes no more data from these peers until they are let go."""
        for opened in self._sockets(peers):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
            _attach(opened, _DROP_DATA)

    def let_go(self, peers: Collection[Peer]) -> None:
        """Takes data again from these peers; those that were not held do not notice."""
        for opened in self._sockets(peers):
            _detach(opened)

    def hold_new(self) -> None:
        """Takes no new connections until `let_new`: whoever opens one tries again, after a second at first."""
        for opened in self._listeners():
            _attach(opened, _DROP_BEGINS)

    def let_new(self) -> None:
        """Takes new connections again."""
        for opened in self._listeners():
            _detach(opened)

    def _listeners(self) -> Iterator[socket.socket]:
        for opened in _tcp_sockets(self._port):
            if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield opened

    def _sockets(self, peers: Collection[Peer]) -> Iterator[socket.socket]:
        """Yields a second descriptor of each connection to these peers; it must be closed soon.

        For as long as it is open, grpcio's poller gets events of a connection that grpcio has closed.
        """
        for opened in _tcp_sockets(self._port) if peers else ():
            if _peer_of(opened) in peers:
                yield opened

    def _servers(self) -> Iterator[Any]:
        for server in _pages(cygrpc.channelz_get_servers, "server", _server_number):
            number = _server_number(server)
            if number not in self._has_port:
                first = next((found for each in _socket_numbers(number) if (found := _socket(each))), None)
                if first is None or "tcpipAddress" not in first.get("local", {}):
                    continue  # Nobody has called it yet, and its listeners do not tell a port that was chosen for them.
                self._has_port[number] = _address(first["local"])[1] == self._port
            if self._has_port[number]:
                yield server


def next_descriptor() -> int:
    """Returns the number that this process's next descriptor gets: at least so many are open; 0: it gets none.

    Counting them would take a millisecond for each few thousand.
    """
    try:
        number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    os.close(number)
    return number


@functools.cache
def has_headroom() -> bool:
    """Tells whether this grpcio, as of 1.82, knows calls beyond the limit that are over and hold memory."""
    with (
        Path(cygrpc.__file__).open("rb") as library,
        mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b"grpc.http2.max_deallocating_streams") >= 0


def can_be_held() -> bool:
    """Tells whether connections can be counted and held here."""
    if not _DESCRIPTORS.is_dir() or not all(hasattr(cygrpc, query) for query in _QUERIES):
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
            _attach(tried, _DROP_DATA)
            _attach(tried, _DROP_BEGINS)
    except OSError:
        return False
    return True


def _attach(opened: socket.socket, instructions: _Filter) -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *each) for each in instructions))
    described = struct.pack("@HP", len(instructions), ctypes.addressof(program))
    opened.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)


def _detach(opened: socket.socket) -> None:
    with suppress(FileNotFoundError):  # It has no filter.
        opened.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def _pages(query: Any, name: str, number_of: Any, start: int = 0) -> Iterator[Any]:
    """Asks until there is no further page."""
    while True:
        answer = json.loads(query(start))
        found = answer.get(name, [])
        yield from found
        if answer.get("end", False) or not found:
            return
        start = number_of(found[-1]) + 1


def _socket_numbers(server: int, first: int = 0) -> Iterator[int]:
    def query(start: int) -> bytes:
        try:
            page: bytes = cygrpc.channelz_get_server_sockets(server, start, 0)
        except ValueError:  # It ended in between.
            return b"{}"
        return page

    for found in _pages(query, "socketRef", lambda reference: int(reference["socketId"]), first):
        yield int(found["socketId"])


def _socket(number: int) -> Any:
    try:
        return json.loads(cygrpc.channelz_get_socket(number))["socket"]
    except ValueError:  # It ended in between.
        return None


def _server_number(server: Any) -> int:
    return int(server["ref"]["serverId"])


def _address(found: Any) -> Peer:
    address = found["tcpipAddress"]
    return _plain(str(ipaddress.ip_address(base64.b64decode(address["ipAddress"])))), int(address.get("port", 0))


def _plain(host: str) -> str:
    """Writes an address in one way: IPv4 within IPv6 as IPv4, no scope."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Opens a descriptor again, so that it stays the same socket whatever becomes of the number; None: no socket."""
    try:
        copied = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        opened = socket.socket(fileno=copied)
    except OSError:
        os.close(copied)
        yield None
        return
    with opened:
        yield opened


def _tcp_sockets(port: int) -> Iterator[socket.socket]:
    """Yields a second descriptor of each TCP socket of this process at a port, one after the other."""
    for descriptor in os.listdir(_DESCRIPTORS):
        with _duplicate(int(descriptor)) as opened:
            if opened is not None and _is_at(opened, port):
                yield opened


def _is_at(opened: socket.socket, port: int) -> bool:
    if opened.family not in (socket.AF_INET, socket.AF_INET6) or opened.type != socket.SOCK_STREAM:
        return False
    with suppress(OSError):
        return bool(opened.getsockname()[1] == port)
    return False


def _peer_of(opened: socket.socket) -> Peer | None:
    """Returns the other end of a TCP connection; None where there is none."""
    try:
        host, peer_port, *_ = opened.getpeername()
    except OSError:
        return None
    return _plain(host), peer_port
