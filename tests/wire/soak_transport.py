"""Soak of a transport: calls with cancellations, resets and malformed frames, and the memory its server then holds.

    python -m tests.wire.soak_transport --transport fast --calls 500000

The server runs in a process of its own; its resident memory is read after each tenth of the calls. Exits 1 where the
slope after the first fifth is above the limit, or an innocent call failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from tests.wire.conforming import TRANSPORTS, channel
from tests.wire.raw_callers import RawCaller

from fitserve_service.calls import MethodTable, StreamCall, UnaryCall
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.transport import Transport, TransportOptions

LIMIT_BYTES_PER_CALL: Final = 8.0
_STEPS: Final = 10
_PER_ROUND: Final = 50
_FRAME: Final = b"\0\0\0\0\x40" + b"x" * 64


class Echo:
    """Answers each message of a stream with itself."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call

    def on_message(self, message: bytes) -> None:
        self._call.send(message)

    def on_half_close(self) -> None:
        self._call.finish()


def serve(name: str, pipe: Connection) -> None:
    """Serves until the pipe says to stop; the process's whole life."""
    transport = TRANSPORTS[name](TransportOptions(port=0))
    table = MethodTable({"/t.T/M": _echo, "/t.T/Late": _late(transport), "/t.T/Fail": _fail}, {"/t.T/S": Echo})

    def watch() -> None:
        if pipe.poll():
            transport.stop(1)
        else:
            transport.call_later(0.05, watch)

    def begin(port: int) -> None:
        pipe.send(port)
        watch()

    transport.run(table, begin)


def _echo(call: UnaryCall, message: bytes) -> None:
    call.reply(message, (("queue-us", "12"),))


def _late(transport: Transport) -> Any:
    def answer(call: UnaryCall, message: bytes) -> None:
        call.on_cancel(lambda: None)
        transport.call_later(0.002, lambda: call.reply(message))

    return answer


def _fail(_: UnaryCall, __: bytes) -> None:
    raise ServiceError(Reason.INVALID_INPUT, "input 'x': expected FP32, got FP64")


def misbehave(caller: RawCaller, chance: random.Random) -> int:
    """Makes a round of calls on a raw connection, none of which ends well; gives how many."""
    for _ in range(_PER_ROUND):
        kind = chance.randrange(5)
        stream = caller.begin(path=chance.choice(["/t.T/M", "/t.T/Late", "/t.T/S", "/t.T/None"]))
        if kind == 1:
            caller.http.send_data(stream, _FRAME[: chance.randrange(len(_FRAME))])
        elif kind == 2:
            caller.http.send_data(stream, chance.randbytes(20))
        elif kind == 3:
            caller.http.send_data(stream, _FRAME)
        elif kind == 4:
            caller.http.send_data(stream, _FRAME[:9], end_stream=True)
            continue
        caller.http.reset_stream(stream)
    caller.flush()
    return _PER_ROUND


def behave(opened: Any, chance: random.Random) -> int:
    """Makes a round of calls as clients do, some of them cancelled; gives how many.

    Raises:
        AssertionError: an answer is not what was asked for.
    """
    late, echo = opened.unary_unary("/t.T/Late"), opened.unary_unary("/t.T/M")
    futures = [late.future(b"late", timeout=10) for _ in range(_PER_ROUND)]
    for future in chance.sample(futures, _PER_ROUND // 2):
        future.cancel()
    for _ in range(_PER_ROUND):
        assert echo(_FRAME, timeout=10) == _FRAME
    failing = [opened.unary_unary("/t.T/Fail").future(b"", timeout=10) for _ in range(5)]
    assert [future.code().name for future in failing] == ["INVALID_ARGUMENT"] * 5
    assert list(opened.stream_stream("/t.T/S")(iter([b"a"] * 5), timeout=10)) == [b"a"] * 5
    assert all(future.cancelled() or future.result() == b"late" for future in futures)
    return 2 * _PER_ROUND + 6


def load(port: int, call_count: int, chance: random.Random) -> None:
    """Makes at least `call_count` calls of every kind."""
    made = 0
    with channel(port) as opened:
        while made < call_count:
            caller = RawCaller(port)
            for _ in range(8):
                made += misbehave(caller, chance) + behave(opened, chance)
            caller.close()


def resident_bytes(process_id: int | None) -> int:
    """Reads a process's resident memory."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * 4096


def soak(name: str, call_count: int, seed: int) -> float:
    """Loads a transport, prints its memory as it goes, and gives the slope in bytes per call."""
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(name, its))
    process.start()
    port, chance = mine.recv(), random.Random(seed)
    sizes = []
    begun = time.monotonic()
    for step in range(_STEPS):
        load(port, call_count // _STEPS, chance)
        sizes.append(resident_bytes(process.pid))
        elapsed_s = time.monotonic() - begun
        print(f"{(step + 1) * call_count // _STEPS} calls, {sizes[-1] / 2**20:.1f} MiB, {elapsed_s:.0f} s", flush=True)
    mine.send("stop")
    process.join(30)
    assert process.exitcode == 0, f"server: expected to exit with 0, got {process.exitcode}"
    settled = sizes[_STEPS // 5 :]
    return (settled[-1] - settled[0]) / (call_count / _STEPS * (len(settled) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Soaks a transport and measures the memory it holds.")
    parser.add_argument("--transport", choices=sorted(TRANSPORTS), default="fast")
    parser.add_argument("--calls", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    slope = soak(told.transport, told.calls, told.seed)
    print(f"{told.transport}: {slope:.2f} bytes per call (limit {LIMIT_BYTES_PER_CALL})")
    sys.exit(slope > LIMIT_BYTES_PER_CALL)


if __name__ == "__main__":
    main()
