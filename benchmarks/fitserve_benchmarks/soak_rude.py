"""Rude callers beside a soak's bulk: streams reset at any moment, cancelled calls, malformed frames and messages.

Each session has a connection of its own and ends it; among what is reset and malformed it makes calls whose answers
must be right all the same. A process of its own goes from session to session until its stdin ends, at an even rate.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from random import Random
from typing import Any, Final

import grpc

from fitserve_benchmarks.hostile_messages import HostileMessages, unary_methods
from fitserve_benchmarks.http2 import Answer, ConnectionLostError, Http2Connection, frame_message
from fitserve_benchmarks.malformed_frames import MALFORMED, PING, PONG
from fitserve_benchmarks.soak_bulk import METHODS, KnownCall, known_calls

_STREAMS: Final = 40
_CANCELLED: Final = 20
_MESSAGES: Final = 20
_PATIENCE_S: Final = 10.0
_LOOK_S: Final = 0.5
_MOST_EXAMPLES: Final = 5
_FAULTS_OF_OURS: Final = (2, 13)
"""UNKNOWN and INTERNAL."""

_STATUS_NAMES: Final[Mapping[int | None, str]] = {code.value[0]: code.name for code in grpc.StatusCode}

_HARD_END: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: the connection ends with a reset instead of a farewell."""


@dataclass(slots=True)
class RudeResult:
    """What was done, and what became of the calls among it that must be answered.

    Args:
        counts: What was done or came back, by name, to how often.
        right_count: Right answers on the same connections.
        wrong: What came instead of right answers, or is the server's fault; the first few.
        wrong_count: How many of those.
        elapsed_s: Time of it all.
    """

    counts: dict[str, int] = field(default_factory=dict)
    right_count: int = 0
    wrong: list[str] = field(default_factory=list)
    wrong_count: int = 0
    elapsed_s: float = 0.0

    @property
    def done_count(self) -> int:
        """Streams and connections of all kinds."""
        return self.right_count + sum(count for name, count in self.counts.items() if not name.startswith("  "))


class RudeCallers:
    """Does sessions, one after the other. Not thread-safe.

    Args:
        port: TCP port of this machine.
        seed: Of all that is done.
        methods: Those that are called, of `METHODS`.
        without: Kinds of malformed frames, of `MALFORMED`, that are left out.
    """

    def __init__(
        self, port: int, seed: int, methods: Sequence[str] = METHODS, without: Collection[str] = frozenset()
    ) -> None:
        self._malformed = {name: make for name, make in MALFORMED.items() if name not in without}
        self._port = port
        self._methods = methods
        self._random = Random(seed)
        self._calls = {method: known_calls(method, self._random) for method in methods}
        self._kinds = {name: kind for name, kind in unary_methods().items() if name in methods}
        self._messages = HostileMessages(self._random, ("chaos", "x"))
        self._counts: Counter[str] = Counter()
        self._sessions: list[Callable[[], None]] = [self.resets, self.cancels, self.messages, self.frames, self.hurry]
        self.result = RudeResult(self._counts)

    def each(self) -> None:
        """Does one of each kind."""
        for session in self._sessions:
            self._do(session)

    def session(self) -> None:
        """Does one of a kind that chance picks."""
        (chosen,) = self._random.choices(self._sessions, (6, 2, 2, 10, 4))
        self._do(chosen)

    def _do(self, session: Callable[[], None]) -> None:
        try:
            session()
        except ConnectionLostError as error:
            self._note(f"connection: {error}")
        except OSError as error:
            self._note(f"connection: {type(error).__name__}: {error}")

    def resets(self) -> None:
        """Resets streams before, within and after the request's body, at once or later, among calls that go on."""
        method = self._random.choice(self._methods)
        connection = Http2Connection("127.0.0.1", self._port, method, reads_status=True)
        try:
            self._settle(connection, {})
            awaited: dict[int, KnownCall] = {}
            later: list[int] = []
            for _ in range(_STREAMS):
                self._reset_one(connection, method, awaited, later)
            connection.flush()
            for number in later:
                if self._random.random() < 0.5:
                    self._receive(connection, awaited, self._random.uniform(0, 0.002))
                connection.reset(number)
                connection.flush()
            self._settle(connection, awaited)
        finally:
            connection.close()

    def _reset_one(
        self, connection: Http2Connection, method: str, awaited: dict[int, KnownCall], later: list[int]
    ) -> None:
        call = self._random.choice(self._calls[method])
        framed = frame_message(call.request)
        when = self._random.choice(("before its body", "within its body", "after its body", "later", "never"))
        if when in ("before its body", "within its body"):
            cut = 0 if when == "before its body" else self._random.randrange(1, len(framed))
            number = connection.begin(framed[:cut])
        else:
            number = connection.send(framed)
        if when == "never":
            awaited[number] = call
            return
        self._counts[f"reset {when}"] += 1
        if when == "later" or self._random.random() < 0.3:
            later.append(number)
        else:
            connection.reset(number)

    def cancels(self) -> None:
        """Calls as clients do, and gives up some at any moment or has them expire."""
        method = self._random.choice(self._methods)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self._port}", options=options) as opened:
            channel: Any = opened  # grpc-stubs knows no calls of plain bytes.
            begun = []
            for call in self._random.choices(self._calls[method], k=_CANCELLED):
                timeout_s = self._random.choice((_PATIENCE_S, _PATIENCE_S, 0.0005, 0.005))
                begun.append((call, timeout_s, channel.unary_unary(method).future(call.request, timeout=timeout_s)))
            for _, _, future in self._random.sample(begun, _CANCELLED // 2):
                time.sleep(self._random.choice((0.0, 0.0, 0.0005)))
                future.cancel()
            for call, timeout_s, future in begun:
                self._take_future(call, timeout_s, future)

    def _take_future(self, call: KnownCall, timeout_s: float, future: Any) -> None:
        try:
            answer = future.result()
        except grpc.FutureCancelledError:
            self._counts["cancelled"] += 1
        except grpc.RpcError as error:
            if timeout_s < _PATIENCE_S and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                self._counts["expired"] += 1
            else:
                self._note(f"{call.method}: {error.code()}, {error.details()}")
        else:
            self._judge(call, answer, None)

    def messages(self) -> None:
        """Sends messages that are damaged or senseless, among calls that are neither."""
        method = self._random.choice(self._methods)
        connection = Http2Connection("127.0.0.1", self._port, method, reads_status=True)
        seeds = [call.request for call in self._calls[method]]
        try:
            self._settle(connection, {})
            awaited: dict[int, KnownCall | None] = {}
            for _ in range(_MESSAGES):
                call = self._random.choice(self._calls[method])
                message = self._messages.message(self._kinds[method], seeds)
                awaited[connection.send(frame_message(message))] = None
                self._counts["malformed messages"] += 1
                awaited[connection.send(frame_message(call.request))] = call
            self._settle(connection, awaited)
        finally:
            connection.close()

    def frames(self) -> None:
        """Says something malformed on a connection, and sees whether it lives on."""
        name = self._random.choice(list(self._malformed))
        said = self._malformed[name](self._random, self._random.choice(self._methods))
        self._counts["connections with malformed frames"] += 1
        with socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S) as opened:
            try:
                opened.sendall(said + PING)
                self._counts[f"  {self._heard(opened)}"] += 1
            except OSError:
                self._counts["  connection reset"] += 1

    def _heard(self, opened: socket.socket) -> str:
        """Tells what a server does about it within half a second."""
        heard, end_s = b"", time.perf_counter() + _LOOK_S
        while (left_s := end_s - time.perf_counter()) > 0 and select.select([opened], [], [], left_s)[0]:
            chunk = opened.recv(1 << 16)
            heard += chunk
            if not chunk:
                return "connection closed"
            if PONG in heard:
                return "connection lives on"
        return "no word"

    def hurry(self) -> None:
        """Opens a connection for one call, or for less, and hangs up."""
        way = self._random.choice(("one call", "one call", "nothing", "hung up in a call", "reset in a call"))
        if way == "one call":
            method = self._random.choice(self._methods)
            call = self._random.choice(self._calls[method])
            connection = Http2Connection("127.0.0.1", self._port, method, reads_status=True)
            try:
                self._settle(connection, {connection.send(frame_message(call.request)): call})
            finally:
                connection.close()
            self._counts["short connections"] += 1
            return
        self._counts["connections that say nothing" if way == "nothing" else "connections ended in a call"] += 1
        method = self._random.choice(self._methods)
        connection = Http2Connection("127.0.0.1", self._port, method)
        try:
            if way != "nothing":
                connection.send(frame_message(self._random.choice(self._calls[method]).request))
                connection.flush()
            if way == "reset in a call":
                with socket.socket(fileno=socket.dup(connection.fileno())) as same:
                    same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD_END)
        finally:
            connection.close()

    def _settle(self, connection: Http2Connection, awaited: Mapping[int, KnownCall | None]) -> None:
        """Waits for the settings and for every awaited answer; those that must be right are judged."""
        left = dict(awaited)
        end_s = time.perf_counter() + _PATIENCE_S
        while (left or not connection.has_settings) and time.perf_counter() < end_s:
            self._receive(connection, left, _LOOK_S)
        for call in left.values():
            self._note(f"{call.method if call else 'malformed message'}: no answer in {_PATIENCE_S:.0f} s")

    def _receive(self, connection: Http2Connection, left: dict[int, Any], wait_s: float) -> None:
        connection.flush()
        writing = [connection] if connection.wants_to_write else []
        select.select([connection], writing, [], wait_s)
        for answer in connection.receive():
            if answer.stream in left:
                self._take(answer, left.pop(answer.stream))

    def _take(self, answer: Answer, call: KnownCall | None) -> None:
        if call is not None:
            self._judge(call, answer.message, answer.status)
            return
        self._counts[f"  answered {_STATUS_NAMES.get(answer.status, 'without a status')}"] += 1
        if answer.status in _FAULTS_OF_OURS or (answer.status is None and not answer.is_refused):
            self._note(f"malformed message: status {answer.status}")

    def _judge(self, call: KnownCall, message: bytes | None, status: int | None) -> None:
        if call.is_right(message):
            self.result.right_count += 1
        else:
            self._note(f"{call.method}: expected {call.expected.tolist()}, got status {status}, {message!r}"[:300])

    def _note(self, what: str) -> None:
        self.result.wrong_count += 1
        if len(self.result.wrong) < _MOST_EXAMPLES:
            self.result.wrong.append(what)


def be_rude(
    port: int, seed: int, rate: float, is_over: Callable[[], bool], without: Collection[str] = frozenset()
) -> RudeResult:
    """Does sessions until it is over, and one of each kind however soon that is.

    Args:
        port: TCP port of this machine.
        seed: Of all that is done.
        rate: Streams and connections a second, on average.
        is_over: Asked between sessions.
        without: As of `RudeCallers`.
    """
    callers = RudeCallers(port, seed, without=without)
    begin_s = time.perf_counter()
    callers.each()
    while not is_over():
        callers.session()
        ahead_s = callers.result.done_count / rate - (time.perf_counter() - begin_s)
        if ahead_s > 0:
            time.sleep(min(ahead_s, _LOOK_S))
    callers.result.elapsed_s = time.perf_counter() - begin_s
    callers.result.counts = dict(callers.result.counts)  # `asdict` makes nonsense of a Counter
    return callers.result


def main() -> None:
    """The child: until stdin ends; the result as JSON on stdout."""
    port, seed, rate, *without = sys.argv[1:]
    has_ended = partial(select.select, [sys.stdin], [], [], 0)
    result = be_rude(int(port), int(seed), float(rate), lambda: bool(has_ended()[0]), without)
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
