"""How much of a stream is under way before it is read from again: laws over any order of requests and answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.stream_room import MAX_BYTES, StreamRoom

SIZES = st.integers(0, 2 * MAX_BYTES)


@given(steps=st.lists(st.tuples(st.sampled_from(["read", "answer", "take"]), SIZES), max_size=300))
def test_what_is_under_way_is_bounded_by_the_last_message_and_answers_like_the_largest(
    steps: list[tuple[str, int]],
) -> None:
    room, requests, answers = StreamRoom(), 0, 0
    request_bytes: list[int] = []
    answer_bytes: list[int] = []
    for step, size in steps:
        if step == "read" and not room.is_full:
            assert sum(request_bytes) + sum(answer_bytes) < MAX_BYTES
            assert len(request_bytes) + len(answer_bytes) < 256
            room.read(size)
            request_bytes.append(size)
            requests += 1
        elif step == "answer" and request_bytes:
            request_bytes.pop(0)
            assert room.answered(size)
            answer_bytes.append(size)
            answers += 1
        elif step == "take" and answer_bytes:
            assert room.sent() == answer_bytes.pop(0)
    while answer_bytes:
        assert room.sent() == answer_bytes.pop(0)
    if not request_bytes:
        assert not room.is_full


def test_only_a_few_requests_are_read_before_the_size_of_an_answer_is_known() -> None:
    room = StreamRoom()
    taken = 0
    while not room.is_full:
        room.read(1)
        taken += 1
    assert taken == 4
    room.answered(MAX_BYTES // 2)
    room.sent()
    # Three wait, and each is expected to be as large.
    assert room.is_full


def test_a_method_that_sends_unasked_to_a_caller_who_does_not_read_is_stopped() -> None:
    room = StreamRoom()
    assert [room.answered(1) for _ in range(4097)] == [True] * 4096 + [False]
