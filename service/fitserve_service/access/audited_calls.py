"""Control actions on their way through the audit log: written down, carried out, written down again, answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from fitserve_service.access.audit import Action, AuditTrail
from fitserve_service.access.rules import Rule
from fitserve_service.calls import Loop, Metadata, Origin, UnaryCall, UnaryMethod
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import parse

_OK: Final = "OK"
_MAX_READ_BYTES: Final = 64 << 10
"""Larger requests are not taken apart for the log: strangers could make that dear."""


def action_of(call: UnaryCall, rule: Rule, message: bytes, caller: str) -> Action:
    """Describes what a call asks for; a request that cannot be read, or is far too large for one, has no target."""
    target: dict[str, Any] = {}
    if len(message) <= _MAX_READ_BYTES:
        try:
            target = MessageToDict(parse(rule.request, message), preserving_proto_field_name=True)
        except (ServiceError, ValueError, RecursionError):
            target = {}
    return Action(caller, call.origin().peer, call.method, target)


class AuditedCall:
    """One control action's call; lives on the loop thread."""

    def __init__(self, call: UnaryCall, action: Action, trail: AuditTrail, loop: Loop) -> None:
        self.method = call.method
        self.deadline_s = call.deadline_s
        self.metadata = call.metadata
        self._call = call
        self._action = action
        self._trail = trail
        self._loop = loop
        self._is_over = False
        self._is_gone = False
        self._on_cancel: Callable[[], None] | None = None
        call.on_cancel(self._cancelled)

    def run(self, method: UnaryMethod, message: bytes, answering: Callable[[UnaryCall], Any]) -> None:
        """Carries the action out as soon as it is on record."""

        def begin(is_written: bool) -> None:
            with answering(self):
                if self._is_gone:
                    raise ServiceError(Reason.CALLER_CANCELLED, "the caller went away before the action was begun")
                if not is_written:
                    text = "audit log: expected to be written before the action, got no room or an error; see the log"
                    raise ServiceError(Reason.AUDIT_FAILED, text)
                method(self, message)

        self._trail.record(self._action, "asked", lambda ok: self._loop.post(lambda: begin(ok)))

    def origin(self) -> Origin:
        """Tells where the call comes from."""
        return self._call.origin()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Registers what to do when the caller goes away before the answer."""
        self._on_cancel = callback

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        """Answers once the end is on record."""
        self._end(_OK, lambda: self._call.reply(message, trailing))

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error once that is on record."""
        self._end(error.reason.value, lambda: self._call.fail(error))

    def _end(self, result: str, answer: Callable[[], None]) -> None:
        if self._is_over:
            return
        self._is_over = True
        # What was done was done: an end that cannot be written is in the server's log, and the caller has his answer.
        self._trail.record(self._action, "done", lambda _: self._loop.post(answer), result=result)

    def _cancelled(self) -> None:
        self._is_gone = True
        if self._on_cancel is not None:
            self._on_cancel()
