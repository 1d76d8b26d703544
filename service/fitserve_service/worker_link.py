"""What the parent and a worker say to each other: JSON objects over a pair of connected sockets, each with its length.

| from     | kind          | means                                                                                   |
|----------|---------------|-----------------------------------------------------------------------------------------|
| parent   | `begin`       | settings, models that were unloaded by a call, versions set aside: load, then listen    |
|          |               | also its `number`, and `weights`: the folder of copies of models that all share, or none |
| parent   | `set_aside`   | a `version` crashes its workers: unload it, and do not load it again                    |
| worker   | `has`         | what it could answer of a `model`: a `candidate`; see `switching`                        |
| worker   | `waiting`     | it has loaded what it aspires to, and would take calls                                  |
| parent   | `load_also`   | the others answer with these versions, too: load them                                   |
| parent   | `propose`     | hold the `views` that all are to answer by from the switch with this `number` on        |
| worker   | `prepared`    | it does; or not (`is_prepared`), because it has let something go                        |
| parent   | `switched`    | the switch is made; whoever has had no request since makes it now                       |
| parent   | `go_on`       | take calls: it answers as all the others do from now on                                 |
| worker   | `listening`   | it takes calls; `text` says what it serves                                              |
| worker   | `refused`     | it cannot start; `text` says why                                                        |
| parent   | `settle`      | all workers have listened, and agree (`is_agreed`)                                      |
| worker   | `settled`     | it has heard of that: whoever asks it for its health is told that it serves             |
| parent   | `ping`        | is its loop alive?                                                                      |
| worker   | `pong`        | it is: the loop itself says so                                                          |
| parent   | `drain`       | end as at SIGTERM; one that drains already goes on as it does                           |
| parent   | `reload`      | read certificates and the access file anew                                              |
| worker   | `ask`         | a caller wants a model loaded, unloaded or shown: `id`, `action`, `model`               |
| parent   | `carry_out`   | do so, as all the others: `id`, `action`, `model`                                       |
| worker   | `carried_out` | done: `id`, `error`                                                                     |
| parent   | `answered`    | all have done it, and answer by it: `id` of the `ask`, `error`                          |
| parent   | `page`        | write a page of the metrics port: `id`, `path`, `host`, `is_head`                       |
| worker   | `page`        | here it is: `id`, `status`, `content_type`, `headers`, `content` (base64)               |
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections import deque
from typing import Any, Final, TypeAlias

Message: TypeAlias = dict[str, Any]

_LENGTH: Final = struct.Struct("!I")
MAX_MESSAGE_BYTES: Final = 64 << 20
"""Longer than any page; what claims more is torn."""

_MOST_UNSENT_BYTES: Final = 64 << 20
"""What the other side may leave unread before it is taken for dead."""


class Link:
    """One end. `send` may be called from any thread, `receive` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, kind: str, **values: Any) -> bool:
        """Sends a message; False where the other side is gone."""
        try:
            with self._lock:
                self._socket.sendall(_packed(kind, values))
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


class PostedLink(Link):
    """A link whose `send` never waits for the other side, which may be stopped: a thread of its own sends.

    Args:
        end: A connected socket.
        most_unsent_bytes: With so many bytes unsent `send` takes nothing more.
    """

    def __init__(self, end: socket.socket, most_unsent_bytes: int = _MOST_UNSENT_BYTES) -> None:
        super().__init__(end)
        self._most_unsent_bytes = most_unsent_bytes
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send_all, name="link", daemon=True)
        self._thread.start()

    def send(self, kind: str, **values: Any) -> bool:
        """Has a message sent; False where the other side is gone, or reads nothing any more."""
        content = _packed(kind, values)
        with self._changed:
            if self._is_closed or self._unsent_bytes + len(content) > self._most_unsent_bytes:
                return False
            self._unsent.append(content)
            self._unsent_bytes += len(content)
            self._changed.notify_all()
        return True

    def flush(self, limit_s: float) -> None:
        """Waits until everything is sent, or nothing more can be, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._unsent_bytes, limit_s)

    def close(self) -> None:
        """Hangs up; what is unsent is lost."""
        self._give_up()
        super().close()

    def _send_all(self) -> None:
        while (content := self._next()) is not None:
            try:
                self._socket.sendall(content)
            except OSError:
                return self._give_up()
            with self._changed:
                self._unsent_bytes -= len(content)
                self._changed.notify_all()
        return None

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or bool(self._unsent))
            return None if self._is_closed else self._unsent.popleft()

    def _give_up(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _packed(kind: str, values: dict[str, Any]) -> bytes:
    content = json.dumps({"kind": kind, **values}).encode()
    return _LENGTH.pack(len(content)) + content
