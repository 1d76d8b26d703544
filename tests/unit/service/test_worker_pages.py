"""The metrics port of several workers, with workers that are played by hand."""

from __future__ import annotations

import json
from base64 import b64encode
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any

import pytest

from fitserve_service.pages_http import Request, RequestError
from fitserve_service.worker_agreement import Exposition, read_exposition
from fitserve_service.worker_link import Message
from fitserve_service.worker_pages import WorkerPages


class Played:
    """Workers that answer each page with what they were given; None never answers."""

    def __init__(
        self,
        *contents: bytes | None,
        status: int = 200,
        statuses: tuple[int, ...] = (),
        is_ready: bool = True,
        disagreement: str = "",
    ) -> None:
        self.contents = contents
        self.statuses = statuses or (status,) * len(contents)
        self.asked: list[tuple[str, bool]] = []
        self._is_ready = is_ready
        self._disagreement = disagreement

    def ask_pages(self, request: Request, *, is_for_all: bool) -> Future[list[Future[Message]]]:
        self.asked.append((request.path, is_for_all))
        asked: Future[list[Future[Message]]] = Future()
        asked.set_result([self._page(*each) for each in self.pages()[: None if is_for_all else 1]])
        return asked

    def is_ready(self) -> bool:
        return self._is_ready

    def disagreement(self) -> str:
        return self._disagreement

    def metrics(self) -> Exposition:
        return read_exposition("# TYPE all counter\nall 7.0\n")

    def pages(self) -> list[tuple[bytes | None, int]]:
        return list(zip(self.contents, self.statuses, strict=True))

    def _page(self, content: bytes | None, status: int) -> Future[Message]:
        page: Future[Message] = Future()
        if content is None:
            page.cancel()
        else:
            fields = {"content_type": "text/plain", "status": status, "headers": {"X": "y"}}
            page.set_result({**fields, "content": b64encode(content).decode()})
        return page


def document(is_ready: bool) -> bytes:
    status: dict[str, Any] = {"is_ready": is_ready, "workers": [], "window_s": 1.0, "models": []}
    return json.dumps(status).encode()


def test_metrics_are_those_of_all() -> None:
    played = Played(b"one", b"two")
    assert WorkerPages(played).answer(Request("/metrics")).content == b"# TYPE all counter\nall 7.0\n"
    assert played.asked == [("/metrics", True)]


def test_the_status_is_that_of_all_that_answer() -> None:
    answer = WorkerPages(Played(document(True), None, document(False))).answer(Request("/status.json"))
    assert json.loads(answer.content)["is_ready"] is False


def test_a_worker_that_cannot_tell_its_status_is_left_out() -> None:
    played = Played(document(True), b"500 the page could not be written\n", statuses=(200, 500))
    answer = json.loads(WorkerPages(played).answer(Request("/status.json")).content)
    assert answer["is_ready"]


def test_another_page_is_one_workers() -> None:
    played = Played(b"card", b"other")
    answer = WorkerPages(played).answer(Request("/models/m/1/card"))
    assert (answer.content, answer.headers, played.asked) == (b"card", {"X": "y"}, [("/models/m/1/card", False)])


def test_a_refusal_stays_one() -> None:
    answer = WorkerPages(Played(b"no", status=421)).answer(Request("/status.json"))
    assert (answer.status, answer.content) == (HTTPStatus.MISDIRECTED_REQUEST, b"no")


def test_no_worker_is_said_in_words() -> None:
    with pytest.raises(RequestError, match="expected a worker to answer, got none") as caught:
        WorkerPages(Played(None)).answer(Request("/metrics"))
    assert caught.value.status == HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.parametrize(("is_ready", "status"), [(True, 200), (False, 503)])
def test_health_asks_no_worker(is_ready: bool, status: int) -> None:
    played = Played(is_ready=is_ready)
    assert WorkerPages(played).answer(Request("/healthz")).status == status
    assert played.asked == []


def test_health_names_what_the_workers_disagree_on() -> None:
    played = Played(is_ready=False, disagreement="model 'm' version 2: worker 1 has not\n")
    content = WorkerPages(played).answer(Request("/healthz")).content
    assert content == b"not ready: model 'm' version 2: worker 1 has not\\n\n"
