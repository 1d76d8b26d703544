"""LitServe with ONNX Runtime: `python -m … PORT THREADS MODEL=FILE …`, in its environment.

LitServe reads JSON, so that the message goes in and out as base64.
"""

from __future__ import annotations

import base64
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from fitserve_benchmarks.peers_model import InlineModels

_litserve: Any = importlib.import_module("litserve")


class OnnxApi(_litserve.LitAPI):  # type: ignore[misc]  # the package is in the peer's environment alone
    """One ModelInfer message a request."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Opens the sessions, in the worker's process."""
        thread_count, *models = sys.argv[2:]
        self._models = InlineModels(models, int(thread_count))

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Takes the message out of the JSON."""
        return base64.b64decode(request["message"])

    def predict(self, message: bytes) -> bytes:
        """Runs it."""
        return self._models.answer(message)

    def encode_response(self, message: bytes) -> dict[str, str]:
        """Puts the answer into JSON."""
        return {"message": base64.b64encode(message).decode()}


def main(arguments: Sequence[str]) -> None:
    """Serves until it is ended."""
    server = _litserve.LitServer(OnnxApi(), accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(arguments[0]), host="127.0.0.1", generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1:])
