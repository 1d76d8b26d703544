"""The pages of the metrics port: status, model cards, metrics, health. Reads only; every other path is not found."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from base64 import b64encode
from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST

from fitserve_contract.files import UnsafeFileError
from fitserve_contract.folder_view import FolderView
from fitserve_contract.repository import (
    CARD_FILE,
    MANIFEST_FILE,
    MAX_TEXT_BYTES,
    ChecksumError,
    is_model_name,
    read_checksums,
    version_path,
)
from fitserve_contract.repository_view import Root
from fitserve_service.pages_http import Request, RequestError, Response
from fitserve_service.pages_status import StatusReport
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion

MAX_CARD_BYTES: Final = 4 << 20

_HTML: Final = "text/html; charset=utf-8"
_CARD_PATH: Final = re.compile(r"/models/([^/]+)/([1-9][0-9]{0,17})/card")
_NOTHING_ELSE: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_EXPECTED: Final = "expected /, /status.json, /models/<model>/<version>/card, /metrics, /healthz or /livez"

CARD_HEADERS: Final = {
    # Whoever can write into the repository can write a card: it may look as it likes, and do nothing.
    "Content-Security-Policy": f"{_NOTHING_ELSE}; style-src 'unsafe-inline'; sandbox",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Pages:
    """Answers requests; thread-safe.

    Args:
        repository: Where the cards are.
        registry: Which models and versions there are: no path leads to another folder.
        exposition: Writes the metrics.
        status: The status document.
        own_host: Host name that this port is listened on where only this machine reaches it: pages are then refused
            under other names, which a foreign web page could have pointed here. None: any name.
    """

    def __init__(
        self,
        repository: Root,
        registry: Registry,
        exposition: Callable[[], bytes],
        status: StatusReport,
        own_host: str | None,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._exposition = exposition
        self._status = status
        self._own_host = own_host
        self._page, self._page_headers = _status_page()

    def answer(self, request: Request) -> Response:
        """Answers a request.

        Raises:
            RequestError: there is no such page, or it is not for this caller.
        """
        if request.path == "/metrics":
            return Response(self._exposition(), CONTENT_TYPE_LATEST)
        if request.path == "/healthz":
            return self._health()
        if request.path == "/livez":
            return Response(b"ok\n")
        if self._own_host is not None and not _is_own_name(request.host, self._own_host):
            expected = f"expected a Host header with an address, localhost or {self._own_host}"
            raise RequestError(HTTPStatus.MISDIRECTED_REQUEST, expected)
        if request.path == "/":
            return Response(self._page, _HTML, headers=self._page_headers)
        if request.path == "/status.json":
            return Response(json.dumps(self._status.document(), allow_nan=False).encode(), "application/json")
        return self._card(request.path)

    def _health(self) -> Response:
        if self._status.is_ready:
            # Away, it keeps nobody from being answered: that is for people to read, and for no orchestrator to act on.
            text = f"ok\n{self._status.absence}\n" if self._status.absence else "ok\n"
            return Response(text.encode(errors="replace"))
        return Response(b"not ready\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _card(self, path: str) -> Response:
        match = _CARD_PATH.fullmatch(path)
        if match is None or not is_model_name(match[1]):
            raise RequestError(HTTPStatus.NOT_FOUND, _EXPECTED)
        model, version = match[1], int(match[2])
        if version not in self._registry.states(model):
            raise RequestError(HTTPStatus.NOT_FOUND, "the server knows no such model and version")
        served = self._registry.served(model).get(version)
        try:
            with version_path(self._repository, model, version).view() as folder:
                return _card_of(folder, served)
        except OSError:
            raise RequestError(HTTPStatus.NOT_FOUND, "this version has no model card") from None


def _card_of(folder: FolderView, served: ServedVersion | None) -> Response:
    if served is not None and _manifest(folder) != served.manifest_json:
        text = "this version's model card is not that of the files that are loaded: others are in its folder"
        raise RequestError(HTTPStatus.NOT_FOUND, text)
    return Response(_read_card(folder), _HTML, headers=CARD_HEADERS)


def _manifest(folder: FolderView) -> bytes:
    """Reads a version's manifest; empty where it has none that can be read."""
    try:
        return folder.read(MANIFEST_FILE, max_bytes=MAX_TEXT_BYTES)
    except (OSError, UnsafeFileError):
        return b""


def _read_card(folder: FolderView) -> bytes:
    """Reads the card of a version, and holds it against the version's checksums.

    Raises:
        RequestError: it has no card, or one that was not published with it.
    """
    try:
        content = folder.read(CARD_FILE, max_bytes=MAX_CARD_BYTES)
        expected = read_checksums(folder).get(CARD_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(HTTPStatus.NOT_FOUND, "this version has no model card") from None
    except (OSError, UnsafeFileError, ChecksumError):
        raise RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "this version's model card cannot be read") from None
    if hashlib.sha256(content).hexdigest() != expected:
        text = "this version's model card is not the one that was published: its checksum differs"
        raise RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, text)
    return content


def _is_own_name(host: str, own_host: str) -> bool:
    """Tells whether a Host header can be meant for this machine: an address, localhost, or the name listened on.

    Args:
        host: Host header without its port, lower case; empty where there is none.
        own_host: What the server was told to listen on.
    """
    if host in ("", own_host.lower(), "localhost") or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _status_page() -> tuple[bytes, dict[str, str]]:
    """Reads the status page, and names its own script and style, by hash, as the only ones that may run."""
    page = (files("fitserve_service") / "status_page.html").read_text(encoding="utf-8")
    allowed = {
        f"{kind}-src": " ".join(f"'sha256-{_digest(text)}'" for text in re.findall(f"(?s)<{kind}>(.*?)</{kind}>", page))
        for kind in ("script", "style")
    }
    policy = "; ".join([_NOTHING_ELSE, "connect-src 'self'", *(f"{name} {sums}" for name, sums in allowed.items())])
    return page.encode(), {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}


def _digest(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()
