"""The HTTP server of the metrics port: GET /metrics and nothing else.

Not prometheus_client's own, which asks the name service for the host's full name before it answers anybody.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST

from fitserve_service.transport import check_listenable

PATH: Final = "/metrics"

_log = logging.getLogger(__name__)


class MetricsPort:
    """Serves the exposition on a thread of its own until it is closed."""

    def __init__(self, host: str, port: int, exposition: Callable[[], bytes]) -> None:
        """Starts listening.

        Args:
            host: Name or address.
            port: TCP port; 0 takes a free one.
            exposition: Writes the metrics; called on a thread of each request.

        Raises:
            ListenError: the address cannot be listened on.
        """
        check_listenable(host, port)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = _HttpServer((host, port), _handler(exposition), family)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HttpServer(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], family: int) -> None:
        self.address_family = family
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that goes away is no news."""


def _handler(exposition: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        server_version = "fitserve"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path.split("?")[0] != PATH:
                self.send_error(404, f"expected {PATH}")
                return
            content = exposition()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line each; what they ask for is untrusted besides."""

    return Handler
