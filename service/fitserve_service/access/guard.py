"""Stands before every method: who calls, may they, how much of it; and writes control actions down.

It wraps the table of methods before the transport sees it. Where there is no access file, everything but control
actions stays as it was. Nothing is decided by the spelling of a path: a transport finds a method by its whole name or
not at all.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeAlias

from fitserve_service.access.access_file import AccessWatcher, Caller, Grant, digest_of
from fitserve_service.access.audit import AuditTrail
from fitserve_service.access.audited_calls import AuditedCall, action_of
from fitserve_service.access.guarded_calls import AUTHORIZATION, GuardedStream, GuardedUnary
from fitserve_service.access.quotas import Hold, Quotas
from fitserve_service.access.rules import Rule, Scope, rules_of
from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.calls import (
    Call,
    Loop,
    MethodTable,
    StreamCall,
    StreamHandler,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.requests.message_reader import Resume

_SCHEME: Final = "bearer "
_LIMITED: Final = (Scope.INFER, Scope.EVALUATE)
"""What quotas count: control actions are few, descriptions are cheap, and health must answer throughout."""

Answering: TypeAlias = "Callable[[Call], AbstractContextManager[Any]]"


class Guard:
    """Lives on the loop thread.

    Args:
        watcher: Rules of the access file; None: everybody may do everything.
        trail: The audit log.
        loop: Where actions go on once they are on record.
        answering: Ends a call with what its block raises; see `status.answering`.
        clock: Monotonic seconds.
        wall_clock: Unix time, which expiry is told in.
        shared: Where there are several workers, what callers use in all of them.
    """

    def __init__(
        self,
        watcher: AccessWatcher | None,
        trail: AuditTrail,
        loop: Loop,
        answering: Answering,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        shared: SharedQuotas | None = None,
    ) -> None:
        self._watcher = watcher
        self._trail = trail
        self._loop = loop
        self._answering = answering
        self._quotas = Quotas(clock, shared)
        self._wall_clock = wall_clock
        self._hold: Hold | None = None
        self._has_admitted = False
        self._rules: Mapping[str, Rule] = {}
        self._refusals: dict[tuple[str, str], int] = {}

    def refusals(self) -> Mapping[tuple[str, str], int]:
        """Gives, from any thread, how many calls were refused before their method ran, by method and reason."""
        return dict(self._refusals)

    def wrap(self, table: MethodTable) -> MethodTable:
        """Gives a table whose methods are called only by those who may."""
        rules = self._rules = rules_of([*table.unary, *table.stream])
        return MethodTable(
            {name: self._guard_unary(rules.get(name), method) for name, method in table.unary.items()},
            {name: self._guard_stream(rules.get(name), method) for name, method in table.stream.items()},
            None if self._watcher is None else self._count_refused,
        )

    def admit(self, queue: Hashable, example_count: int, max_queued_examples: int) -> None:
        """Counts the examples of the request whose method is running.

        Args:
            queue: Which queue they wait in; each loaded instance of a version has its own.
            example_count: Rows.
            max_queued_examples: Bound of the queue for all callers.

        Raises:
            ServiceError: QUOTA.
        """
        if self._hold is not None:
            self._has_admitted = True
            self._hold.begin()
            self._hold.admit(queue, example_count, max_queued_examples)

    def keep(self) -> Resume:
        """Returns what runs the rest of the method that runs now, later: what it queues counts against its hold.

        Raises:
            ServiceError: QUOTA; the rest is not worth running.
        """
        hold = self._hold
        if hold is not None:
            self._has_admitted = True
            hold.begin()

        def resume(rest: Callable[[], None]) -> None:
            self._hold = hold
            try:
                rest()
            finally:
                self._hold = None

        return resume

    def _guard_unary(self, rule: Rule | None, method: UnaryMethod) -> UnaryMethod:
        if rule is not None and rule.scope is Scope.CONTROL:
            return self._audited(rule, method)
        if self._watcher is None:
            return method
        if rule is None:
            return _denied

        def run(call: UnaryCall, message: bytes) -> None:
            try:
                grant, hold = self._held(call, rule, message)
            except ServiceError as error:
                self._count(call, error)
                raise
            guarded = GuardedUnary(call, rule, grant, hold)
            if hold is None:
                method(guarded, message)
            else:
                self._run_held(hold, lambda: method(guarded, message))

        return run

    def _guard_stream(self, rule: Rule | None, method: StreamMethod) -> StreamMethod:
        if self._watcher is None:
            return method
        # The audit log has no place for actions in a stream.
        if rule is None or rule.scope is Scope.CONTROL:
            return _denied_stream
        return partial(self._open_stream, rule, method)

    def _open_stream(self, rule: Rule, method: StreamMethod, call: StreamCall) -> StreamHandler:
        try:
            if rule.scope is not Scope.OPEN:
                self._entitled(call, rule)
        except ServiceError as error:
            self._count(call, error)
            raise
        return _GuardedHandler(self, call, rule, method)

    def _audited(self, rule: Rule, method: UnaryMethod) -> UnaryMethod:
        def run(call: UnaryCall, message: bytes) -> None:
            try:
                grant = self._permitted(call, rule, message) if self._watcher else None
            except ServiceError as error:
                self._count(call, error)
                self._trail.refused(action_of(call, rule, message, error.metadata.get("caller", "")), error.reason)
                raise
            caller = grant.caller if grant is not None else Caller("peer", _address_of(call))
            guarded = GuardedUnary(call, rule, grant, None)
            action = action_of(call, rule, message, str(caller))
            AuditedCall(guarded, action, self._trail, self._loop).run(method, message, self._answering)

        return run

    def _permitted(self, call: Call, rule: Rule, message: bytes) -> Grant | None:
        """Finds out who calls and whether they may send this; None where nobody is asked.

        Raises:
            ServiceError: NOT_AUTHENTICATED or NOT_PERMITTED, the same whatever models there are.
        """
        if rule.scope is Scope.OPEN and not any(rule.models(message)):
            return None
        grant = self._entitled(call, rule)
        _check_models(grant, rule, message)
        return grant

    def _held(self, call: Call, rule: Rule, message: bytes) -> tuple[Grant | None, Hold | None]:
        """As `_permitted`; a message counts against its caller's quota before it is read, whatever becomes of it.

        Raises:
            ServiceError: as `_permitted`, or QUOTA.
        """
        if rule.scope not in _LIMITED:
            return self._permitted(call, rule, message), None
        grant = self._entitled(call, rule)
        hold = self._new_hold(grant, len(message))
        hold.begin()
        try:
            _check_models(grant, rule, message)
        except ServiceError:
            hold.release()
            raise
        return grant, hold

    def _count_refused(self, call: Call) -> None:
        """Counts a message that the transport refused.

        Raises:
            ServiceError: NOT_AUTHENTICATED, NOT_PERMITTED or QUOTA.
        """
        rule = self._rules.get(call.method)
        if rule is None or rule.scope not in _LIMITED:
            return
        try:
            hold = self._new_hold(self._entitled(call, rule), 0)
            hold.begin()
        except ServiceError as error:
            self._count(call, error)
            raise
        hold.release()

    def _entitled(self, call: Call, rule: Rule) -> Grant:
        """Finds out who calls and whether they may call this method at all; raises as `_permitted`."""
        grant = self._authenticated(call)
        if rule.scope not in (Scope.OPEN, Scope.DESCRIBE) and rule.scope not in grant.scopes:
            raise _not_permitted(grant, f"expected the scope {rule.scope}, it has {', '.join(sorted(grant.scopes))}")
        return grant

    def _authenticated(self, call: Call) -> Grant:
        assert self._watcher is not None
        rules = self._watcher.rules()
        headers = [value for key, value in call.metadata if key == AUTHORIZATION]
        if headers:
            grant = _grant_of_token(headers, rules.tokens)
        else:
            names = call.origin().identities if rules.certificates else ()
            grant = next((rules.certificates[name] for name in names if name in rules.certificates), None)
            if grant is None and rules.anonymous is not None:
                known = rules.anonymous
                grant = Grant(Caller("peer", _address_of(call)), known.scopes, known.models)
        if grant is None or (grant.expires_s is not None and self._wall_clock() >= grant.expires_s):
            text = "credential: expected a token that is valid here (authorization: Bearer …), got none"
            raise ServiceError(Reason.NOT_AUTHENTICATED, text)
        return grant

    def _new_hold(self, grant: Grant, byte_count: int) -> Hold:
        assert self._watcher is not None
        limits = self._watcher.rules().limits_of(grant.caller)
        return self._quotas.hold(grant.caller, limits, byte_count)

    def _count(self, call: Call, error: ServiceError) -> None:
        key = (call.method.rpartition("/")[2], error.reason.value)
        self._refusals[key] = self._refusals.get(key, 0) + 1

    def _run_held(self, hold: Hold, run: Callable[[], None]) -> None:
        """Runs a method; what is queued meanwhile counts against the hold, which an exception gives back."""
        self._hold, self._has_admitted = hold, False
        try:
            run()
        except BaseException:
            hold.release()
            raise
        finally:
            self._hold = None


class _GuardedHandler:
    """Stands before a stream: each request is looked at as if it were a call, so that a revoked token ends it."""

    def __init__(self, guard: Guard, call: StreamCall, rule: Rule, method: StreamMethod) -> None:
        self._guard = guard
        self._call = call
        self._rule = rule
        self._guarded = GuardedStream(call)
        self._inner: StreamHandler = method(self._guarded)

    def on_message(self, message: bytes) -> None:
        """Takes the next request.

        Raises:
            ServiceError: NOT_AUTHENTICATED or NOT_PERMITTED. Also QUOTA for a request that its method does not queue:
                for others that is the method's to tell, within the stream.
        """
        try:
            if self._rule.scope in _LIMITED:
                self._run_held(message)
            else:
                self._guard._permitted(self._call, self._rule, message)
        except ServiceError as error:
            self._guard._count(self._call, error)
            raise
        if self._rule.scope not in _LIMITED:
            self._inner.on_message(message)

    def _run_held(self, message: bytes) -> None:
        guard = self._guard
        grant = guard._entitled(self._call, self._rule)
        hold = guard._new_hold(grant, len(message))
        refusal = _refusal_of(hold)
        self._guarded.add(hold)
        _check_models(grant, self._rule, message)
        guard._run_held(hold, lambda: self._inner.on_message(message))
        if refusal is not None and not guard._has_admitted:
            raise refusal

    def on_half_close(self) -> None:
        """The caller will send no more."""
        self._inner.on_half_close()


def _refusal_of(hold: Hold) -> ServiceError | None:
    """Begins a hold; gives the error where its caller has too much."""
    try:
        hold.begin()
    except ServiceError as error:
        return error
    return None


def _address_of(call: Call) -> str:
    """Gives the address that a call comes from, without its port."""
    kind, _, place = call.origin().peer.partition(":")
    return place.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


def _grant_of_token(headers: list[str | bytes], tokens: Mapping[bytes, Grant]) -> Grant | None:
    """Finds what a token is good for.

    By its digest, under Python's keyed hash of bytes, so that the time of the look-up tells nothing of the digests that
    there are; nor could a caller who knew them find a token that has one. What is found is compared in constant time.
    """
    header = headers[0]
    if len(headers) != 1 or not isinstance(header, str) or header[: len(_SCHEME)].lower() != _SCHEME:
        return None
    digest = digest_of(header[len(_SCHEME) :])
    grant = tokens.get(digest)
    return grant if grant is not None and hmac.compare_digest(grant.digest, digest) else None


def _check_models(grant: Grant, rule: Rule, message: bytes) -> None:
    if grant.models is None or rule.is_about_no_model:
        return
    if not rule.model_fields and not rule.listed_field:
        raise _not_permitted(grant, "expected a credential that is good for all models")
    for name in rule.models(message):
        # No model has an empty name: where it means something, it means the server, or a list that is left to `only`.
        if name and name not in grant.models:
            raise _not_permitted(grant, "expected a model that it is good for")


def _not_permitted(grant: Grant, expected: str) -> ServiceError:
    text = f"credential of {grant.caller}: {expected}"
    return ServiceError(Reason.NOT_PERMITTED, text, caller=str(grant.caller))


def _denied(call: UnaryCall, _: bytes) -> None:
    raise ServiceError(Reason.NOT_PERMITTED, f"method {call.method}: expected one that says who may call it")


def _denied_stream(call: StreamCall) -> StreamHandler:
    raise ServiceError(Reason.NOT_PERMITTED, f"method {call.method}: expected one that says who may call it")
