"""grpc.health.v1.Health: Check, List and Watch; "" is the server, a model's name is the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from fitserve_oip.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from fitserve_service import codec
from fitserve_service.calls import Loop, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import parse
from fitserve_service.readiness import Readiness
from fitserve_service.registry import Registry

SERVICE = "grpc.health.v1.Health"

_Status = HealthCheckResponse.ServingStatus

_MAX_REQUEST_BYTES: Final = 4 * codec.MAX_NAME_CHARS + 64
"""Longer requests name no model, and Watch keeps the name; room for other fields, which are ignored."""

_MAX_WATCHES: Final = 2048
"""Over all connections."""

_CONNECTION_WATCHES: Final = 64
"""On one connection, so that its other calls have streams left."""


class HealthServicer:
    """Answers the health service. Lives on the loop thread; the registry's changes are posted to it."""

    def __init__(self, registry: Registry, readiness: Readiness, loop: Loop) -> None:
        self._registry = registry
        self._readiness = readiness
        self._watches: dict[_Watch, str] = {}
        """Watches with their connections, oldest first."""
        self._by_connection: Counter[str] = Counter()
        registry.subscribe(lambda model: loop.post(lambda: self._tell(model)))
        readiness.on_change(self._tell_all)

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        return {f"/{SERVICE}/Check": self.check, f"/{SERVICE}/List": self.list_all}

    def stream(self) -> Mapping[str, StreamMethod]:
        """Gives the streaming methods by full name."""
        return {f"/{SERVICE}/Watch": self.watch}

    def check(self, call: UnaryCall, message: bytes) -> None:
        """Answers one state."""
        name = _name_in(message)
        status = self.status_of(name)
        if status == _Status.SERVICE_UNKNOWN:
            short = name[: codec.MAX_NAME_CHARS]
            raise ServiceError(Reason.MODEL_NOT_FOUND, f"service: expected '' or a model's name, got '{short}'")
        call.reply(HealthCheckResponse(status=status).SerializeToString())

    def list_all(self, call: UnaryCall, message: bytes) -> None:
        """Answers the state of the server and of every model."""
        parse(HealthListRequest, message)
        names = ["", *(snapshot.name for snapshot in self._registry.snapshot())]
        statuses = {name: HealthCheckResponse(status=self.status_of(name)) for name in names}
        call.reply(HealthListResponse(statuses=statuses).SerializeToString())

    def watch(self, call: StreamCall) -> _Watch:
        """Sends the state now and after each change.

        Beyond what all connections may have, the oldest watch of the connection with the most is ended.

        Raises:
            ServiceError: QUOTA; its connection has as many watches as it may.
        """
        connection = call.origin().peer
        # Callers on a unix socket, who are the server's own user, have no addresses of their own.
        most = _MAX_WATCHES if connection.startswith("unix") else _CONNECTION_WATCHES
        if self._by_connection[connection] >= most:
            text = f"watch: expected at most {most} on one connection, got another; end one of them"
            raise ServiceError(Reason.QUOTA, text)
        watch = _Watch(self, call)
        call.on_cancel(lambda: self._forget(watch))
        self._watches[watch] = connection
        self._by_connection[connection] += 1
        if len(self._watches) > _MAX_WATCHES:
            self._end_oldest()
        return watch

    def _end_oldest(self) -> None:
        most = max(self._by_connection, key=self._by_connection.__getitem__)
        oldest = next(watch for watch, connection in self._watches.items() if connection == most)
        self._forget(oldest)
        text = f"watch: expected at most {_MAX_WATCHES} on all connections, got more; this was the oldest"
        oldest.call.fail(ServiceError(Reason.QUOTA, text))

    def _forget(self, watch: _Watch) -> None:
        connection = self._watches.pop(watch, None)
        if connection is not None:
            self._by_connection[connection] -= 1
            if not self._by_connection[connection]:
                del self._by_connection[connection]

    def status_of(self, name: str) -> HealthCheckResponse.ServingStatus:
        """Tells the state of the server ("") or of a model; SERVICE_UNKNOWN where there is no such model."""
        if not name:
            return _Status.SERVING if self._readiness.is_ready else _Status.NOT_SERVING
        if not self._registry.states(name):
            return _Status.SERVICE_UNKNOWN
        is_serving = self._registry.is_ready(name) and not self._readiness.is_draining
        return _Status.SERVING if is_serving else _Status.NOT_SERVING

    def _tell(self, name: str) -> None:
        for watch in self._watches:
            if watch.name == name:
                watch.tell()

    def _tell_all(self) -> None:
        for watch in list(self._watches):
            watch.tell()
            if self._readiness.is_ended:
                # The last word: an open stream would hold the server up for its whole grace time.
                self._forget(watch)
                watch.call.finish()


class _Watch:
    """One caller of Watch."""

    def __init__(self, servicer: HealthServicer, call: StreamCall) -> None:
        self.call = call
        self.name: str | None = None
        self._servicer = servicer
        self._last: HealthCheckResponse.ServingStatus | None = None

    def on_message(self, message: bytes) -> None:
        """Takes the name to watch.

        Raises:
            ServiceError: MALFORMED_MESSAGE, or it is longer than a name can be.
        """
        self.name = _name_in(message)
        self.tell()

    def on_half_close(self) -> None:
        """The caller has asked; it goes on listening."""

    def tell(self) -> None:
        """Sends the state where it is another than the last one sent."""
        if self.name is None:
            return
        status = self._servicer.status_of(self.name)
        if status != self._last:
            self._last = status
            self.call.send(HealthCheckResponse(status=status).SerializeToString())


def _name_in(message: bytes) -> str:
    """Reads the name that a request is about.

    Raises:
        ServiceError: MALFORMED_MESSAGE; MODEL_NOT_FOUND where it is longer than a model's name can be.
    """
    if len(message) <= _MAX_REQUEST_BYTES:
        name: str = parse(HealthCheckRequest, message).service
        if len(name) <= codec.MAX_NAME_CHARS:
            return name
    text = f"service: expected '' or a model's name, at most {codec.MAX_NAME_CHARS} characters"
    raise ServiceError(Reason.MODEL_NOT_FOUND, f"{text}, got a request of {len(message)} bytes")
