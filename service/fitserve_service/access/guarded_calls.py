"""Calls as guarded methods see them: what they use is given back when they end, and credentials stay behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from fitserve_service.access.access_file import Grant
from fitserve_service.access.quotas import Hold
from fitserve_service.access.rules import Rule
from fitserve_service.calls import Call, Metadata, Origin, StreamCall, UnaryCall
from fitserve_service.errors import ServiceError

AUTHORIZATION: Final = "authorization"


class _Guarded:
    """What guarded calls have in common. Methods never see the credential: it cannot end in a log or a trace."""

    __slots__ = ("_inner", "_on_cancel", "deadline_s", "metadata", "method")

    def __init__(self, inner: Call) -> None:
        self._inner = inner
        self._on_cancel: Callable[[], None] | None = None
        self.method = inner.method
        self.deadline_s = inner.deadline_s
        self.metadata: Metadata = [pair for pair in inner.metadata if pair[0] != AUTHORIZATION]
        inner.on_cancel(self._cancelled)

    def origin(self) -> Origin:
        """Tells where the call comes from."""
        return self._inner.origin()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Registers what to do when the caller goes away before the answer."""
        self._on_cancel = callback

    def _cancelled(self) -> None:
        self._release()
        callback, self._on_cancel = self._on_cancel, None
        if callback is not None:
            callback()

    def _release(self) -> None:
        raise NotImplementedError


class GuardedUnary(_Guarded):
    """A unary call that holds a share of its caller's quota."""

    __slots__ = ("_call", "_grant", "_hold", "_rule")

    def __init__(self, call: UnaryCall, rule: Rule, grant: Grant | None, hold: Hold | None) -> None:
        self._call = call
        self._rule = rule
        self._grant = grant
        self._hold = hold
        super().__init__(call)

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        """Answers; of what the answer lists, with the models alone that the credential is good for."""
        self._release()
        models = self._grant.models if self._grant is not None else None
        if self._rule.listed_field and models is not None:
            message = self._rule.only(message, models)
        self._call.reply(message, trailing)

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error."""
        self._release()
        self._call.fail(error)

    def _release(self) -> None:
        if self._hold is not None:
            self._hold.release()


class GuardedStream(_Guarded):
    """A streaming call each of whose requests holds a share of its caller's quota until it is answered, in order."""

    __slots__ = ("_call", "_holds")

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._holds: deque[Hold] = deque()
        super().__init__(call)

    def add(self, hold: Hold) -> None:
        """Takes what the next request holds."""
        self._holds.append(hold)

    def send(self, message: bytes) -> None:
        """Sends the answer to the oldest request that has none."""
        if self._holds:
            self._holds.popleft().release()
        self._call.send(message)

    def finish(self) -> None:
        """Ends the call well once everything sent is out."""
        self._release()
        self._call.finish()

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error."""
        self._release()
        self._call.fail(error)

    def _release(self) -> None:
        while self._holds:
            self._holds.popleft().release()
