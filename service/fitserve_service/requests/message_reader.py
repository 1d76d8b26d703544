"""Reads requests with tensors: most at once, those with many elements beside the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Generic, NoReturn, TypeAlias, TypeVar

from google.protobuf.message import Message

from fitserve_service.allocator import return_freed_memory
from fitserve_service.calls import Origin
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import LAYOUTS, check_counts, is_light, parse_counted
from fitserve_service.requests.codec_thread import CodecThread
from fitserve_service.requests.contents import Contents, lift

RETURNED_FROM_BYTES: Final = 32 << 20
"""Before a message of this size is read, memory that was freed goes back to the system: grpcio has copied the message
twice by then, and what it has freed lies in heaps of its own threads, where nothing else can use it."""

RequestT = TypeVar("RequestT", bound=Message)
DecodedT = TypeVar("DecodedT")

Resume: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs the rest of a method later, with what the method that runs now was let in with."""

Keep: TypeAlias = Callable[[], Resume]


class MessageReader(Generic[RequestT, DecodedT]):
    """Reads the requests of one kind. Lives on the loop thread.

    Args:
        kind: Class of the requests.
        decode: Reads a request's tensors, whose large contents were lifted out; raises ServiceError where it cannot.
        max_elements: As of `--max-elements`.
        codec: Reads what takes long; None: everything is read at once.
        keep: Asked while a method runs.
    """

    def __init__(
        self,
        kind: type[RequestT],
        decode: Callable[[RequestT, Contents], DecodedT],
        max_elements: int,
        codec: CodecThread | None,
        keep: Keep,
    ) -> None:
        self._kind = kind
        self._layout = LAYOUTS[kind.DESCRIPTOR.full_name]
        self._decode = decode
        self._max_elements = max_elements
        self._codec = codec
        self._keep = keep

    def read(
        self,
        message: bytes,
        then: Callable[[RequestT, Callable[[], DecodedT]], None],
        fail: Callable[[Exception], None],
        origin: Callable[[], Origin],
    ) -> Callable[[], None] | None:
        """Reads one request.

        Args:
            message: As it came.
            then: Takes the request and what gives its tensors, or raises the reason why they cannot be read; called
                before this returns where that takes no longer than a millisecond.
            fail: Takes what goes wrong after this has returned.
            origin: Tells where the request comes from, where that matters: callers take turns.

        Returns:
            None where `then` was called; else what keeps it from being called.

        Raises:
            ServiceError: the message cannot be read, or not now.
        """
        if len(message) >= RETURNED_FROM_BYTES:
            return_freed_memory()
        if self._codec is None:
            check_counts(self._kind, message, self._max_elements)
        elif not is_light(self._layout, message):
            pending = _Pending(then, fail, self._keep())
            work = partial(self._read_all, message)
            self._codec.read(len(message), work, pending.go_on, caller=origin().peer, is_wanted=pending.is_wanted)
            return pending.cancel
        request, contents = parse_lifted(self._kind, message)
        then(request, partial(self._decode, request, contents))
        return None

    def _read_all(self, message: bytes) -> tuple[RequestT, Callable[[], DecodedT]]:
        check_counts(self._kind, message, self._max_elements)
        request, contents = parse_lifted(self._kind, message)
        try:
            return request, partial(_given, self._decode(request, contents))
        except ServiceError as error:
            # What is wrong with tensors is told, and counted, once it is known which version was meant.
            return request, partial(_refuse, error.reason, error.message, error.metadata)


def parse_lifted(kind: type[RequestT], message: bytes) -> tuple[RequestT, Contents]:
    """Parses a message that was counted, without its large contents.

    Raises:
        ServiceError: MALFORMED_MESSAGE.
    """
    lean, contents = lift(message, LAYOUTS[kind.DESCRIPTOR.full_name])
    return parse_counted(kind, lean), contents


class _Pending(Generic[RequestT, DecodedT]):
    """A request that is being read beside the loop."""

    def __init__(
        self,
        then: Callable[[RequestT, Callable[[], DecodedT]], None],
        fail: Callable[[Exception], None],
        resume: Resume,
    ) -> None:
        self._then = then
        self._fail = fail
        self._resume = resume
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True

    def is_wanted(self) -> bool:
        return not self._is_cancelled

    def go_on(self, result: tuple[RequestT, Callable[[], DecodedT]] | Exception) -> None:
        if not self._is_cancelled:
            self._resume(partial(self._end, result))

    def _end(self, result: tuple[RequestT, Callable[[], DecodedT]] | Exception) -> None:
        if isinstance(result, Exception):
            self._fail(result)
            return
        try:
            self._then(*result)
        except Exception as error:
            self._fail(error)


def run_now(rest: Callable[[], None]) -> None:
    """Runs the rest of a method that needed no leave: a `Resume`."""
    rest()


def _given(decoded: DecodedT) -> DecodedT:
    return decoded


def _refuse(reason: Reason, message: str, metadata: Mapping[str, str]) -> NoReturn:
    # Made here: an error that its own traceback leads to would stay until the collector comes by, with all it holds.
    raise ServiceError(reason, message, **metadata)
