"""What the parent and a worker say to each other: JSON objects over a pair of connected sockets, each with its length.

| from     | kind          | means                                                                                   |
|----------|---------------|-----------------------------------------------------------------------------------------|
| parent   | `begin`       | settings, models that were unloaded by a call, versions set aside: load, then listen    |
|          |               | also its `number`, and `weights`: the folder of copies of models that all share, or none |
| parent   | `set_aside`   | a `version` crashes its workers: unload it, and do not load it again                    |
| worker   | `waiting`     | it has loaded what it aspires to, and would take calls                                  |
| parent   | `go_on`       | do so: it can answer all that the others agreed on, and counts among them from now on   |
| worker   | `listening`   | it has loaded what it aspires to and takes calls; `text` says what it serves            |
| worker   | `refused`     | it cannot start; `text` says why                                                        |
| worker   | `ready`       | what it can answer now: pairs of model and version, version 0 for the default           |
| parent   | `agreed`      | what every worker can answer; `is_settled` once all of them listened                    |
| worker   | `settled`     | it has heard of that: whoever asks it for its health is told that it serves             |
| parent   | `drain`       | end as at SIGTERM; one that drains already goes on as it does                           |
| parent   | `reload`      | read certificates and the access file anew                                              |
| worker   | `ask`         | a caller wants a model loaded or unloaded: `id`, `action`, `model`                      |
| parent   | `carry_out`   | do so, as all the others: `id`, `action`, `model`                                       |
| worker   | `carried_out` | done: `id`, `error`                                                                     |
| parent   | `answered`    | all have done it: `id` of the `ask`, `error`                                            |
| parent   | `page`        | write a page of the metrics port: `id`, `path`, `host`, `is_head`                       |
| worker   | `page`        | here it is: `id`, `status`, `content_type`, `headers`, `content` (base64)               |
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import Any, Final, TypeAlias

Message: TypeAlias = dict[str, Any]

_LENGTH: Final = struct.Struct("!I")
MAX_MESSAGE_BYTES: Final = 64 << 20
"""Longer than any page; what claims more is torn."""


class Link:
    """One end. `send` may be called from any thread, `receive` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, kind: str, **values: Any) -> bool:
        """Sends a message; False where the other side is gone."""
        content = json.dumps({"kind": kind, **values}).encode()
        try:
            with self._lock:
                self._socket.sendall(_LENGTH.pack(len(content)) + content)
        except OSError:
            return False
        return True

    def receive(self) -> Message | None:
        """Waits for the next message; None once the other side is gone."""
        head = self._read(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        content = self._read(length) if length <= MAX_MESSAGE_BYTES else None
        if content is None:
            return None
        message: Message = json.loads(content)
        return message

    def close(self) -> None:
        """Hangs up; the other side, and whoever waits in `receive` here, is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(min(size - len(parts), 1 << 20))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
