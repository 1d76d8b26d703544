"""Which connections a flood of resets has held back, and what it means to be held."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.connections import Connection, PortConnections, can_be_held
from fitserve_service.reset_guard import abusing

WAIT_S = 20.0

CONNECTIONS = st.lists(st.integers(0, 10_000)).map(
    lambda counts: [Connection(("10.0.0.1", port), count) for port, count in enumerate(counts)]
)


@given(connections=CONNECTIONS, max_streams=st.integers(1, 200), most=st.integers(0, 5_000))
def test_what_is_left_is_within_the_bound_and_no_more_are_chosen_than_that_needs(
    connections: list[Connection], max_streams: int, most: int
) -> None:
    chosen = abusing(connections, max_streams, most)
    surplus = {peer: max(0, count - max_streams) for peer, count in connections}
    left = sum(count for peer, count in surplus.items() if peer not in chosen)
    assert left <= most
    assert all(chosen[peer] == dict(connections)[peer] > max_streams for peer in chosen)
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
