"""The status page and the model cards in a real browser: they show what is, in light and dark, and run nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import builders

from fitserve_client import Client
from fitserve_contract.repository import CARD_FILE, LABELS_FILE
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.card import model_card
from fitserve_service.metrics_port import MetricsPort
from fitserve_service.pages import Pages
from fitserve_service.pages_activity import Activity
from fitserve_service.pages_http import Request, RequestError, Response
from fitserve_service.pages_status import StatusReport
from fitserve_service.registry import Registry
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings

pytestmark = pytest.mark.needs_program("chromium")

BROWSER_S = 60
EVIL_LABEL = "<img src=x onerror=document.title='owned'>"
EVIL_CARD = b"<!doctype html><title>card</title><p>text</p><script>document.title = 'owned'</script>"


def browse(folder: Path, *arguments: str) -> str:
    """Runs Chromium without a window, with a profile of its own; gives what it prints."""
    program = shutil.which("chromium")
    assert program is not None
    profile = folder / "profile"
    # Time in the page is virtual: it runs ahead whenever the page waits for nothing but its own clock.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
               f"--user-data-dir={profile}", "--virtual-time-budget=7000"]  # fmt: skip
    done = subprocess.run([program, *options, *arguments], capture_output=True, timeout=BROWSER_S, check=True)
    return done.stdout.decode()


def dom(folder: Path, url: str) -> str:
    return browse(folder, "--dump-dom", url)


def brightness(folder: Path, url: str, scheme: int) -> float:
    """Takes a picture; scheme 0 is dark, 1 light. Gives the mean brightness, 0..255."""
    picture = folder / f"{scheme}.png"
    browse(folder, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}", url)
    with Image.open(picture) as image:
        return float(np.asarray(image.convert("L")).mean())


def repository(folder: Path) -> Path:
    """A model whose version 1 is READY with a card and whose version 2 is a broken file; and one with a certificate."""
    root = folder / "repository"
    task = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("<script>document.title = 'owned'</script>", "b"))
    card = model_card(builders.manifest("m", task))
    path = builders.publish_version(root, "m", builders.scaled(), task=task, **{CARD_FILE: card})
    builders.bare_version(root, "m", 2, b"no model")
    builders.certified_version(root, "proven", builders.scaled(), {"x": np.ones((4, 2), np.float32)})
    (path.folder.parent / LABELS_FILE).write_text(f'{{"stable": 1, "{EVIL_LABEL}": 1}}')
    return root


def settings(root: Path) -> ServerSettings:
    return ServerSettings(root, port=0, metrics_port=0, device="cpu", poll_interval_s=0.05)


def test_status_page_shows_versions_states_labels_and_cards(tmp_path: Path) -> None:
    with running_server(settings(repository(tmp_path))) as server:
        with Client(f"127.0.0.1:{server.port}") as client:
            for _ in range(50):
                client.predict("m", np.zeros((1, 2), np.float32))
        page = dom(tmp_path, f"http://localhost:{server.metrics_port}/")
    assert "<title>fitserve · status</title>" in page
    text = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    for shown in ("ready", "READY", "FAILED", "stable", "CPU", "verified", "unverified", "2 of 3", "wire type"):
        assert re.search(rf"(?<![\w-]){re.escape(shown)}", text), shown
    assert 'href="/models/m/1/card"' in page
    assert 'href="/models/m/2/card"' not in page
    assert "&lt;img src=x" in page
    assert "<img" not in page
    assert re.search(r'title="checksums hold; probe replayed here in [\d.]+ [mµ]s"', page)
    row = re.search(r'<tr[^>]*data-key="1"[^>]*>(.*?)</tr>', page, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.DOTALL)
    assert float(cells[5]) > 0
    assert cells[7].endswith(("ms", "µs", " s"))


@pytest.mark.parametrize("page", ["/", "/models/m/1/card"])
def test_pages_follow_the_browser_into_the_dark(tmp_path: Path, page: str) -> None:
    with running_server(settings(repository(tmp_path))) as server:
        url = f"http://localhost:{server.metrics_port}{page}"
        dark, light = (brightness(tmp_path, url, scheme) for scheme in (0, 1))
    assert dark < 80 < 200 < light


def test_card_runs_no_script_from_its_manifest_or_its_own(tmp_path: Path) -> None:
    root = repository(tmp_path)
    builders.publish_version(root, "evil", builders.scaled(), task=None, **{CARD_FILE: EVIL_CARD})
    with running_server(settings(root)) as server:
        pages = [
            dom(tmp_path, f"http://localhost:{server.metrics_port}/models/{name}/1/card") for name in ("m", "evil")
        ]
    assert "<title>m · model card</title>" in pages[0]
    assert "&lt;script&gt;document.title" in pages[0]
    assert "<title>card</title>" in pages[1]
    control = tmp_path / "control.html"
    control.write_bytes(EVIL_CARD)
    assert "<title>owned</title>" in dom(tmp_path, control.as_uri())


def test_page_asks_again_and_says_when_nobody_answers(tmp_path: Path) -> None:
    registry = Registry()
    status = StatusReport(tmp_path, registry, Activity(dict), dict, lambda: True, {"version": "1"})
    pages = Pages(tmp_path, registry, lambda: b"", status, "127.0.0.1")
    asked = []

    def answer(request: Request) -> Response:
        if request.path == "/status.json":
            asked.append(request)
            if len(asked) > 1:
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "gone")
        return pages.answer(request)

    port = MetricsPort("127.0.0.1", 0, answer)
    try:
        page = dom(tmp_path, f"http://localhost:{port.port}/")
    finally:
        port.close()
    assert len(asked) > 1
    assert re.search(r"The server does not answer\. The figures below are of \d", page)
    assert '<body class="stale">' in page
    assert re.search(r'<p id="empty">No model yet', page)
