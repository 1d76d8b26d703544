"""Rolling restarts of two servers behind a load balancer, under load without retries: no call may be lost.

Run by hand, with HAProxy or nginx on PATH; everything is on addresses of this machine:

    python -m fitserve_benchmarks.rolling_restarts haproxy --restarts 20
    python -m fitserve_benchmarks.rolling_restarts nginx --restarts 20

HAProxy asks `/healthz` of each server's metrics port and stops sending to one that is not ready; its `inter` times
`fall` has to be below `--drain-delay-s`. nginx asks nobody: it sends until it cannot connect, and then goes on to the
next server. It has no `keepalive` to its servers: what it has sent on a connection it never sends again.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from fitserve_benchmarks.overload_model import MODEL, PREDICT, is_right, publish_model, requests
from fitserve_benchmarks.processes import child_process
from fitserve_benchmarks.programs import free_ports, program_path

_CALLERS: Final = 8
_CALL_S: Final = 20.0
_WAIT_S: Final = 60.0
_PAUSE_S: Final = 0.05
_ROUNDS: Final = 4
_WARM_UP_COUNT: Final = 100
_DRAIN_DELAY_S: Final = 2.0

_HAPROXY: Final = """\
global
  stats socket {folder}/admin.sock
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend calls
  bind 127.0.0.1:{port} proto h2
  default_backend servers
backend servers
  option httpchk
  http-check connect proto h1
  http-check send meth GET uri /healthz
  default-server proto h2 check inter 500ms fall 2 rise 1
{servers}
"""

_NGINX: Final = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream servers {{
{servers}
  }}
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{
      grpc_pass grpc://servers;
      grpc_next_upstream error timeout;
    }}
  }}
}}
"""


class Balancer:
    """HAProxy or nginx before some servers.

    Args:
        name: `haproxy` or `nginx`.
        folder: Where its configuration and sockets go.
        ports: gRPC port and metrics port of each server.
    """

    def __init__(self, name: str, folder: Path, ports: list[tuple[int, int]]) -> None:
        self._folder, self._is_haproxy = folder, name == "haproxy"
        (self.port,) = free_ports(1)
        config = folder / f"{name}.conf"
        if self._is_haproxy:
            lines = [f"  server s{i} 127.0.0.1:{port} port {check}" for i, (port, check) in enumerate(ports)]
            self.command = [name, "-db", "-f", str(config)]
        else:
            lines = [f"    server 127.0.0.1:{port} max_fails=0;" for port, _ in ports]
            self.command = [name, "-c", str(config)]
        text = _HAPROXY if self._is_haproxy else _NGINX
        config.write_text(text.format(folder=folder, port=self.port, servers="\n".join(lines)))

    def sends_to(self, server: int) -> bool:
        """Tells whether it sends calls to a server, as far as it can be asked: nginx sends to all."""
        if not self._is_haproxy:
            return True
        with socket.socket(socket.AF_UNIX) as admin:
            try:
                admin.connect(str(self._folder / "admin.sock"))
                admin.sendall(b"show stat\n")
                rows = b"".join(iter(lambda: admin.recv(1 << 16), b"")).decode().splitlines()
            except OSError:
                return False
        return any(row.startswith(f"servers,s{server},") and row.split(",")[17] == "UP" for row in rows)


class Load:
    """Callers that never retry, each on a connection of its own, and what became of their calls."""

    def __init__(self, port: int) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._port = port
        self._is_over = threading.Event()
        self._messages, self._contents = requests(_ROUNDS, 16, 0)
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(_CALLERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(f"127.0.0.1:{self._port}", options=options) as channel:
            call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
            while not self._is_over.is_set():
                number = (number + 1) % len(self._messages)
                try:
                    answer = call(self._messages[number], timeout=_CALL_S)
                    found = "OK" if is_right(answer, self._contents[number]) else "wrong"
                except grpc.RpcError as error:
                    failed: Any = error
                    found = f"{failed.code().name}: {failed.details()}"
                self.counts[found] += 1


def roll(name: str, restarts: int, work: Path, say: Callable[[str], None]) -> collections.Counter[str]:
    """Restarts two servers in turn behind a balancer.

    Args:
        name: `haproxy` or `nginx`.
        restarts: How often.
        work: Where models, logs and configurations go.
        say: Takes lines of progress.

    Returns:
        The outcomes of all calls, `OK` among them, by count.
    """
    publish_model(work / "models", _ROUNDS)
    numbers = free_ports(4)
    ports = [(numbers[0], numbers[1]), (numbers[2], numbers[3])]
    balancer = Balancer(name, work, ports)
    with ExitStack() as proxy, _log(work / "log") as log:
        lives = [ExitStack(), ExitStack()]
        for life in lives:
            proxy.push(life)
        processes = [life.enter_context(_serving(work, each, log)) for life, each in zip(lives, ports, strict=True)]
        proxy.enter_context(child_process(balancer.command, stdout=log, stderr=log))
        _wait_until(lambda: all(map(balancer.sends_to, range(2))) and _is_open(balancer.port))
        load = proxy.enter_context(Load(balancer.port))
        for number in range(restarts):
            _wait_until(lambda: load.counts["OK"] >= _WARM_UP_COUNT)
            server = number % 2
            processes[server].send_signal(signal.SIGTERM)
            if code := processes[server].wait(_WAIT_S):
                raise RuntimeError(f"server: expected exit code 0, got {code}; {work / 'log'} has its log")
            lives[server].close()
            processes[server] = lives[server].enter_context(_serving(work, ports[server], log))
            _wait_until(partial(balancer.sends_to, server))
            say(f"restart {number + 1} of {restarts}: {dict(load.counts)}")
    return load.counts


@contextmanager
def _log(path: Path) -> Iterator[Any]:
    with path.open("ab") as log:
        yield log


@contextmanager
def _serving(work: Path, ports: tuple[int, int], log: Any) -> Iterator[Any]:
    places = ["--repository", str(work / "models"), "--port", str(ports[0]), "--metrics-port", str(ports[1])]
    options = ["--device", "cpu", "--drain-delay-s", f"{_DRAIN_DELAY_S:g}"]
    with child_process([program_path("fitserve-serve"), *places, *options], stdout=log, stderr=log) as process:
        _wait_until(lambda: _is_ready(ports[0]))
        yield process


def _is_ready(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")  # type: ignore[call-arg]
        try:
            answer: bytes = call(b"\n" + bytes([len(MODEL)]) + MODEL.encode(), timeout=1)
        except grpc.RpcError:
            return False
    return answer == b"\x08\x01"


def _is_open(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(is_so: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(_WAIT_S / _PAUSE_S)):
        if is_so():
            return
        pause.wait(_PAUSE_S)
    raise RuntimeError(f"rolling restarts: expected the next step within {_WAIT_S:g} s; the log may say why not")


def main() -> int:
    """Runs the drill; the exit code is 1 where a call was lost or answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("balancer", choices=("haproxy", "nginx"))
    parser.add_argument("--restarts", type=int, default=20, metavar="N", help="restarts, of one and the other in turn")
    options = parser.parse_args()
    if shutil.which(options.balancer) is None:
        parser.error(
            f"{options.balancer}: expected it on PATH, found none; on Debian: apt-get install {options.balancer}"
        )
    with tempfile.TemporaryDirectory(prefix="rolling-") as work:
        counts = roll(options.balancer, options.restarts, Path(work), partial(print, flush=True))
    lost = sum(count for outcome, count in counts.items() if outcome != "OK")
    print(
        f"{options.balancer}: {options.restarts} restarts, {counts['OK']:,} calls answered, {lost} lost: {dict(counts)}"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
