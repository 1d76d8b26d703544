"""Takes a port out of use before grpcio shuts down, which cancels calls that arrive at that moment.

A proxy passes a cancelled call on to its caller. Where it cannot connect, it goes on to the next server; so the port is
closed first, and connections that end with their calls, as those of nginx without `keepalive`, are waited for.

The kernel resets connections that it has made and nobody has taken when a port closes. So it first makes no further
ones, by a filter that drops what asks for one; whoever asks then tries again after a second, and is refused.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from fitserve_service.connections import PortConnections, can_be_held

_DESCRIPTORS: Final = Path("/proc/self/fd")
_TAKEN_S: Final = 0.05
"""Time for grpcio to take the connections that the kernel has made."""

_LOOK_S: Final = 0.02
_LONGEST_S: Final = 1.0
"""How long connections are waited for: those of gRPC clients and of HAProxy stay open until they are told to end."""

_ATTACH_FILTER: Final = 26
"""SO_ATTACH_FILTER, which Python does not name. Source: socket(7)."""

_DROP_SYN: Final = (
    (0x30, 0, 0, 13),  # load the byte of flags of the TCP header
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone asks for a connection
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # take
)
"""Code, jumps and operand of each instruction. Source: Linux, Documentation/networking/filter.rst; RFC 9293, 3.1."""

_log = logging.getLogger(__name__)


def retire_port(port: int, on_done: Callable[[], None]) -> None:
    """Retires a port of this process on a thread of its own.

    Args:
        port: TCP port of a running server.
        on_done: Called on that thread once no connection is open, or after about a second.
    """
    threading.Thread(target=_run, args=(port, on_done), name="retiring", daemon=True).start()


def _run(port: int, on_done: Callable[[], None]) -> None:
    try:
        _close(port)
        if can_be_held():
            _await_ends(PortConnections(port))
    except Exception:
        _log.exception("port %d: connections that are open could not be waited for", port)
    finally:
        on_done()


def _close(port: int) -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *each) for each in _DROP_SYN))
    described = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(program))
    for listening in _listening(port):
        listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)
    threading.Event().wait(_TAKEN_S)
    for listening in _listening(port):
        listening.shutdown(socket.SHUT_RDWR)


def _listening(port: int) -> Iterator[socket.socket]:
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as found:
            is_port = found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port
            if is_port and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield found


def _await_ends(connections: PortConnections) -> None:
    pause = threading.Event()
    for _ in range(int(_LONGEST_S / _LOOK_S)):
        if not any(True for _ in connections.open_ones()):
            return
        pause.wait(_LOOK_S)
