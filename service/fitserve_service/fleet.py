"""The other workers, as one of them knows them: by way of the parent, over the link."""

from __future__ import annotations

import itertools
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.agreed_views import AgreedViews
from fitserve_service.crashes import SetAside
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.pages_http import Request, RequestError, Response, refusal
from fitserve_service.peers import VersionEditor, VersionKeeper
from fitserve_service.server import Server
from fitserve_service.switching.counter import open_counter
from fitserve_service.switching.views import NO_CANDIDATE, Candidate, View
from fitserve_service.worker_link import Message, PostedLink

OnDone: TypeAlias = Callable[[ServiceError | None], None]

_LOOK_S: Final = 0.05


class Fleet:
    """The other workers, by way of the parent: loads and unloads reach all, and all agree on what is ready."""

    def __init__(self, link: PostedLink, begin: Message) -> None:
        self.unloaded: Sequence[str] = begin["unloaded"]
        self.set_aside: Sequence[SetAside] = [SetAside.of(fields) for fields in begin["set_aside"]]
        self.coupled: Mapping[str, str] = begin["coupled"]
        self.number: int = begin["number"]
        self.weights = Path(begin["weights"]) if begin["weights"] else None
        count: int = begin["settings"]["workers"]
        quotas: int | None = begin["quotas"]
        counter: int | None = begin["counter"]
        self.quotas = SharedQuotas(quotas, self.number, count) if quotas is not None else None
        self.counter = open_counter(counter) if counter is not None else None
        self.is_alone: bool = count == 1
        self._link = link
        self._numbers = itertools.count()
        self._asked: dict[int, OnDone] = {}
        self._own: VersionKeeper | None = None
        self._server: Server | None = None
        self._stop: Callable[[], None] = lambda: None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="page")
        self._lock = threading.Lock()
        self._may_go_on = threading.Event()
        self._told: dict[str, Candidate] = {}

    def share(self, own: VersionKeeper) -> VersionEditor:
        """Takes what loads versions in this worker, and gives what does so in all workers."""
        self._own = own
        return self

    def load(self, model: str, on_done: OnDone) -> None:
        """Has all workers load a model; `on_done` comes once the last has."""
        self._ask("load", model, on_done)

    def unload(self, model: str, on_done: OnDone) -> None:
        """Has all workers unload a model."""
        self._ask("unload", model, on_done)

    def edit(self, model: str, apply: Callable[[], None], on_done: OnDone, *, version: int = 0) -> None:
        """Changes something in a model's folder; where that moves labels or traffic, all workers follow first."""
        assert self._own is not None
        before = self._wanted(model)

        def done(error: ServiceError | None) -> None:
            if error is not None or self.is_alone or self._wanted(model) == before:
                on_done(error)
            else:
                self._ask("show", model, on_done)

        self._own.edit(model, apply, done, version=version)

    def await_turn(self, is_over: Callable[[], bool]) -> None:
        """Waits until this worker answers all that the others do: a caller may meet any of them.

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
        self._link.send("has", model=None)
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        if server.registry.views is not None:
            server.registry.subscribe(partial(self._tell_has, server.registry.views))
        server.on_settled(lambda: self._link.send("settled"))

    def _ask(self, action: str, model: str, on_done: OnDone) -> None:
        number = next(self._numbers)
        self._asked[number] = on_done
        is_known = self._server is not None and bool(self._server.registry.states(model))
        if not self._link.send("ask", id=number, action=action, model=model, is_known=is_known):
            del self._asked[number]
            on_done(ServiceError(Reason.NOT_READY, "the parent of the workers does not answer; try again", model=model))

    def _tell_has(self, views: AgreedViews, model: str) -> None:
        with self._lock:
            # Made under the lock: what is sent last is what is.
            candidate = views.candidate(model)
            if candidate == self._told.get(model, NO_CANDIDATE):
                return
            if self._link.send("has", model=model, candidate=candidate.fields()):
                self._told[model] = candidate
            if candidate == NO_CANDIDATE:
                self._told.pop(model, None)

    def _wanted(self, model: str) -> object:
        """Returns what edits of a model's folder change: where the labels are to point, and the traffic."""
        registry = self._server.registry if self._server is not None else None
        if registry is None or (views := registry.views) is None:
            return None
        return views.candidate(model).labels, registry.traffic(model)

    def _listen(self) -> None:
        while (message := self._link.receive()) is not None:
            getattr(self, f"_on_{message['kind']}")(message)
        # Nobody is left to be told of a drain by, or to be restarted by.
        os._exit(1)

    def _on_ping(self, _: Message) -> None:
        def pong() -> None:
            self._link.send("pong")

        assert self._server is not None
        self._server.answer_alive(pong)

    def _on_propose(self, message: Message) -> None:
        views = {model: View.of(fields) for model, fields in message["views"].items()}
        is_prepared = self._views().prepare(message["number"], views)
        self._link.send("prepared", number=message["number"], is_prepared=is_prepared)

    def _on_switched(self, _: Message) -> None:
        self._views().switch()

    def _on_load_also(self, message: Message) -> None:
        assert self._own is not None
        self._own.serve_also(message["versions"])

    def _on_settle(self, message: Message) -> None:
        assert self._server is not None
        self._server.agree(is_agreed=message["is_agreed"])

    def _views(self) -> AgreedViews:
        assert self._server is not None
        views = self._server.registry.views
        assert views is not None
        return views

    def _on_carry_out(self, message: Message) -> None:
        def done(error: ServiceError | None) -> None:
            self._link.send("carried_out", id=message["id"], error=_error_fields(error))

        assert self._own is not None
        carry_out = {"load": self._own.load, "unload": self._own.unload, "show": self._own.show}[message["action"]]
        carry_out(message["model"], done)

    def _on_drain(self, _: Message) -> None:
        self._stop()

    def _on_reload(self, _: Message) -> None:
        assert self._server is not None
        self._server.reload()

    def _on_go_on(self, _: Message) -> None:
        if not self.is_alone:
            self._views().switch()
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
