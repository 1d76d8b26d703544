"""Decides when a stream's next request may be read: backpressure in bytes, so that memory is the caller's to free.

A stream has under way the requests that were read and have no answer yet, and the answers that its caller has not
taken. The size of an answer to come is not known: each is expected to be as large as the largest so far, and only a few
requests are read before the first.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MAX_BYTES: Final = 8 << 20
"""A stream with so much under way is not read from: it holds this, one more message, and their answers at most."""

_MAX_COUNT: Final = 256
"""Requests and answers under way: small ones cost their objects."""

_FIRST_COUNT: Final = 4
"""Requests under way before the size of an answer is known."""

_MAX_UNSENT: Final = 4096
"""Answers that wait for a slow reader: a method that sends without being asked, as Watch, is not slowed otherwise."""


class StreamRoom:
    """What one stream has under way. Lives on the loop thread."""

    __slots__ = ("_answers", "_largest", "_request_bytes", "_requests", "_unsent_bytes")

    def __init__(self) -> None:
        self._requests: deque[int] = deque()
        self._answers: deque[int] = deque()
        self._request_bytes = 0
        self._unsent_bytes = 0
        self._largest = 0

    @property
    def is_full(self) -> bool:
        """Whether the next request is to wait."""
        waiting = len(self._requests)
        expected = max(self._request_bytes, waiting * self._largest)
        return (
            self._unsent_bytes + expected >= MAX_BYTES
            or waiting + len(self._answers) >= _MAX_COUNT
            or (not self._largest and waiting >= _FIRST_COUNT)
        )

    def read(self, size: int) -> None:
        """Counts a request of `size` bytes that was read."""
        self._requests.append(size)
        self._request_bytes += size

    def answered(self, size: int) -> bool:
        """Counts an answer of `size` bytes, which the oldest request without one has now.

        Returns:
            Whether there is room for it; False where thousands wait for the caller.
        """
        if len(self._answers) >= _MAX_UNSENT:
            return False
        if self._requests:
            self._request_bytes -= self._requests.popleft()
        self._answers.append(size)
        self._unsent_bytes += size
        self._largest = max(self._largest, size, 1)
        return True

    def sent(self) -> int:
        """Forgets the oldest answer: the caller has taken it.

        Returns:
            Its bytes.
        """
        size = self._answers.popleft()
        self._unsent_bytes -= size
        return size
