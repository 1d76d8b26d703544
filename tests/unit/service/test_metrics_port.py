"""The HTTP server of the metrics port against callers who are slow, huge, many or gone."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from fitserve_service.listening import ListenError
from fitserve_service.metrics_port import MetricsPort, PortLimits
from fitserve_service.pages_http import Request, Response

WAIT_S = 20.0
PATIENT = PortLimits(head_s=60, answer_s=60, tick_s=60)


def echo(request: Request) -> Response:
    return Response(request.path.encode())


@contextmanager
def opened(answer: Callable[[Request], Response] = echo, limits: PortLimits = PATIENT) -> Iterator[MetricsPort]:
    port = MetricsPort("127.0.0.1", 0, answer, limits=limits)
    try:
        yield port
    finally:
        port.close()


def connect(port: MetricsPort) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port.port), WAIT_S)


def everything(caller: socket.socket) -> bytes:
    parts = []
    while part := caller.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def get(port: MetricsPort, path: str = "/x") -> bytes:
    with connect(port) as caller:
        caller.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return everything(caller)


def is_closed(caller: socket.socket) -> bool:
    """Waits until the server has ended a connection on which it has nothing to say."""
    try:
        return caller.recv(1) == b""
    except ConnectionResetError:
        return True


def test_each_path_is_answered_until_the_port_is_closed() -> None:
    with opened() as port:
        assert get(port, "/a?b").endswith(b"\r\n\r\n/a")
        with pytest.raises(ListenError, match="is in use"):
            MetricsPort("127.0.0.1", port.port, echo)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port.port)) != 0


def test_silent_callers_cost_no_thread_and_make_room_for_others() -> None:
    with ExitStack() as stack, opened(limits=PortLimits(connection_count=8, head_s=60, answer_s=60)) as port:
        assert get(port)
        thread_count = threading.active_count()
        silent = [stack.enter_context(connect(port)) for _ in range(30)]
        assert get(port).endswith(b"/x")
        assert threading.active_count() <= thread_count + 1
        assert is_closed(silent[0])


def test_silent_caller_is_closed_when_its_time_is_over() -> None:
    with opened(limits=PortLimits(head_s=0.05)) as port, connect(port) as caller:
        caller.sendall(b"GET / HT")
        assert is_closed(caller)


def test_caller_who_does_not_read_makes_room_for_others() -> None:
    def huge(request: Request) -> Response:
        return Response(b"x" * (32 << 20)) if request.path == "/huge" else echo(request)

    with ExitStack() as stack, opened(huge, PortLimits(connection_count=2, head_s=60, answer_s=60)) as port:
        for _ in range(4):
            greedy = stack.enter_context(connect(port))
            greedy.sendall(b"GET /huge HTTP/1.1\r\n\r\n")
            assert greedy.recv(15) == b"HTTP/1.1 200 OK"
        assert get(port).endswith(b"/x")


def test_endless_request_is_refused() -> None:
    with opened() as port:
        with connect(port) as caller:
            caller.sendall(b"GET /" + b"a" * 40_000)
            assert everything(caller).startswith(b"HTTP/1.1 431 ")
        assert get(port).endswith(b"/x")


@pytest.mark.parametrize("content", [b"", b"G", b"GET / HTTP/1.1\r\n", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n"])
def test_callers_who_go_away_are_no_news(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), opened() as port:
        with connect(port) as caller:
            caller.sendall(content)
        assert get(port).endswith(b"/x")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_head_has_no_body() -> None:
    with opened() as port, connect(port) as caller:
        caller.sendall(b"HEAD /12345 HTTP/1.1\r\n\r\n")
        answer = everything(caller)
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 6\r\n" in answer


def test_page_that_fails_says_nothing_of_why(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Request) -> Response:
        raise RuntimeError("secret")

    with opened(broken) as port:
        answer = get(port)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert "secret" in caplog.text


def test_ticks_come_by_themselves() -> None:
    ticked = threading.Event()
    port = MetricsPort("127.0.0.1", 0, echo, tick=ticked.set, limits=PortLimits(tick_s=0.01))
    try:
        assert ticked.wait(WAIT_S)
    finally:
        port.close()


def test_a_tick_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    ticked, failures = threading.Event(), iter([RuntimeError("broken")])

    def tick() -> None:
        for failure in failures:
            raise failure
        ticked.set()

    port = MetricsPort("127.0.0.1", 0, echo, tick=tick, limits=PortLimits(tick_s=0.01))
    try:
        assert ticked.wait(WAIT_S)
    finally:
        port.close()
    assert "broken" in caplog.text


def test_close_ends_what_is_open() -> None:
    with opened() as port:
        caller = connect(port)
        assert get(port)
    with caller:
        assert is_closed(caller)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leaves this process no descriptor to open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_descriptors_it_says_so_once_and_answers_once_there_are_some(caplog: pytest.LogCaptureFixture) -> None:
    said = threading.Semaphore(0)

    class Told(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            said.release()

    logger, told = logging.getLogger("fitserve_service.metrics_port"), Told()
    logger.addHandler(told)
    try:
        with opened() as port, socket.socket() as caller, socket.socket() as other:
            with no_descriptors():
                for each in (caller, other):
                    each.settimeout(WAIT_S)
                    each.connect(("127.0.0.1", port.port))
                    each.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert said.acquire(timeout=WAIT_S)
            assert everything(caller).endswith(b"/x")
            assert everything(other).endswith(b"/x")
    finally:
        logger.removeHandler(told)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "the metrics port takes no connections for now: Too many open files"
    ]
