"""What only the completion-queue transport does: when it is chosen, how it gathers, and that it frees all it takes."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import weakref
from itertools import pairwise
from typing import Any

import grpc
import pytest
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st
from tests.wire.conforming import channel, running
from tests.wire.raw_callers import raw_caller
from tests.wire.test_transport_hostile import grpc_frame

from fitserve_service import completion_queue, transport_choice, transport_fast
from fitserve_service.calls import MethodTable, StreamCall, UnaryCall
from fitserve_service.transport import TransportOptions
from fitserve_service.transport_choice import choose, why_not_fast
from fitserve_service.transport_fast import FastTransport
from fitserve_service.transport_stock import StockTransport

WAIT_S = 20.0


def echo(call: UnaryCall, message: bytes) -> None:
    call.reply(message)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["auto", "fast"])
def test_fast_is_chosen_where_it_works(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(choose(name, TransportOptions(port=0)), FastTransport)
    assert warnings_of(caplog) == []


def test_stock_is_had_by_its_name_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(choose("stock", TransportOptions(port=0)), StockTransport)
    assert warnings_of(caplog) == []


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of auto, fast, stock, got 'quick'"):
        choose("quick", TransportOptions(port=0))


@pytest.mark.parametrize("name", ["auto", "fast"])
def test_an_untested_grpcio_gets_stock_and_one_warning(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc, "__version__", "1.999.0")
    why_not_fast.cache_clear()
    try:
        assert isinstance(choose(name, TransportOptions(port=0)), StockTransport)
    finally:
        why_not_fast.cache_clear()
    (warning,) = warnings_of(caplog)
    assert "\n" not in warning
    assert "1.999.0" in warning


def test_a_grpcio_that_behaves_otherwise_gets_stock_and_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(call: Any, tag: Any) -> None:
        """As if a batch that asks for a message did not complete."""

    monkeypatch.setattr(completion_queue, "receive_message", never)
    monkeypatch.setattr(transport_choice, "_WAIT_S", 0.2)
    why_not_fast.cache_clear()
    try:
        assert isinstance(choose("auto", TransportOptions(port=0)), StockTransport)
    finally:
        why_not_fast.cache_clear()
    (warning,) = warnings_of(caplog)
    assert "self-test" in warning


@given(minor=st.integers(0, 300), patch=st.integers(0, 9))
def test_only_the_window_counts_as_tested(minor: int, patch: int) -> None:
    assert completion_queue.is_tested(f"1.{minor}.{patch}") == (80 <= minor <= 85)
    assert not completion_queue.is_tested(f"2.{minor}.{patch}")


@pytest.mark.parametrize("version", ["", "1", "one.two", "1.x.3"])
def test_a_version_that_cannot_be_read_is_untested(version: str) -> None:
    assert not completion_queue.is_tested(version)


def test_what_has_arrived_is_handed_over_before_what_was_called_soon() -> None:
    taken: list[bytes] = []
    batches: list[list[bytes]] = []
    is_busy, go = threading.Event(), threading.Event()

    def take(call: UnaryCall, message: bytes) -> None:
        if message == b"block":
            is_busy.set()
            go.wait(WAIT_S)
        else:
            if not taken:
                world.transport.call_soon(dispatch)
            taken.append(message)
        call.reply(message)

    def dispatch() -> None:
        batches.append(list(taken))
        taken.clear()

    with running("fast", MethodTable({"/t.T/M": take}, {})) as world, channel(world.port) as opened:
        method = opened.unary_unary("/t.T/M")
        blocked = method.future(b"block", timeout=WAIT_S)
        assert is_busy.wait(WAIT_S)
        with raw_caller(world.port) as caller:
            streams = [caller.begin() for _ in range(20)]
            for stream in streams:
                caller.http.send_data(stream, b"\0\0\0\0\1x", end_stream=True)
            caller.flush()
            go.set()
            for stream in streams:
                caller.answer(stream)
        blocked.result()
    assert sum(batch.count(b"x") for batch in batches) == 20
    assert len(batches) < 20


def test_a_unary_call_without_a_message_is_malformed() -> None:
    with running("fast", MethodTable({"/t.T/M": echo}, {})) as world, channel(world.port) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            list(opened.stream_stream("/t.T/M")(iter([]), timeout=WAIT_S))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_of_a_call_is_held_once_it_is_over() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def take(call: UnaryCall, message: bytes) -> None:
        token = Token()
        alive.add(token)
        call.on_cancel(lambda: token.touch(call))
        if message != b"cancel":
            call.reply(message)

    class Talk:
        def __init__(self, call: StreamCall) -> None:
            self.call = call
            alive.add(self)

        def on_message(self, message: bytes) -> None:
            self.call.send(message)

        def on_half_close(self) -> None:
            self.call.finish()

    gc.collect()
    gc.disable()
    try:
        table = MethodTable({"/t.T/M": take}, {"/t.T/S": Talk})
        with running("fast", table) as world, channel(world.port) as opened:
            for index in range(100):
                opened.unary_unary("/t.T/M")(b"a", timeout=WAIT_S)
                gone = opened.unary_unary("/t.T/M").future(b"cancel", timeout=WAIT_S)
                gone.cancel()
                answers = opened.stream_stream("/t.T/S")(iter([b"a"] * 3), timeout=WAIT_S)
                if index % 2:
                    assert len(list(answers)) == 3
                else:
                    answers.cancel()
        assert not world.thread.is_alive()
        assert list(alive) == []
    finally:
        gc.enable()


def test_servers_can_be_started_and_stopped_again_and_again() -> None:
    thread_count = threading.active_count()
    for _ in range(30):
        with running("fast", MethodTable({"/t.T/M": echo}, {})) as world, channel(world.port) as opened:
            assert opened.unary_unary("/t.T/M")(b"a", timeout=WAIT_S) == b"a"
    assert threading.active_count() <= thread_count


def test_an_exception_of_on_start_ends_the_server() -> None:
    def refuse(_: int) -> None:
        raise KeyError("on_start")

    transport = FastTransport(TransportOptions(port=0))
    with pytest.raises(KeyError, match="on_start"):
        transport.run(MethodTable({"/t.T/M": echo}, {}), refuse)
    transport.post(lambda: pytest.fail("the loop has ended"))


class Token:
    """What a callback holds."""

    def touch(self, call: UnaryCall) -> None:
        call.reply(b"")


def test_what_is_posted_wakes_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_fast, "_MAX_WAIT_S", WAIT_S + 5)
    with running("fast", MethodTable({"/t.T/M": echo}, {})) as world:
        for _ in range(200):
            ran = threading.Event()
            world.transport.post(ran.set)
            assert ran.wait(WAIT_S)


def test_a_caller_that_never_reads_is_read_from_only_so_far() -> None:
    taken = 0

    class Amplify:
        def __init__(self, call: StreamCall) -> None:
            self.call = call

        def on_message(self, _: bytes) -> None:
            nonlocal taken
            taken += 1
            self.call.send(b"x" * 100_000)

        def on_half_close(self) -> None:
            self.call.finish()

    table = MethodTable({"/t.T/M": echo}, {"/t.T/S": Amplify})
    with running("fast", table) as world, raw_caller(world.port) as caller, channel(world.port) as opened:
        stream = caller.begin(path="/t.T/S")
        for _ in range(500):
            caller.http.send_data(stream, b"\0\0\0\0\1x")
        caller.flush()
        for _ in range(1_000):
            opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)
        assert 64 <= taken < 100


def test_who_never_reads_loses_the_oldest_of_the_own_answers_and_nobody_else_any() -> None:
    table = MethodTable({"/t.T/M": echo}, {})
    with running("fast", table, max_unread_answers=5) as world, raw_caller(world.port) as caller:
        caller.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        caller.flush()
        streams = [caller.begin() for _ in range(8)]
        for stream in streams:
            caller.http.send_data(stream, grpc_frame(b"unread"), end_stream=True)
        caller.flush()
        for oldest in streams[:3]:
            assert caller.answer(oldest)["grpc-status"] == "8"
        with channel(world.port) as opened:
            assert [opened.unary_unary("/t.T/M")(b"read", timeout=WAIT_S) for _ in range(20)] == [b"read"] * 20


class Scripted:
    """What a loop waits at: says what comes, and writes down how it was waited for."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.waits_s: list[float] = []

    def gather(self, wait_s: float, _: int) -> bool:
        self.waits_s.append(wait_s)
        return self.answers.pop(0)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes 0.1 ms."""
    ticks = itertools.count()
    monkeypatch.setattr(transport_fast.time, "monotonic", lambda: next(ticks) * 1e-4)


def waiting(*, is_awake: bool, alone_count: int) -> FastTransport:
    transport = FastTransport(TransportOptions(port=0))
    transport._is_awake, transport._alone_count = is_awake, alone_count
    return transport


@pytest.mark.usefixtures("ticking")
def test_where_calls_come_alone_and_soon_the_next_is_waited_for_awake() -> None:
    queue = Scripted(False, True)
    transport = waiting(is_awake=True, alone_count=100)
    transport._await(queue, 0.15)  # type: ignore[arg-type]
    assert queue.waits_s == [0.0, 0.0]
    assert transport._is_awake


@pytest.mark.usefixtures("ticking")
def test_a_loop_that_hears_nothing_falls_asleep_and_sleeps_at_once_the_next_time() -> None:
    queue = Scripted(False, False, False, False, False)
    transport = waiting(is_awake=True, alone_count=100)
    transport._await(queue, 0.15)  # type: ignore[arg-type]
    assert queue.waits_s[-1] == 0.15
    transport._await(queue, 0.15)  # type: ignore[arg-type]
    assert queue.waits_s[-1] == 0.15
    assert queue.waits_s.count(0.15) == 2


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(("is_awake", "alone_count"), [(False, 100), (True, 7)])
def test_among_many_or_after_a_long_wait_the_next_is_waited_for_asleep(is_awake: bool, alone_count: int) -> None:
    queue = Scripted(True)
    waiting(is_awake=is_awake, alone_count=alone_count)._await(queue, 0.15)  # type: ignore[arg-type]
    assert queue.waits_s == [0.15]


def test_calls_that_come_alone_are_counted() -> None:
    counts: list[int] = []

    def noted(call: UnaryCall, message: bytes) -> None:
        counts.append(world.transport._alone_count)  # type: ignore[attr-defined]
        call.reply(message)

    with running("fast", MethodTable({"/t.T/M": noted}, {})) as world, channel(world.port) as opened:
        # On a busy machine two may come in one turn, which begins the count anew.
        while max(counts, default=0) < 5 and len(counts) < 5_000:
            assert opened.unary_unary("/t.T/M")(b"a", timeout=WAIT_S) == b"a"
    assert all(later <= earlier + 1 for earlier, later in pairwise(counts))
    assert max(counts) >= 5
