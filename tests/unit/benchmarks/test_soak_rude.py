"""Rude callers repeat themselves by their seed, judge what they are answered, and bring no server down."""

from __future__ import annotations

import socket
from random import Random

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.benchmarks.echoing import METHOD, echo, serving
from tests.unit.benchmarks.test_soak_bulk import right_answer

from fitserve_benchmarks.http2 import PREFACE, frames
from fitserve_benchmarks.malformed_frames import MALFORMED, PING, PONG
from fitserve_benchmarks.soak_bulk import PREDICT, known_calls
from fitserve_benchmarks.soak_rude import RudeCallers

SERVICE, NAME = PREDICT.strip("/").split("/")


@given(st.sampled_from(sorted(MALFORMED)), st.integers(0, 2**31))
def test_a_seed_repeats_what_is_said(name: str, seed: int) -> None:
    said = MALFORMED[name](Random(seed), PREDICT)
    assert said == MALFORMED[name](Random(seed), PREDICT)
    assert said.startswith(PREFACE) or name == "no preface"


@given(st.integers(0, 2**31))
def test_a_cut_frame_is_not_whole_at_the_end(seed: int) -> None:
    said = MALFORMED["cut frame"](Random(seed), PREDICT).removeprefix(PREFACE)
    whole = [end for *_, end in frames(said)]
    assert whole[-1] < len(said)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(MALFORMED)), st.integers(0, 2**31))
def test_a_server_goes_on_after_whatever_was_said(name: str, seed: int) -> None:
    with serving(echo) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
            opened.sendall(MALFORMED[name](Random(seed), METHOD) + PING)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert channel.unary_unary(METHOD, None, None)(b"still there", timeout=30) == b"still there"


def test_a_connection_that_was_spoken_to_properly_lives_on() -> None:
    with serving(echo) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
        opened.sendall(PREFACE + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)) + PING)
        heard = b""
        while PONG not in heard:
            heard += opened.recv(1 << 16) or pytest.fail("connection: expected it to live on, got its end")


@pytest.mark.parametrize("is_right", [True, False])
def test_calls_among_resets_are_judged(is_right: bool) -> None:
    """Sessions know their answers by the seed alone, so that a server here can know them too."""
    random = Random(5)
    calls = {call.request: right_answer(call) for call in known_calls(PREDICT, random)}

    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        return calls[request] if is_right else calls[request][:-1] + b"!"

    with serving(answer, SERVICE, NAME) as port:
        callers = RudeCallers(port, 5, methods=(PREDICT,))
        for _ in range(3):
            callers.resets()
            callers.hurry()
    result = callers.result
    assert result.counts["reset within its body"] > 0
    assert (result.right_count > 0, result.wrong_count > 0) == (is_right, not is_right), result.wrong


def test_each_call_is_answered_or_given_up() -> None:
    calls = {call.request: right_answer(call) for call in known_calls(PREDICT, Random(5))}
    with serving(lambda request, _: calls[request], SERVICE, NAME) as port:
        callers = RudeCallers(port, 5, methods=(PREDICT,))
        callers.cancels()
    result = callers.result
    given_up = result.counts.get("cancelled", 0) + result.counts.get("expired", 0)
    assert (result.right_count + given_up, result.wrong) == (20, [])


def test_a_server_that_hangs_up_in_a_session_is_at_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    callers = RudeCallers(port, 0)
    for _ in range(5):
        callers.session()
    assert callers.result.wrong_count > 0
    assert any("ConnectionRefusedError" in each for each in callers.result.wrong)
