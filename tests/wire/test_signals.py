"""What signals do to a server: to its parent, to its workers, and to both at once; with calls in flight."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.wire.commands import (
    NOT_SERVING,
    PREDICT,
    SERVE,
    SERVER_READY,
    SERVING,
    WAIT_S,
    WATCH,
    Command,
    codes,
    connected,
    health,
    in_flight,
    slow_repository,
    slow_request,
    started,
    status_of,
    wait_until,
)

TRANSPORTS = ["fast", pytest.param("stock", marks=pytest.mark.slow)]
WORKERS = ["1", "2"]
HARMLESS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1]
FREE = ("--metrics-port", "0", "--log-format", "text")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("workers", ["0", *WORKERS])
def test_harmless_signals_and_reloads_lose_nothing_and_quit_drains(
    tmp_path: Path, workers: str, transport: str
) -> None:
    flags = (*FREE, "--workers", workers, "--transport", transport, "--log-level", "debug")
    with started(slow_repository(tmp_path), *flags) as command, connected(command.address) as channel:
        processes = command.processes()
        running = in_flight(channel)
        for process in processes:
            for number in HARMLESS:
                os.kill(process, number)
            os.kill(process, signal.SIGHUP)
        wait_until(lambda: command.log().count("SIGHUP: reading certificates") == len(processes))
        assert codes(running) == {"OK"}
        for name in ("SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM"):
            wait_until(lambda name=name: command.log().count(f"{name} means nothing here") == len(processes))
        assert codes(in_flight(channel, 1)) == {"OK"}
        assert command.page("/healthz")[0] == 200
        running = in_flight(channel)
        command.process.send_signal(signal.SIGQUIT)
        assert codes(running) == {"OK"}
        assert command.process.wait(WAIT_S) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("workers", ["0", *WORKERS])
def test_a_draining_server_is_not_ready_and_takes_calls_until_its_delay_is_over(
    tmp_path: Path, workers: str, transport: str
) -> None:
    flags = (*FREE, "--workers", workers, "--transport", transport, "--drain-delay-s", "3600")
    with started(slow_repository(tmp_path), *flags) as command, connected(command.address) as before:
        watched = before.unary_stream(WATCH)(b"", timeout=WAIT_S)
        assert status_of(next(watched)) == SERVING
        running = in_flight(before)
        command.process.send_signal(signal.SIGTERM)
        assert status_of(next(watched)) == NOT_SERVING
        wait_until(lambda: command.page("/healthz") == (503, "not ready\n"))
        assert command.page("/livez") == (200, "ok\n")
        wait_until(lambda: command.log().count("draining: not ready any more") == max(int(workers), 1))
        for _ in range(8):
            # Connections that are new now, to whichever worker.
            with connected(command.address) as after:
                assert health(after) == NOT_SERVING
                assert after.unary_unary(SERVER_READY)(b"", timeout=WAIT_S) == b""
                assert after.unary_unary(PREDICT)(slow_request(1), timeout=WAIT_S)
        assert before.unary_unary(PREDICT)(slow_request(1), timeout=WAIT_S)
        assert codes(running) == {"OK"}
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(WAIT_S) == 128 + signal.SIGTERM


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("workers", WORKERS)
def test_a_signal_to_the_parent_and_to_every_worker_drains_once(tmp_path: Path, workers: str, transport: str) -> None:
    # As a service manager stops all processes of a service.
    flags = (*FREE, "--workers", workers, "--transport", transport, "--drain-delay-s", "1")
    with started(slow_repository(tmp_path), *flags) as command, connected(command.address) as channel:
        watched = channel.unary_stream(WATCH)(b"", timeout=WAIT_S)
        assert status_of(next(watched)) == SERVING
        running = in_flight(channel, 8)
        for process in reversed(command.processes()):
            os.kill(process, signal.SIGTERM)
        assert codes(running) == {"OK"}
        # The last word comes, and the stream ends well, once nothing is left to answer.
        assert [status_of(answer) for answer in watched] == [NOT_SERVING]
        assert command.process.wait(WAIT_S) == 0
        assert command.log().count("stopping: requests in flight") == int(workers)
        assert "starting another" not in command.log()


@pytest.mark.slow
def test_a_worker_that_is_signalled_alone_drains_and_is_followed_by_another(tmp_path: Path) -> None:
    with started(slow_repository(tmp_path), *FREE, "--workers", "1") as command:
        (worker,) = command.workers()
        with connected(command.address) as channel:
            running = in_flight(channel)
            os.kill(worker, signal.SIGTERM)
            assert codes(running) == {"OK"}
        wait_until(lambda: command.log().count("takes calls") == 2)
        assert worker not in command.workers()
        with connected(command.address) as channel:
            assert codes(in_flight(channel)) == {"OK"}


def test_the_health_page_stays_until_the_last_call_is_answered(tmp_path: Path) -> None:
    with started(slow_repository(tmp_path), *FREE) as command, connected(command.address) as channel:
        running = in_flight(channel, 8)
        command.process.send_signal(signal.SIGTERM)
        port = int(command.address.rpartition(":")[2])
        wait_until(lambda: is_refused(port))
        while not all(future.done() for future in running):
            assert command.page("/healthz")[0] == 503
            assert command.page("/livez")[0] == 200
        assert codes(running) == {"OK"}
        assert command.process.wait(WAIT_S) == 0


def is_refused(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_was_never_ready_does_not_wait_for_load_balancers(tmp_path: Path) -> None:
    flags = [*SERVE, "--repository", str(tmp_path), "--port", "0", "--metrics-port", "off", "--drain-delay-s", "3600"]
    process = subprocess.Popen(flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with killed_after(process):
        wait_until(lambda: is_blocking_sigterm(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def is_blocking_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


@contextmanager
def killed_after(process: subprocess.Popen[Any]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.kill()


class Terminal:
    """A terminal with the command in its foreground; without a session, one that only its descriptors lead to."""

    def __init__(self, root: Path, *flags: str, is_outlived: bool = False, has_session: bool = True) -> None:
        self.master, slave = pty.openpty()

        def settle() -> None:
            os.setsid()
            if has_session:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # As a shell starts it, whatever started this test: under nohup it would outlive the terminal, too.
            signal.signal(signal.SIGHUP, signal.SIG_IGN if is_outlived else signal.SIG_DFL)

        fixed = ["--repository", str(root), "--port", "0", "--device", "cpu", "--canary", "off", "--metrics-port", "0"]
        log = root.with_suffix(".log")
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [*SERVE, *fixed, *flags], stdin=slave, stdout=slave, stderr=stderr, text=True, preexec_fn=settle
            )
        os.close(slave)
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self.master, 1 << 16)
        self.command = Command(process, log, line.decode())


def test_a_terminal_that_closes_drains_what_runs_in_it(tmp_path: Path) -> None:
    terminal = Terminal(slow_repository(tmp_path), "--workers", "2")
    command = terminal.command
    with killed_after(command.process), connected(command.address) as channel:
        running = in_flight(channel, 8)
        os.close(terminal.master)
        assert codes(running) == {"OK"}
        assert command.process.wait(WAIT_S) == 0
    assert command.log().count("the terminal has closed") == 1


@pytest.mark.slow
def test_one_that_its_terminal_left_behind_is_reloaded_by_whoever_asks(tmp_path: Path) -> None:
    # As `disown` does, or setsid: no SIGHUP comes when the terminal closes, but its descriptors are hung up.
    terminal = Terminal(slow_repository(tmp_path), has_session=False)
    command = terminal.command
    with killed_after(command.process), connected(command.address) as channel:
        os.close(terminal.master)
        command.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: " in command.log())
        assert "SIGHUP: reading certificates" in command.log()
        assert codes(in_flight(channel)) == {"OK"}
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(WAIT_S) == 0


def test_one_that_outlives_its_terminal_by_request_reloads_alone(tmp_path: Path) -> None:
    terminal = Terminal(slow_repository(tmp_path), is_outlived=True)
    command = terminal.command
    with killed_after(command.process), connected(command.address) as channel:
        os.close(terminal.master)
        wait_until(lambda: "SIGHUP: reading certificates" in command.log())
        assert codes(in_flight(channel)) == {"OK"}
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(WAIT_S) == 0


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_closed_standard_descriptors_are_no_error(tmp_path: Path, workers: str) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    closed = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    flags = ["--repository", str(slow_repository(tmp_path)), "--port", str(port), "--metrics-port", "off"]
    process = subprocess.Popen([*closed, *SERVE, *flags, "--device", "cpu", "--workers", workers])
    command = Command(process, tmp_path, f"127.0.0.1:{port}")
    with killed_after(process), connected(command.address) as channel:
        channel.unary_unary(SERVER_READY)(b"", timeout=WAIT_S, wait_for_ready=True)
        wait_until(lambda: health(channel) == SERVING)
        assert codes(in_flight(channel)) == {"OK"}
        for pid in command.processes():
            assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
        running = in_flight(channel)
        process.send_signal(signal.SIGTERM)
        assert codes(running) == {"OK"}
        assert process.wait(WAIT_S) == 0
