"""Where a server may listen: whether a port can be had, and how no two servers ever have the same by accident.

Several workers share a port by SO_REUSEPORT, which lets any program of the same user join in silence. So the parent
first listens on it alone, which the kernel grants to one socket on all addresses that overlap, and lets workers in only
then. Nothing is written down: the claim ends with the process, and holds within its network namespace.
"""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
import time
from contextlib import ExitStack, suppress
from typing import Final, TypeAlias

_Resolved: TypeAlias = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]

UNIX: Final = "unix:"
"""What the path of a socket begins with, in place of a host."""

EVERY_ADDRESS: Final = ("0.0.0.0", "::")
"""What stands for all addresses of this machine."""

_FREE_TRIES: Final = 20
"""Free ports that are tried where any is wanted: others take free ports too."""

_DRAW_TRIES: Final = 8
_DRAW_PAUSE_S: Final = 0.02
"""Of two that begin to listen at the same moment, the kernel may refuse both: they try again after a random pause."""


class ListenError(Exception):
    """The address cannot be listened on; the message says why and what to do."""


def is_unix(host: str) -> bool:
    """Tells whether a host is the path of a socket."""
    return host.startswith(UNIX)


def address_text(host: str, port: int) -> str:
    """Writes an address for people: `host:port`, an IPv6 address in brackets, or `unix:PATH`."""
    if is_unix(host):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can reach a host, or a path of a socket."""
    if is_unix(host):
        return True
    try:
        return all(ipaddress.ip_address(info[4][0]).is_loopback for info in _resolve(host, 0))
    except ListenError:
        return False


def check_listenable(host: str, port: int, *, is_shared: bool = False) -> None:
    """Finds out early, and in words, whether a port can be had: grpcio's own failure does not say why.

    Args:
        host: Name or address; a path of a socket is not looked at.
        port: TCP port; 0: any.
        is_shared: Others of this user may have it too, where they share it.

    Raises:
        ListenError: the port is taken or not allowed, or the host is not of this machine.
    """
    if is_unix(host):
        return
    reuse = socket.SO_REUSEPORT if is_shared else socket.SO_REUSEADDR
    try:
        _bound(_listened_on(host, port)[0], reuse).close()
    except OSError as error:
        raise ListenError(_why(host, port, error)) from None


def listening_socket(host: str, port: int) -> socket.socket:
    """Listens on a port that no other socket shares.

    Args:
        host: Name or address.
        port: TCP port; 0 takes a free one.

    Raises:
        ListenError: as `check_listenable`.
    """
    try:
        bound = _bound(_resolve(host, port)[0], socket.SO_REUSEADDR)
        try:
            bound.listen()
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ListenError(_why(host, port, error)) from None
    return bound


class PortClaim:
    """A port that was claimed; no connection reaches it until workers listen there.

    Attributes:
        port: Its number.
    """

    def __init__(self, host: str, port: int, *, is_shared: bool) -> None:
        """Claims a port on all addresses of a host.

        Args:
            host: Name or address.
            port: TCP port; 0 takes a free one.
            is_shared: Several processes are to listen there. Else one, which nobody can then join.

        Raises:
            ListenError: as `check_listenable`, and where others share the port already.
        """
        self._is_shared = is_shared
        self._sockets = ExitStack()
        for number in [port] if port else _free_ports(host):
            try:
                self._claim_all(host, number)
            except OSError as error:
                self._sockets.close()
                failure = ListenError(_why(host, number, error))
            else:
                self.port = number
                return
        raise failure

    def close(self) -> None:
        """Gives the port up."""
        self._sockets.close()

    def _claim_all(self, host: str, port: int) -> None:
        found = _listened_on(host, port)
        for number, each in enumerate(found):
            try:
                self._sockets.enter_context(self._claimed(each))
            except OSError as error:
                # A name of an address family that is switched off here, as ::1 of localhost.
                if error.errno != errno.EADDRNOTAVAIL or number == len(found) - 1:
                    raise

    def _claimed(self, resolved: _Resolved) -> socket.socket:
        for _ in range(_DRAW_TRIES):
            bound = _bound(resolved, socket.SO_REUSEADDR)
            try:
                bound.listen(1)
                self._let_workers_in(bound)
            except OSError as error:
                bound.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                failure = error
                time.sleep(random.random() * _DRAW_PAUSE_S)
            else:
                return bound
        raise failure

    def _let_workers_in(self, listening: socket.socket) -> None:
        """Stays bound and stops to listen. Where workers share, only sockets that share may join from here on.

        A lone worker's socket does not share, and has the port to itself as soon as it listens.
        """
        if self._is_shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.shutdown(socket.SHUT_RDWR)


def _listened_on(host: str, port: int) -> list[_Resolved]:
    """Resolves a host to the addresses that grpcio listens on for it.

    For 0.0.0.0 or [::] that is every address of both kinds, by one socket. Source: gRPC, tcp_server_posix.cc.
    """
    found = _resolve(host, port)
    if any(_is_every(ipaddress.ip_address(each[4][0])) for each in found):
        every: _Resolved = (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::", port, 0, 0))
        with suppress(OSError), _bound((*every[:4], ("::", 0, 0, 0)), socket.SO_REUSEADDR):
            return [every]
    return found


def _is_every(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_unspecified


def _free_ports(host: str) -> list[int]:
    """Gives ports that were free a moment ago."""
    ports = []
    with ExitStack() as stack:
        for _ in range(_FREE_TRIES):
            try:
                bound = stack.enter_context(_bound(_listened_on(host, 0)[0], socket.SO_REUSEADDR))
            except OSError as error:
                raise ListenError(_why(host, 0, error)) from None
            ports.append(int(bound.getsockname()[1]))
    return ports


def _bound(resolved: _Resolved, reuse: int) -> socket.socket:
    family, kind, protocol, _, address = resolved
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, reuse, 1)
        if family == socket.AF_INET6:
            # grpcio's sockets take both kinds of addresses, whatever the machine's default is.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop the program that has it, or choose another (0: any free one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host}: expected a port that this user may open (1024 or above), got {error.strerror}"
    return f"{host}:{port}: expected an address of this machine, got {error.strerror}"


def _resolve(host: str, port: int) -> list[_Resolved]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"host '{host[:128]}': expected a name or address of this machine, got {error}") from None
    return found  # type: ignore[return-value]
