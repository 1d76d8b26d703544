"""One of several workers: a server of its own on the shared port, held to the others by its parent.

Run as `python -m fitserve_service.worker`, by `workers` alone. It loads what it aspires to before it listens, so that a
restarted worker never gets a call that it cannot answer; and it dies with its parent.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from fitserve_service import allocator, collector, logs, run_record
from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.announcement import ready_text
from fitserve_service.assembly import StartError
from fitserve_service.crashes import SetAside
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.pages_http import Request, RequestError, Response, refusal
from fitserve_service.server import Server
from fitserve_service.servicers.control import ModelLoader
from fitserve_service.settings import ServerSettings
from fitserve_service.stopping import SignalWatch, die_with
from fitserve_service.worker_link import Link, Message

OnDone: TypeAlias = Callable[[ServiceError | None], None]

_CLOSING_S: Final = 2.0
"""How long the process may take to end once the grace time is over."""


_LOOK_S: Final = 0.05


class Fleet:
    """The other workers, by way of the parent: loads and unloads reach all, and all agree on what is ready."""

    def __init__(self, link: Link, begin: Message) -> None:
        self.unloaded: Sequence[str] = begin["unloaded"]
        self.set_aside: Sequence[SetAside] = [SetAside.of(fields) for fields in begin["set_aside"]]
        self.coupled: Mapping[str, str] = begin["coupled"]
        self.number: int = begin["number"]
        self.weights = Path(begin["weights"]) if begin["weights"] else None
        count: int = begin["settings"]["workers"]
        memory: int | None = begin["quotas"]
        self.quotas = SharedQuotas(memory, self.number, count) if memory is not None else None
        self.is_alone: bool = begin["settings"]["workers"] == 1
        self._link = link
        self._numbers = itertools.count()
        self._asked: dict[int, OnDone] = {}
        self._own: ModelLoader | None = None
        self._server: Server | None = None
        self._stop: Callable[[], None] = lambda: None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="page")
        self._lock = threading.Lock()
        self._may_go_on = threading.Event()
        self._told: frozenset[tuple[str, int]] | None = None

    def share(self, own: ModelLoader) -> ModelLoader:
        """Takes this worker's loader, and gives one that loads in all workers."""
        self._own = own
        return self

    def load(self, model: str, on_done: OnDone) -> None:
        """Has all workers load a model; `on_done` comes once the last has."""
        self._ask("load", model, on_done)

    def unload(self, model: str, on_done: OnDone) -> None:
        """Has all workers unload a model."""
        self._ask("unload", model, on_done)

    def await_turn(self, is_over: Callable[[], bool]) -> None:
        """Waits until this worker can answer all that the others can: a caller may meet any of them.

        Args:
            is_over: There is nothing to wait for any more.
        """
        self._link.send("waiting")
        while not self._may_go_on.wait(_LOOK_S) and not is_over():
            continue

    def tell_coupled(self, digest: str, problem: str) -> None:
        """Has the other workers, and those to come, run requests to these files alone: their rows mix."""
        self._link.send("coupled", digest=digest, problem=problem)

    def join(self, server: Server, stop: Callable[[], None]) -> None:
        """Begins to listen to the parent, on a thread, and to tell it what is ready here.

        Args:
            server: The worker's server.
            stop: Stops this process; may be called more than once.
        """
        self._server, self._stop = server, stop
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        server.registry.subscribe(lambda _: self._tell_ready(server))
        server.on_settled(lambda: self._link.send("settled"))
        self._tell_ready(server)

    def _ask(self, action: str, model: str, on_done: OnDone) -> None:
        number = next(self._numbers)
        self._asked[number] = on_done
        is_known = self._server is not None and bool(self._server.registry.states(model))
        self._link.send("ask", id=number, action=action, model=model, is_known=is_known)

    def _tell_ready(self, server: Server) -> None:
        with self._lock:
            ready = server.registry.ready_names()
            if ready != self._told:
                self._told = ready
                self._link.send("ready", names=sorted(ready))

    def _listen(self) -> None:
        while (message := self._link.receive()) is not None:
            getattr(self, f"_on_{message['kind']}")(message)
        # Nobody is left to be told of a drain by, or to be restarted by.
        os._exit(1)

    def _on_agreed(self, message: Message) -> None:
        assert self._server is not None
        ready = frozenset((str(model), int(version)) for model, version in message["names"])
        self._server.agree(ready, is_settled=message["is_settled"])

    def _on_carry_out(self, message: Message) -> None:
        def done(error: ServiceError | None) -> None:
            self._link.send("carried_out", id=message["id"], error=_error_fields(error))

        assert self._own is not None
        carry_out = self._own.load if message["action"] == "load" else self._own.unload
        carry_out(message["model"], done)

    def _on_drain(self, _: Message) -> None:
        self._stop()

    def _on_reload(self, _: Message) -> None:
        assert self._server is not None
        self._server.reload()

    def _on_go_on(self, _: Message) -> None:
        self._may_go_on.set()

    def _on_set_aside(self, message: Message) -> None:
        assert self._server is not None
        self._server.set_aside(SetAside.of(message["version"]))

    def _on_stop_joining(self, message: Message) -> None:
        assert self._server is not None
        self._server.stop_joining(message["digest"], message["problem"])

    def _on_answered(self, message: Message) -> None:
        self._asked.pop(message["id"])(_error_of(message["error"]))

    def _on_page(self, message: Message) -> None:
        self._writer.submit(self._write_page, message)

    def _write_page(self, message: Message) -> None:
        assert self._server is not None
        request = Request(message["path"], message["host"], message["is_head"])
        try:
            response = self._server.answer_page(request)
        except RequestError as error:
            response = refusal(error)
        self._link.send("page", id=message["id"], **_response_fields(response))


def _settings_of(fields: Mapping[str, Any]) -> ServerSettings:
    """Reads what `workers.settings_fields` wrote."""
    return ServerSettings(**{name: _value(value) for name, value in fields.items()})


def _value(value: Any) -> Any:
    return Path(value["path"]) if isinstance(value, dict) else value


def _error_fields(error: ServiceError | None) -> dict[str, Any] | None:
    """Writes an error for the link."""
    if error is None:
        return None
    return {"reason": error.reason, "message": error.message, "metadata": error.metadata}


def _error_of(fields: dict[str, Any] | None) -> ServiceError | None:
    """Reads what `_error_fields` wrote."""
    if fields is None:
        return None
    return ServiceError(Reason(fields["reason"]), fields["message"], **fields["metadata"])


def _response_fields(response: Response) -> dict[str, Any]:
    """Writes a page for the link."""
    return {
        "status": response.status,
        "content_type": response.content_type,
        "headers": dict(response.headers),
        "content": b64encode(response.content).decode(),
    }


def main() -> NoReturn:
    """Serves until it is told to stop; the arguments are the descriptors of link and record, and the parent's id."""
    descriptor, record, parent = map(int, sys.argv[1:])
    die_with(parent)
    run_record.keep_in(record)
    link = Link(socket.socket(fileno=descriptor))
    begin = link.receive()
    if begin is None:
        sys.exit(1)
    settings = _settings_of(begin["settings"])
    logs.configure(settings.log_format, settings.log_level)
    logs.take_over()
    try:
        sys.exit(_serve(settings, link, Fleet(link, begin)))
    finally:
        logs.forget_unwritten()


def _serve(settings: ServerSettings, link: Link, fleet: Fleet) -> int:
    try:
        server = Server(settings, fleet)
        watch = SignalWatch(server.stop, server.reload, settings.drain_wait_s + settings.grace_s + _CLOSING_S)
        watch.start()
        fleet.join(server, watch.stop)
        server.run(lambda: _say_listening(server, link))
    except StartError as error:
        link.send("refused", text=str(error))
        return 2
    return 0


def _say_listening(server: Server, link: Link) -> None:
    collector.settle()
    allocator.keep_freed_memory()
    link.send("listening", text=ready_text(server.settings, server.port, server.settings.metrics_port, server.registry))


if __name__ == "__main__":
    main()
