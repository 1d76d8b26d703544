"""grpc.health.v1.Health: Check, List and Watch; "" is the server, a model's name is the model."""

from __future__ import annotations

from collections.abc import Mapping

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


class HealthServicer:
    """Answers the health service. Lives on the loop thread; the registry's changes are posted to it."""

    def __init__(self, registry: Registry, readiness: Readiness, loop: Loop) -> None:
        self._registry = registry
        self._readiness = readiness
        self._watches: set[_Watch] = set()
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
        name = parse(HealthCheckRequest, message).service
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
        """Sends the state now and after each change."""
        watch = _Watch(self, call)
        call.on_cancel(lambda: self._watches.discard(watch))
        self._watches.add(watch)
        return watch

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
            if self._readiness.is_draining:
                # The last word: an open stream would hold the server up for its whole grace time.
                self._watches.discard(watch)
                watch.call.finish()


class _Watch:
    """One caller of Watch."""

    def __init__(self, servicer: HealthServicer, call: StreamCall) -> None:
        self.call = call
        self.name: str | None = None
        self._servicer = servicer
        self._last: HealthCheckResponse.ServingStatus | None = None

    def on_message(self, message: bytes) -> None:
        """Takes the name to watch."""
        self.name = parse(HealthCheckRequest, message).service
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
