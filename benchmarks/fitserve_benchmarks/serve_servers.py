"""The servers under measurement: started on free ports of this machine, asked once, and over with their context."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import grpc

from fitserve_benchmarks.peers import Peer, PeerError, install, installed_version, peer_command, peer_environment
from fitserve_benchmarks.processes import child_process
from fitserve_benchmarks.programs import free_ports, program_path
from fitserve_benchmarks.serve_load import Target
from fitserve_benchmarks.serve_requests import MODEL_INFER
from fitserve_benchmarks.subject import highest_version
from fitserve_contract import repository

_READY_S: Final = 90.0
_ASK_S: Final = 2.0
_MESSAGE_LIMIT: Final = 64 << 20

FAST: Final = "fitserve fast"
STOCK: Final = "fitserve stock"
INLINE: Final = "grpc.aio inline"
ECHO_AIO: Final = "echo, grpc.aio"
ECHO_SYNC: Final = "echo, grpc sync"
ECHO_QUEUE: Final = "echo, completion queue"

FLOORS: Final = {INLINE: "inline-aio", ECHO_AIO: "echo-aio", ECHO_SYNC: "echo-sync", ECHO_QUEUE: "echo-queue"}


@dataclass(frozen=True)
class Served:
    """The models that everybody serves.

    Args:
        repository: For fitserve.
        files: `NAME=FILE` each, for the others; the same files.
        thread_count: Threads inside an operator.
        log_folder: For the servers' output.
    """

    repository: Path
    files: Sequence[str]
    thread_count: int
    log_folder: Path


@dataclass(frozen=True)
class Launch:
    """How a contestant is started.

    Args:
        name: As the report has it.
        command: Program and arguments.
        target: Where it will be called.
        is_echo: It gives the request back.
        encoding: As the peer's.
        environment: Further variables.
        version: Of the peer's package; empty for what is ours.
    """

    name: str
    command: Sequence[str]
    target: Target
    is_echo: bool = False
    encoding: Literal["bytes", "base64"] = "bytes"
    environment: dict[str, str] = field(default_factory=dict)
    version: str = ""

    def request_of(self, message: bytes) -> bytes:
        """Puts a message as this contestant takes it."""
        if self.encoding == "bytes":
            return message
        return json.dumps({"message": base64.b64encode(message).decode()}).encode()

    def message_of(self, answer: bytes) -> bytes:
        """Takes the message out of an answer; ValueError or KeyError where there is none."""
        return answer if self.encoding == "bytes" else base64.b64decode(json.loads(answer)["message"])


@dataclass(frozen=True)
class Contestant:
    """A server that answers."""

    launch: Launch
    pid: int

    @property
    def name(self) -> str:
        """As the report has it."""
        return self.launch.name

    def ask(self, request: bytes, timeout_s: float = 30.0) -> bytes:
        """Calls once. OSError: it did not answer, or with an error."""
        target = self.launch.target
        return _ask_grpc(target, request, timeout_s) if target.protocol == "grpc" else _ask_http(target, request)

    def cpu_s(self) -> float:
        """Processor time that its processes took so far, seconds."""
        return _tree_ticks(self.pid) / os.sysconf("SC_CLK_TCK")


def copy_served(root: Path, models: Sequence[str], thread_count: int, folder: Path) -> Served:
    """Copies the highest version of each model, with the thread count that everybody has.

    Args:
        root: Model repository.
        models: Names.
        thread_count: Threads inside an operator.
        folder: Where the copies and the servers' logs go.

    Raises:
        SubjectError: a model has no version.
    """
    copies, logs = folder / "repository", folder / "logs"
    logs.mkdir()
    files = []
    for model in models:
        path = repository.version_path(root, model, highest_version(root, model))
        shutil.copytree(path.folder, copies / model / path.folder.name)
        (copies / model / "model.toml").write_text(f"intra_op_num_threads = {thread_count}\n")
        files.append(f"{model}={copies / model / path.folder.name / repository.MODEL_FILE}")
    return Served(copies, files, thread_count, logs)


def own_launches(served: Served) -> list[Launch]:
    """Gives our two transports, what they are held against, and the floors."""
    launches = []
    for name, transport in ((FAST, "fast"), (STOCK, "stock")):
        port, metrics_port = free_ports(2)
        places = ["--repository", str(served.repository), "--port", str(port), "--metrics-port", str(metrics_port)]
        options = [word for pair in serving_options(transport).items() for word in pair]
        launches.append(Launch(name, [program_path("fitserve-serve"), *places, *options], Target(port, MODEL_INFER)))
    for name, kind in FLOORS.items():
        (port,) = free_ports(1)
        program = [sys.executable, "-m", "fitserve_benchmarks.serve_floor", kind, str(port), str(served.thread_count)]
        launches.append(Launch(name, [*program, *served.files], Target(port, MODEL_INFER), is_echo=kind[:4] == "echo"))
    return launches


def serving_options(transport: str) -> dict[str, str]:
    """Returns the options of every server of ours that is measured."""
    # A closed loop is to wait, as it does with the others, whatever the time; `overload` measures the other way.
    return {"--device": "cpu", "--variant": "fp32", "--transport": transport, "--max-queue-ms": "0"}


def peer_launch(peer: Peer, python: Path, served: Served) -> Launch:
    """Gives an installed peer's."""
    (port,) = free_ports(1)
    content_type = "application/json" if peer.encoding == "base64" else "application/octet-stream"
    return Launch(
        peer.name,
        peer_command(peer, python, port, served.thread_count, served.files),
        Target(port, peer.path, peer.protocol, content_type),
        encoding=peer.encoding,
        environment=peer_environment(python),
        version=installed_version(peer, python),
    )


@contextmanager
def running(launch: Launch, served: Served, message: bytes) -> Iterator[Contestant]:
    """Runs a contestant until the context ends; it has answered once.

    Args:
        launch: Whom.
        served: What it serves, and where its output goes.
        message: The request that it must answer.

    Raises:
        PeerError: it ended, or did not answer within a minute and a half; with its last line.
    """
    path = served.log_folder / f"{launch.name.replace(', ', '-').replace(' ', '-')}.log"
    with (
        path.open("wb") as log,
        child_process(launch.command, environment=launch.environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        contestant = Contestant(launch, process.pid)
        _await_answer(contestant, process, launch.request_of(message), path)
        yield contestant


def try_install(peer: Peer, runtime_version: str) -> tuple[Path | None, str]:
    """Installs a peer; gives its Python, or None and the reason."""
    try:
        return install(peer, runtime_version, say=lambda line: print(line, file=sys.stderr, flush=True)), ""
    except (PeerError, OSError) as error:
        return None, str(error)


def _await_answer(contestant: Contestant, process: subprocess.Popen[bytes], request: bytes, log_path: Path) -> None:
    end_s = time.monotonic() + _READY_S
    problem = ""
    while time.monotonic() < end_s:
        try:
            contestant.ask(request, _ASK_S)
            return
        except (OSError, http.client.HTTPException) as error:
            problem = str(error)
        if process.poll() is not None:
            problem = f"ended with exit code {process.returncode}"
            break
        time.sleep(0.2)
    last = (log_path.read_text(errors="replace").strip().splitlines() or ["no output"])[-1][:200]
    raise PeerError(f"expected an answer within {_READY_S:.0f} s, got: {problem[:200]}; its last line: {last}")


def _ask_grpc(target: Target, message: bytes, timeout_s: float) -> bytes:
    limits = [("grpc.max_receive_message_length", _MESSAGE_LIMIT), ("grpc.max_send_message_length", _MESSAGE_LIMIT)]
    with grpc.insecure_channel(f"127.0.0.1:{target.port}", options=limits) as channel:
        try:
            answer: bytes = channel.unary_unary(target.path, None, None)(
                message, timeout=timeout_s, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise OSError(f"{error.code().name}: {error.details()}") from None
    return answer


def _ask_http(target: Target, body: bytes) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
    try:
        connection.request("POST", target.path, body, {"Content-Type": target.content_type})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"HTTP {response.status}: {answer[:200]!r}")
    return answer


def _tree_ticks(root: int) -> int:
    """Sums the processor time of a process and all its descendants, those that ended included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(path.parent.name)] = int(fields[1])
        ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    members = {root}
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return sum(ticks.get(pid, 0) for pid in members)
