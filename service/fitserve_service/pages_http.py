"""As much of HTTP/1.1 as a read-only page needs: one request without a body, one answer, then the connection ends.

Source: RFC 9112 sections 3 and 6, RFC 9110 section 9.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

MAX_HEAD_BYTES: Final = 16 << 10
"""Longest request line and header fields together."""

HEAD_END: Final = b"\r\n\r\n"

PLAIN: Final = "text/plain; charset=utf-8"

_REQUEST_LINE: Final = re.compile(r"([A-Z]{1,16}) (?:http://[^/?# ]*)?(/[!-~]*) HTTP/1\.[01]")
_METHODS: Final = ("GET", "HEAD")


class RequestError(ValueError):
    """A request that gets no page; the message says what was expected, and never repeats what came.

    Args:
        status: HTTP's number for it.
        message: For the caller.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked.

    Args:
        path: Path of the target as it was written, without its query; percent signs are not resolved.
        host: Host header without its port, lower case; empty where there is none.
        is_head: Only the head of the answer is wanted.
    """

    path: str
    host: str = ""
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered.

    Args:
        content: The body; with HEAD only its length is told.
        content_type: Its media type.
        status: HTTP's number.
        headers: Further header fields.
    """

    content: bytes
    content_type: str = PLAIN
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self, *, is_head: bool = False) -> bytes:
        """Writes the answer as it goes over the wire."""
        fields = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.content)),
            "Connection": "close",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            **self.headers,
        }
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            *(f"{k}: {v}" for k, v in fields.items()),
            "",
            "",
        ]
        return "\r\n".join(lines).encode("latin-1") + (b"" if is_head else self.content)


def refusal(error: RequestError) -> Response:
    """Writes an error for people."""
    headers = {"Allow": ", ".join(_METHODS)} if error.status == HTTPStatus.METHOD_NOT_ALLOWED else {}
    return Response(f"{error.status.value} {error}\n".encode(), status=error.status, headers=headers)


def read_request(head: bytes) -> Request:
    """Reads a request from its head, the empty line at its end included.

    Raises:
        RequestError: it is no request of HTTP/1, or asks for more than to read.
    """
    lines = head.decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise RequestError(HTTPStatus.BAD_REQUEST, "expected a request line of HTTP/1.1, as in GET / HTTP/1.1")
    method, target = match.groups()
    if method not in _METHODS:
        raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD: these pages are for reading")
    hosts = [line.partition(":")[2].strip().lower() for line in lines[1:] if line.lower().startswith("host:")]
    host = re.sub(r":[0-9]*$", "", hosts[0]) if hosts else ""
    return Request(target.partition("?")[0].partition("#")[0], host, is_head=method == "HEAD")
