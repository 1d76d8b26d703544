"""BentoML with ONNX Runtime: `python -m … PORT THREADS MODEL=FILE …`, in its environment.

Its API methods take JSON, so that the message goes in and out as base64.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.peers_model import InlineModels

_bentoml: Any = importlib.import_module("bentoml")

_MODELS: Final = "FITSERVE_BENCH_MODELS"
"""Environment variable by which the service, in a process of BentoML's, learns what to open."""


class OnnxService:
    """One ModelInfer message a request."""

    def __init__(self) -> None:
        thread_count, *models = json.loads(os.environ[_MODELS])
        self._models = InlineModels(models, int(thread_count))

    async def infer(self, message: str) -> dict[str, str]:
        """Runs one."""
        return {"message": base64.b64encode(self._models.answer(base64.b64decode(message))).decode()}


OnnxService.infer = _bentoml.api(OnnxService.infer)  # type: ignore[method-assign]
service: Any = _bentoml.service(workers=1, traffic={"timeout": 60})(OnnxService)


def main(arguments: Sequence[str]) -> None:
    """Becomes the server."""
    port, thread_count, *models = arguments
    os.environ[_MODELS] = json.dumps([thread_count, *models])
    program = str(Path(sys.executable).with_name("bentoml"))
    options = ["--host", "127.0.0.1", "--port", port]
    os.execv(program, [program, "serve", "fitserve_benchmarks.peers_bentoml:service", *options])


if __name__ == "__main__":
    main(sys.argv[1:])
