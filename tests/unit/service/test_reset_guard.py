"""Which connections a flood of resets has held back, and what it means to be held."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.connections import Connection, PortConnections, can_be_held, next_descriptor
from fitserve_service.reset_guard import Backlog, abusing

WAIT_S = 20.0

CONNECTIONS = st.lists(st.integers(0, 10_000)).map(
    lambda counts: [Connection(("10.0.0.1", port), count) for port, count in enumerate(counts)]
)


@given(connections=CONNECTIONS, max_streams=st.integers(1, 200), most=st.integers(0, 5_000))
def test_what_is_left_is_within_the_bound_and_no_more_are_chosen_than_that_needs(
    connections: list[Connection], max_streams: int, most: int
) -> None:
    chosen = abusing(connections, max_streams, most)
    surplus = {each.peer: max(0, each.unfinished_count - max_streams) for each in connections}
    left = sum(count for peer, count in surplus.items() if peer not in chosen)
    assert left <= most
    counts = {each.peer: each.unfinished_count for each in connections}
    assert all(chosen[peer] == counts[peer] > max_streams for peer in chosen)
    if chosen:
        assert left + min(surplus[peer] for peer in chosen) > most
        assert min(surplus[peer] for peer in chosen) >= max([surplus[p] for p in surplus if p not in chosen], default=0)


def test_a_connection_within_its_limit_is_never_held() -> None:
    assert abusing([Connection(("10.0.0.1", 1), 100)] * 1_000, 100, 0) == {}


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def joined(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """The two ends of a connection, the accepting one first, and the port that was connected to."""
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    try:
        listening = socket.create_server((host, 0), family=request.param)
    except OSError:
        pytest.skip("no IPv6 here")
    with listening, socket.create_connection(listening.getsockname()[:2], timeout=WAIT_S) as caller:
        accepted, _ = listening.accept()
        with accepted:
            accepted.setblocking(False)
            yield accepted, caller, listening.getsockname()[1]


def test_a_held_connection_gets_its_data_afterwards(joined: tuple[socket.socket, socket.socket, int]) -> None:
    accepted, caller, port = joined
    assert can_be_held()
    peer = caller.getsockname()[:2]
    PortConnections(port).hold({peer})
    caller.sendall(b"later")
    accepted.sendall(b"answers go out all the while")
    assert caller.recv(100) == b"answers go out all the while"
    with pytest.raises(BlockingIOError):
        accepted.recv(100)
    assert not os.get_blocking(accepted.fileno()), "grpcio's threads would wait in it"
    PortConnections(port).let_go({peer})
    accepted.settimeout(WAIT_S)
    assert accepted.recv(100) == b"later"


def test_others_are_not_held(joined: tuple[socket.socket, socket.socket, int]) -> None:
    accepted, caller, port = joined
    host, number = caller.getsockname()[:2]
    PortConnections(port).hold({(host, number + 1)})
    PortConnections(port + 1).hold({(host, number)})
    PortConnections(port).let_go({(host, number)})
    caller.sendall(b"now")
    accepted.settimeout(WAIT_S)
    assert accepted.recv(100) == b"now"


def test_a_caller_that_hangs_up_while_held_is_noticed(joined: tuple[socket.socket, socket.socket, int]) -> None:
    accepted, caller, port = joined
    PortConnections(port).hold({caller.getsockname()[:2]})
    caller.close()
    accepted.settimeout(WAIT_S)
    assert accepted.recv(100) == b""


def is_connected(caller: socket.socket, wait_s: float) -> bool:
    return bool(select.select([], [caller], [], wait_s)[1])


def test_new_connections_are_held_and_the_others_go_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as late:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as early:
            accepted, _ = listening.accept()
            PortConnections(port).hold_new()
            late.setblocking(False)
            late.connect_ex(("127.0.0.1", port))
            assert not is_connected(late, 0)
            with accepted:
                early.sendall(b"data")
                accepted.settimeout(WAIT_S)
                assert accepted.recv(100) == b"data"
        PortConnections(port).let_new()
        assert is_connected(late, WAIT_S)
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_listener_on_another_port_is_not_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("127.0.0.1", 0)) as other:
        PortConnections(held.getsockname()[1]).hold_new()
        with socket.create_connection(other.getsockname(), timeout=WAIT_S):
            pass


def test_open_descriptors_raise_the_next_one() -> None:
    before = next_descriptor()
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    try:
        assert next_descriptor() >= before + 100
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert next_descriptor() == before


@given(found=st.lists(st.integers(-1_000, 1_000), min_size=1), look_count=st.integers(1, 20))
def test_a_backlog_is_what_is_above_the_least_of_the_latest(found: list[int], look_count: int) -> None:
    backlog = Backlog(look_count)
    latest = [backlog.above_least(each) for each in found][-1]
    assert latest == found[-1] - min(found[-look_count:])
