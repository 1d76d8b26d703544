"""The link between parent and worker: whole messages or none."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.worker_link import MAX_MESSAGE_BYTES, Link, PostedLink

TEXTS = st.text(max_size=200)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_messages_come_whole_and_in_order(texts: list[str]) -> None:
    near, far = socket.socketpair()
    with near, far:
        sender, receiver = Link(near), Link(far)
        for text in texts:
            assert sender.send("page", text=text)
        assert [receiver.receive() for _ in texts] == [{"kind": "page", "text": text} for text in texts]


def test_a_side_that_hangs_up_ends_both() -> None:
    near, far = socket.socketpair()
    link, other = Link(near), Link(far)
    other.close()
    assert link.receive() is None
    assert not link.send("page")
    link.close()


def test_a_torn_message_is_none() -> None:
    for head in (b"\0\0", struct.pack("!I", 9) + b"{}", struct.pack("!I", MAX_MESSAGE_BYTES + 1)):
        near, far = socket.socketpair()
        with near, far:
            near.sendall(head)
            near.shutdown(socket.SHUT_WR)
            assert Link(far).receive() is None


def test_a_posted_message_never_waits_for_a_side_that_reads_nothing() -> None:
    near, far = socket.socketpair()
    with near, far:
        link = PostedLink(near, most_unsent_bytes=4 << 20)
        # Far more than the sockets hold between them.
        count = 0
        while link.send("page", text="x" * 1000):
            count += 1
        assert count > 4000
        reader = Link(far)
        assert [reader.receive() for _ in range(count)] == [{"kind": "page", "text": "x" * 1000}] * count
        link.flush(60.0)
        assert link.send("page", text="there is room again")
        assert reader.receive() == {"kind": "page", "text": "there is room again"}
        link.close()
        assert not link.send("page")


def test_a_posted_link_notes_that_the_other_side_is_gone() -> None:
    near, far = socket.socketpair()
    link = PostedLink(near)
    far.close()
    link.send("page")
    link.flush(60.0)
    while link.send("page"):
        link.flush(60.0)
    link.close()
