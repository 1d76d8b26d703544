"""No two servers have one port, on any addresses that overlap, whoever comes at the same moment."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from fitserve_service.listening import ListenError, PortClaim, check_listenable

CLAIMS = """
import sys
from fitserve_service.listening import ListenError, PortClaim
for port in sys.stdin:
    try:
        claim = PortClaim("127.0.0.1", int(port), is_shared=True)
        print("got", flush=True)
        sys.stdin.readline()
        claim.close()
    except ListenError as error:
        print("in use" if "is in use" in str(error) else error, flush=True)
        sys.stdin.readline()
"""
PAIRS = 500


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def worker_socket(host: str, port: int, *, shares: bool) -> socket.socket:
    """Listens as grpcio does."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
    try:
        made.bind((host, port))
        made.listen(16)
    except OSError:
        made.close()
        raise
    return made


def raced(code: str) -> list[list[str]]:
    """Has two processes that run the code take port after port at the same moment; gives what became of each pair."""
    both = [Racer(code), Racer(code)]
    found = []
    for _ in range(PAIRS):
        port = free_port()
        for each in both:
            each.tell(str(port))
        found.append(sorted(each.said() for each in both))
        for each in both:
            each.tell("next")
    for each in both:
        each.process.communicate(timeout=30)
    return found


class Racer:
    """A process that runs code, and is told and says lines."""

    def __init__(self, code: str) -> None:
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def test_of_two_that_claim_a_port_at_the_same_moment_one_gets_it() -> None:
    assert raced(CLAIMS) == [["got", "in use"]] * PAIRS


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "::"),
        ("::", "0.0.0.0"),
        ("::1", "::"),
        # grpcio listens on [::] for 0.0.0.0 as well.
        ("::1", "0.0.0.0"),
        ("0.0.0.0", "::1"),
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
    ],
)
@pytest.mark.parametrize("has_workers", [False, True])
def test_addresses_that_overlap_are_one(first: str, second: str, has_workers: bool) -> None:
    claim = PortClaim(first, 0, is_shared=True)
    host = "127.0.0.1" if first == "localhost" else first
    workers = [worker_socket(host, claim.port, shares=True) for _ in range(2 * has_workers)]
    try:
        with pytest.raises(ListenError, match=f"port {claim.port} on .* is in use"):
            PortClaim(second, claim.port, is_shared=True)
        with pytest.raises(ListenError, match="is in use"):
            check_listenable(second if second != "localhost" else host, claim.port)
    finally:
        for worker in workers:
            worker.close()
        claim.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_claim_takes_no_connection_of_its_workers_and_ends_with_its_process(host: str) -> None:
    claim = PortClaim(host, 0, is_shared=True)
    target = "127.0.0.1" if host == "0.0.0.0" else host
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((target, claim.port))
    workers = [worker_socket(host, claim.port, shares=True) for _ in range(2)]
    callers = [socket.create_connection((target, claim.port)) for _ in range(16)]
    accepted = []
    for worker in workers:
        worker.setblocking(False)
        while True:
            try:
                accepted.append(worker.accept()[0])
            except BlockingIOError:
                break
    assert len(accepted) == len(callers)
    # The server hangs up first, so that its connections linger (TIME_WAIT) when the next one comes.
    for each in (*accepted, *callers, *workers):
        each.close()
    claim.close()
    PortClaim(host, claim.port, is_shared=True).close()


def test_a_lone_worker_has_its_port_to_itself() -> None:
    claim = PortClaim("127.0.0.1", 0, is_shared=False)
    with worker_socket("127.0.0.1", claim.port, shares=False):
        # One that would share, as grpcio's servers do where nothing else is said, is kept out as well.
        for shares in (False, True):
            with pytest.raises(OSError, match="in use"):
                worker_socket("127.0.0.1", claim.port, shares=shares)
        with pytest.raises(ListenError, match="is in use"):
            PortClaim("127.0.0.1", claim.port, is_shared=False)
    claim.close()


def test_other_addresses_of_the_same_port_are_others() -> None:
    claim = PortClaim("127.0.0.1", 0, is_shared=True)
    other = PortClaim("127.0.0.2", claim.port, is_shared=True)
    claim.close()
    other.close()


LISTENS = """
import sys
from fitserve_service.listening import ListenError, listening_socket
for port in sys.stdin:
    held = None
    try:
        held = listening_socket("127.0.0.1", int(port))
        print("got", flush=True)
    except ListenError as error:
        print("in use" if "is in use" in str(error) else error, flush=True)
    sys.stdin.readline()
    held and held.close()
"""


def test_of_two_that_listen_at_the_same_moment_one_is_told_so_in_words() -> None:
    assert raced(LISTENS) == [["got", "in use"]] * PAIRS
