"""Which page answers which path, and that no path leads out of the repository."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import builders

from fitserve_contract.repository import CARD_FILE, CHECKSUMS_FILE
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.pages import Pages
from fitserve_service.pages_activity import Activity
from fitserve_service.pages_http import Request, RequestError, Response
from fitserve_service.pages_status import StatusReport
from fitserve_service.registry import Registry
from fitserve_service.repository_state import RepositoryState
from fitserve_service.version_policy import State

CARD = b"<!doctype html><title>card</title>"


def world(root: Path, *, is_ready: bool = True, own_host: str | None = "127.0.0.1") -> tuple[Pages, Registry]:
    registry = Registry()
    activity = Activity(dict)
    status = StatusReport(root, registry, activity, dict, lambda: is_ready, {"version": "1"})
    return Pages(root, registry, lambda: b"metric 1\n", status, own_host), registry


def ask(pages: Pages, path: str, host: str = "localhost") -> Response:
    return pages.answer(Request(path, host))


def refused(pages: Pages, path: str, host: str = "localhost") -> int:
    with pytest.raises(RequestError) as caught:
        ask(pages, path, host)
    return int(caught.value.status)


def test_metrics_and_health_answer_whatever_the_host(tmp_path: Path) -> None:
    pages, _ = world(tmp_path)
    metrics = ask(pages, "/metrics", "prometheus.example")
    assert (metrics.content, metrics.content_type[:10]) == (b"metric 1\n", "text/plain")
    assert ask(pages, "/healthz", "any.example").status == 200
    assert ask(world(tmp_path, is_ready=False)[0], "/healthz").status == 503


def test_a_repository_that_is_away_is_told_and_makes_nothing_unready(tmp_path: Path) -> None:
    pages, registry = world(tmp_path)
    assert ask(pages, "/healthz").content == b"ok\n"
    registry.repository = RepositoryState("the repository is away", 2, ("'model.onnx' is not served",))
    health = ask(pages, "/healthz")
    assert (health.status, health.content) == (200, b"ok\nthe repository is away\n")
    document = json.loads(ask(pages, "/status.json").content)
    assert document["notes"] == ["the repository is away", "'model.onnx' is not served"]


def test_page_lets_run_its_own_script_and_style_alone(tmp_path: Path) -> None:
    page = ask(world(tmp_path)[0], "/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        texts = re.findall(rf"(?s)<{kind}>(.*?)</{kind}>", page.content.decode())
        assert len(texts) == 1
        assert f"{kind}-src 'sha256-{b64encode(sha256(texts[0].encode()).digest()).decode()}'" in policy
    assert not re.search(rb"(src|href)=\"?(https?:)?//|\son[a-z]+=|innerHTML|style=", page.content)


def test_status_tells_every_version(tmp_path: Path) -> None:
    pages, registry = world(tmp_path)
    path = builders.publish_version(tmp_path, "m", builders.scaled(), task=None, **{CARD_FILE: CARD})
    registry.set_present("m", [1, 2], {"stable": 1})
    registry.set_ready(Loader("cpu").load(path, Overrides({})))
    registry.set_state("m", 2, State.FAILED, reason="</script><b>broken")
    answer = ask(pages, "/status.json")
    document: dict[str, Any] = json.loads(answer.content)
    assert answer.content_type == "application/json"
    assert (document["is_ready"], document["build"]) == (True, {"version": "1"})
    newer, older = document["models"][0]["versions"]
    assert (newer["version"], newer["state"], newer["reason"]) == (2, "FAILED", "</script><b>broken")
    assert (older["version"], older["state"], older["labels"]) == (1, "READY", ["stable"])
    assert (older["provider"], older["is_verified"]) == ("CPUExecutionProvider", False)
    assert (older["has_card"], newer["has_card"]) == (True, False)
    assert older["activity"]["p99_ms"] is None


def test_card_is_answered_as_it_was_published_and_may_run_nothing(tmp_path: Path) -> None:
    pages, registry = world(tmp_path)
    builders.publish_version(tmp_path, "m", builders.scaled(), task=None, **{CARD_FILE: CARD})
    registry.set_present("m", [1], {})
    answer = ask(pages, "/models/m/1/card")
    assert (answer.content, answer.content_type) == (CARD, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "sandbox", "frame-ancestors 'none'"} <= set(policy)
    assert not [part for part in policy if part.startswith(("script-src", "connect-src", "img-src"))]


def test_changed_card_is_not_shown(tmp_path: Path) -> None:
    pages, registry = world(tmp_path)
    folder = builders.publish_version(tmp_path, "m", builders.scaled(), task=None, **{CARD_FILE: CARD}).folder
    registry.set_present("m", [1], {})
    (folder / CARD_FILE).write_bytes(CARD + b"<p>bought")
    assert refused(pages, "/models/m/1/card") == 500
    (folder / CARD_FILE).write_bytes(CARD)
    assert ask(pages, "/models/m/1/card").content == CARD
    (folder / CHECKSUMS_FILE).unlink()
    assert refused(pages, "/models/m/1/card") == 404


def test_card_of_other_files_than_those_that_are_loaded_is_not_shown(tmp_path: Path) -> None:
    pages, registry = world(tmp_path)
    path = builders.publish_version(tmp_path, "m", builders.scaled(), **{CARD_FILE: CARD})
    registry.set_ready(Loader("cpu").load(path, Overrides({})))
    assert ask(pages, "/models/m/1/card").content == CARD
    path.folder.rename(tmp_path / "aside")
    builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task(), **{CARD_FILE: CARD})
    assert refused(pages, "/models/m/1/card") == 404
    registry.retire("m", 1, lambda: None)
    assert ask(pages, "/models/m/1/card").content == CARD


def test_card_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    pages, registry = world(root)
    folder = builders.publish_version(root, "m", builders.scaled(), task=None, **{CARD_FILE: CARD}).folder
    registry.set_present("m", [1], {})
    secret = tmp_path / "secret"
    secret.write_bytes(CARD)
    (folder / CARD_FILE).unlink()
    (folder / CARD_FILE).symlink_to(secret)
    assert refused(pages, "/models/m/1/card") == 500
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert refused(pages, "/models/m/1/card") == 500


@pytest.mark.parametrize(
    "path",
    ["/x", "//", "/index.html", "/models", "/models/m/1", "/models/m/2/card", "/models/m/0/card", "/models/m/01/card",
     "/models/m/-1/card", "/models/other/1/card", "/models/../1/card", "/models/%2e%2e/1/card", "/models/m/1/card/",
     "/models/m/1/../card", "/models/m/..%2f1/card", "/metrics/", "/status.json/", "/models/m/1/model.onnx",
     "/models/m/99999999999999999999/card", "/models//1/card", "/models/\x00/1/card"],
)  # fmt: skip
def test_every_other_path_is_not_found(tmp_path: Path, path: str) -> None:
    pages, registry = world(tmp_path)
    builders.publish_version(tmp_path, "m", builders.scaled(), task=None, **{CARD_FILE: CARD})
    registry.set_present("m", [1], {})
    assert refused(pages, path) == 404


@given(st.text(alphabet="./%2eflmods\\\x00m1card~", max_size=40))
def test_no_path_reads_a_file_of_its_own_choice(path: str) -> None:
    pages, _ = world(Path("/"))
    assert refused(pages, f"/models/{path}/card") == 404


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("", True), ("x.localhost", True), ("my.host", True),
     ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example", False)],
)  # fmt: skip
def test_foreign_names_for_this_machine_are_turned_away(tmp_path: Path, host: str, is_answered: bool) -> None:
    pages, _ = world(tmp_path, own_host="my.host")
    for path in ("/", "/status.json"):
        if is_answered:
            assert ask(pages, path, host).status == 200
        else:
            assert refused(pages, path, host) == 421
    assert ask(world(tmp_path, own_host=None)[0], "/", host).status == 200
