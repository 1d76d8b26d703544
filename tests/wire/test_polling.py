"""The fast transport's thread reads and writes by itself: grpc's own threads have nothing to do with a call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from fitserve_service.polling import VARIABLE

CALLS = 200

SERVER = """
import sys
from fitserve_service import polling
if sys.argv[1] == "loop":
    polling.keep_to_the_loop()
from fitserve_service.calls import MethodTable
from fitserve_service.transport import TransportOptions
from fitserve_service.transport_fast import FastTransport
transport = FastTransport(TransportOptions(port=0))
table = MethodTable({"/echo/Echo": lambda call, message: call.reply(message)}, {})
transport.run(table, lambda port: print(port, flush=True))
"""


def switches_of_grpcs_threads(pid: int) -> int:
    """Counts how often threads that grpc's core runs by itself have slept, in a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "event_engine":
            lines = (task / "status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


@pytest.mark.parametrize(("mode", "is_on_the_loop"), [("loop", True), ("threads", False)])
def test_grpcs_threads_sleep_through_the_calls_of_a_server_that_polls_by_itself(
    mode: str, is_on_the_loop: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", SERVER, mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            with grpc.insecure_channel(f"127.0.0.1:{int(server.stdout.readline())}") as channel:
                echo = channel.unary_unary("/echo/Echo", request_serializer=None, response_deserializer=None)
                echo(b"first", timeout=20)
                before = switches_of_grpcs_threads(server.pid)
                for _ in range(CALLS):
                    assert echo(b"x", timeout=20) == b"x"
                passed = switches_of_grpcs_threads(server.pid) - before
        finally:
            server.kill()

    assert (passed < CALLS) is is_on_the_loop
