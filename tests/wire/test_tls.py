"""TLS on every transport: whom it lets in, whom it knows, and certificates that change under load."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests import pki
from tests.wire.conforming import TRANSPORTS, WAIT_S, Echo, Running, echo, running, unary

from fitserve_service.access.private_files import PrivateFileError
from fitserve_service.access.tls_files import TlsFiles
from fitserve_service.calls import MethodTable, Origin, UnaryCall
from fitserve_service.transport import TransportOptions

pytestmark = [
    pytest.mark.parametrize("transport", sorted(TRANSPORTS)),
    pytest.mark.needs_program("openssl"),
]

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@contextmanager
def secured(port: int, ca: pki.Pair, own: pki.Pair | None = None) -> Iterator[Any]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    credentials = pki.client_credentials(ca, own)
    with grpc.secure_channel(f"localhost:{port}", credentials, options=options) as opened:
        yield opened


def answer(opened: Any) -> bytes:
    response: bytes = opened.unary_unary("/t.T/M")(b"a", timeout=WAIT_S)
    return response


def refusal(opened: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        answer(opened)
    code: grpc.StatusCode = caught.value.code()
    return code


def certificate_on_the_wire(world: Running) -> str:
    return ssl.get_server_certificate(("127.0.0.1", world.port))


def test_tls_answers_those_who_trust_its_authority_and_nobody_in_cleartext(transport: str, tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    other = pki.authority(tmp_path, "other")
    with running(transport, unary(echo), tls=files) as world:
        with secured(world.port, ca) as opened:
            assert answer(opened) == b"a"
        with secured(world.port, other) as opened:
            assert refusal(opened) is UNAVAILABLE
        with grpc.insecure_channel(f"localhost:{world.port}") as opened:
            assert refusal(opened) is UNAVAILABLE


def test_a_server_whose_certificate_has_expired_is_not_talked_to(transport: str, tmp_path: Path) -> None:
    ca = pki.authority(tmp_path)
    old = pki.issue(tmp_path, "server", ca, days=-1)
    with (
        running(transport, unary(echo), tls=TlsFiles(old.certificate, old.key)) as world,
        secured(world.port, ca) as opened,
    ):
        assert refusal(opened) is UNAVAILABLE


def test_mutual_tls_lets_in_those_alone_whose_certificate_its_authority_signed(transport: str, tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path, asks_for_certificates=True)
    known = pki.issue(tmp_path, "known", ca)
    stranger = pki.issue(tmp_path, "stranger", pki.authority(tmp_path, "other"))
    expired = pki.issue(tmp_path, "expired", ca, days=-1)
    with running(transport, unary(echo), tls=files) as world:
        for own, is_let_in in ((known, True), (None, False), (stranger, False), (expired, False)):
            with secured(world.port, ca, own) as opened:
                if is_let_in:
                    assert answer(opened) == b"a"
                else:
                    assert refusal(opened) is UNAVAILABLE


@pytest.mark.parametrize(
    ("names", "identities"),
    [
        ("URI:spiffe://example/reporting,DNS:reporting.example", ("spiffe://example/reporting", "reporting.example")),
        ("", ("caller",)),
    ],
)
def test_a_call_tells_the_names_in_the_certificate_and_the_address(
    transport: str, names: str, identities: tuple[str, ...], tmp_path: Path
) -> None:
    seen: list[Origin] = []

    class Looking(Echo):
        def on_message(self, message: bytes) -> None:
            seen.append(self.call.origin())
            super().on_message(message)

    def look(call: UnaryCall, message: bytes) -> None:
        seen.append(call.origin())
        call.reply(message)

    files, ca = pki.server_files(tmp_path, asks_for_certificates=True)
    own = pki.issue(tmp_path, "caller", ca, names=names)
    table = MethodTable({"/t.T/M": look}, {"/t.T/S": Looking})
    with running(transport, table, tls=files) as world, secured(world.port, ca, own) as opened:
        answer(opened)
        assert list(opened.stream_stream("/t.T/S")(iter([b"a"]), timeout=WAIT_S)) == [b"a"]
    assert len(seen) == 2
    for origin in seen:
        assert set(origin.identities) == set(identities)
        assert origin.peer.startswith(("ipv4:127.0.0.1:", "ipv6:%5B::1%5D:"))


def test_a_call_in_cleartext_has_an_address_and_no_name(transport: str) -> None:
    seen: list[Origin] = []

    def look(call: UnaryCall, message: bytes) -> None:
        seen.append(call.origin())
        call.reply(message)

    with running(transport, unary(look)) as world, grpc.insecure_channel(f"127.0.0.1:{world.port}") as opened:
        answer(opened)
    assert seen[0].identities == ()
    assert seen[0].peer.startswith("ipv4:127.0.0.1:")


def test_certificates_change_under_load_without_a_failed_call(transport: str, tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    done, failures, counts = threading.Event(), list[BaseException](), [0, 0]

    def call_all_the_while(number: int) -> None:
        try:
            while not done.is_set():
                # A new connection each time: each is a handshake with whatever certificate there is.
                with secured(world.port, ca) as opened:
                    assert answer(opened) == b"a"
                counts[number] += 1
        except BaseException as error:
            failures.append(error)

    with running(transport, unary(echo), tls=files) as world, secured(world.port, ca) as kept:
        threads = [threading.Thread(target=call_all_the_while, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        shown = [certificate_on_the_wire(world)]
        for round_number in range(5):
            fresh = pki.issue(tmp_path, f"fresh{round_number}", ca)
            # One after the other, so that a handshake may meet a certificate with another's key.
            os.replace(fresh.certificate, files.certificate)
            os.replace(fresh.key, files.key)
            shown.append(certificate_on_the_wire(world))
            assert answer(kept) == b"a"
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures
    assert len(set(shown)) == 6
    assert min(counts) > 0


def test_files_that_do_not_hold_are_logged_once_and_the_old_ones_go_on(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, ca = pki.server_files(tmp_path)
    other = pki.issue(tmp_path, "other", ca)
    with caplog.at_level(logging.INFO), running(transport, unary(echo), tls=files) as world:
        before = certificate_on_the_wire(world)
        files.certificate.write_bytes(other.certificate.read_bytes())
        for _ in range(5):
            with secured(world.port, ca) as opened:
                assert answer(opened) == b"a"
        assert certificate_on_the_wire(world) == before
        files.key.write_bytes(other.key.read_bytes())
        assert certificate_on_the_wire(world) != before
    told = [record for record in caplog.records if "cannot be used" in record.getMessage()]
    assert len(told) == 1
    assert "the ones before go on" in told[0].getMessage()
    assert "PRIVATE" not in caplog.text


def test_files_that_do_not_hold_keep_a_server_from_starting(transport: str, tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    other = pki.issue(tmp_path, "other", ca)
    server = TRANSPORTS[transport](TransportOptions(port=0, tls=TlsFiles(files.certificate, other.key)))
    with pytest.raises(PrivateFileError, match="expected a PEM certificate with its unencrypted key"):
        server.run(unary(echo), lambda _: pytest.fail("it listens"))


def test_connections_that_never_finish_their_handshake_keep_nobody_out(transport: str, tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    with running(transport, unary(echo), tls=files, handshake_timeout_s=1.0) as world, ExitStack() as open_sockets:
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
        stalled = []
        for content in (b"", hello, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") * 50:
            stalled.append(open_sockets.enter_context(socket.create_connection(("127.0.0.1", world.port))))
            stalled[-1].sendall(content)
        for _ in range(5):
            with secured(world.port, ca) as opened:
                assert answer(opened) == b"a"
        for each in stalled:
            each.settimeout(WAIT_S)
            with suppress(ConnectionResetError):
                while each.recv(4096):
                    """An alert, then the end."""
        with secured(world.port, ca) as opened:
            assert answer(opened) == b"a"
