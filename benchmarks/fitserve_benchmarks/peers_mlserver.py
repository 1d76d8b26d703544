"""MLServer with a model of ten lines on ONNX Runtime: `python -m … PORT THREADS MODEL=FILE …`, in its environment.

Inference runs in the server's own process: its workers cost a small model more than they give.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitserve_benchmarks.peers_model import open_models

_mlserver: Any = importlib.import_module("mlserver")
_codecs: Any = importlib.import_module("mlserver.codecs")
_types: Any = importlib.import_module("mlserver.types")


class OnnxModel(_mlserver.MLModel):  # type: ignore[misc]  # the package is in the peer's environment alone
    """A model whose URI is its file."""

    async def load(self) -> bool:
        """Opens the session."""
        parameters = self.settings.parameters
        opened = open_models([f"model={parameters.uri}"], int(parameters.extra["thread_count"]))
        self._session = opened["model"]
        self._names = [node.name for node in self._session.get_outputs()]
        return True

    async def predict(self, payload: Any) -> Any:
        """Runs one request."""
        inputs = {tensor.name: _codecs.NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        arrays = zip(self._names, self._session.run(None, inputs), strict=True)
        outputs = [_codecs.NumpyCodec.encode_output(name, array) for name, array in arrays]
        return _types.InferenceResponse(model_name=self.name, outputs=outputs)


def write_settings(folder: Path, ports: Sequence[int], thread_count: int, models: Sequence[str]) -> None:
    """Writes the settings of the server and of each model."""
    settings = {
        "host": "127.0.0.1",
        "grpc_port": ports[0],
        "http_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": 0,
        "grpc_max_message_length": 64 << 20,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    for model in models:
        name, path = model.split("=", 1)
        parameters = {"uri": path, "extra": {"thread_count": thread_count}}
        implementation = "fitserve_benchmarks.peers_mlserver.OnnxModel"
        document = {"name": name, "implementation": implementation, "parameters": parameters}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(document))


def main(arguments: Sequence[str]) -> None:
    """Becomes the server."""
    from fitserve_benchmarks.peers_model import free_ports

    port, thread_count, *models = arguments
    folder = Path(tempfile.mkdtemp(prefix="fitserve-mlserver-"))
    write_settings(folder, [int(port), *free_ports(2)], int(thread_count), models)
    os.chdir(folder)
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", str(folder)])


if __name__ == "__main__":
    main(sys.argv[1:])
