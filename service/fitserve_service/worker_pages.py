"""The metrics port of several workers: metrics and status are of all of them, any other page is of one."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from concurrent.futures import CancelledError, Future
from http import HTTPStatus
from typing import Final, Protocol

from fitserve_contract.printable import printable
from fitserve_service.pages_http import Request, RequestError, Response
from fitserve_service.worker_agreement import Exposition, merge_statuses, write_exposition
from fitserve_service.worker_link import Message

_ANSWER_S: Final = 3.0
"""How long a page waits for the workers; those that take longer, or do not answer their parent, are left out."""


class PageSource(Protocol):
    """The workers, as the pages need them; everything from any thread."""

    def ask_pages(self, request: Request, *, is_for_all: bool) -> Future[list[Future[Message]]]:
        """Asks workers that listen for a page."""
        ...

    def is_ready(self) -> bool:
        """Tells whether calls are taken, and all workers answer alike."""
        ...

    def disagreement(self) -> str:
        """Says what the workers lastingly differ in; empty where they do not."""
        ...

    def metrics(self) -> Exposition:
        """Gives the metrics of all workers as last asked for."""
        ...


class WorkerPages:
    """Answers requests; thread-safe."""

    def __init__(self, source: PageSource) -> None:
        self._source = source

    def answer(self, request: Request) -> Response:
        """Answers a request.

        Raises:
            RequestError: there is no such page, or no worker answers.
        """
        if request.path == "/healthz":
            return self._health()
        if request.path == "/livez":
            return Response(b"ok\n")
        is_for_all = request.path in ("/metrics", "/status.json")
        answers = self._gather(request, is_for_all=is_for_all)
        if not answers:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "expected a worker to answer, got none; try later")
        first = answers[0]
        if request.path == "/metrics" and first.status == HTTPStatus.OK:
            content = write_exposition(self._source.metrics())
            return Response(content.encode(), first.content_type, headers=first.headers)
        if request.path == "/status.json" and first.status == HTTPStatus.OK:
            told = [answer for answer in answers if answer.status == HTTPStatus.OK]
            document = merge_statuses([json.loads(answer.content) for answer in told])
            return Response(json.dumps(document, allow_nan=False).encode(), first.content_type, headers=first.headers)
        return first

    def _health(self) -> Response:
        if self._source.is_ready():
            return Response(b"ok\n")
        why = self._source.disagreement()
        content = f"not ready: {printable(why)}\n" if why else "not ready\n"
        return Response(content.encode(errors="replace"), status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _gather(self, request: Request, *, is_for_all: bool) -> list[Response]:
        until_s = time.monotonic() + _ANSWER_S
        answers = []
        try:
            for page in self._source.ask_pages(request, is_for_all=is_for_all).result(_ANSWER_S):
                answers += _answer(page, until_s - time.monotonic())
        except TimeoutError:
            return answers
        return answers


def read_content(message: Message) -> bytes:
    """Gives the body of a page as it came over the link."""
    return b64decode(message["content"])


def _answer(page: Future[Message], wait_s: float) -> list[Response]:
    try:
        message = page.result(max(wait_s, 0.0))
    except (TimeoutError, CancelledError):
        return []
    return [
        Response(
            read_content(message),
            message["content_type"],
            status=HTTPStatus(message["status"]),
            headers=message["headers"],
        )
    ]
