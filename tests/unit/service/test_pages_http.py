"""Requests and answers of the metrics port as bytes."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.pages_http import Request, RequestError, Response, read_request, refusal


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET / HTTP/1.1", Request("/")),
        ("GET /metrics HTTP/1.0", Request("/metrics")),
        ("GET /status.json?now=1#x HTTP/1.1", Request("/status.json")),
        ("HEAD /metrics HTTP/1.1", Request("/metrics", is_head=True)),
        ("GET http://127.0.0.1:8002/metrics HTTP/1.1", Request("/metrics")),
        ("GET /models/%2e%2e/1/card HTTP/1.1", Request("/models/%2e%2e/1/card")),
    ],
)
def test_request_line_is_read(line: str, expected: Request) -> None:
    assert read_request(head(line)) == expected


@pytest.mark.parametrize(
    ("field", "host"),
    [("Host: LOCALHOST:8002", "localhost"), ("hOsT:[::1]:80", "[::1]"), ("host: a.example", "a.example"), ("X: y", "")],
)
def test_host_is_read_without_its_port(field: str, host: str) -> None:
    assert read_request(head("GET / HTTP/1.1", field)).host == host


@pytest.mark.parametrize(
    "line",
    ["", "GET", "GET /", "GET / HTTP/2", "get / HTTP/1.1", "GET  / HTTP/1.1", "GET x HTTP/1.1", "GET /\x7f HTTP/1.1",
     "GET /\xe9 HTTP/1.1", "\x16\x03\x01\x02\x00", "PRI * HTTP/2.0"],
)  # fmt: skip
def test_what_is_no_request_is_a_bad_request(line: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(head(line))
    assert caught.value.status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_told_which_there_are(method: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(head(f"{method} /metrics HTTP/1.1"))
    answer = refusal(caught.value).to_bytes()
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(RequestError):
        assert read_request(content + b"\r\n\r\n").path.startswith("/")


def test_head_is_answered_with_the_length_and_no_body() -> None:
    response = Response(b"hello", headers={"X-Extra": "1"})
    whole, short = response.to_bytes(), response.to_bytes(is_head=True)
    assert whole == short + b"hello"
    assert b"Content-Length: 5\r\n" in short
    assert b"X-Content-Type-Options: nosniff\r\n" in short
    assert b"X-Extra: 1\r\n" in short
    assert short.endswith(b"\r\n\r\n")
