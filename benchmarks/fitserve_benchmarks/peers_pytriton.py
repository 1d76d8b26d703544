"""PyTriton with ONNX Runtime: `python -m … PORT THREADS MODEL=FILE …`, in its environment."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.peers_model import free_ports, open_models

_MAX_BATCH_SIZE: Final = 64
_DTYPES: Final = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(double)": np.float64}


def bind(triton: Any, name: str, session: Any) -> None:
    """Binds a session as a model whose first axis is the batch."""
    config: Any = importlib.import_module("pytriton.model_config")
    decorators: Any = importlib.import_module("pytriton.decorators")

    def tensors(nodes: Sequence[Any]) -> list[Any]:
        return [config.Tensor(name=n.name, dtype=_DTYPES[n.type], shape=_features(n.shape)) for n in nodes]

    triton.bind(
        model_name=name,
        infer_func=decorators.batch(_runner(session)),
        inputs=tensors(session.get_inputs()),
        outputs=tensors(session.get_outputs()),
        config=config.ModelConfig(max_batch_size=_MAX_BATCH_SIZE),
        strict=False,
    )


def _runner(session: Any) -> Callable[..., dict[str, Any]]:
    names = [node.name for node in session.get_outputs()]

    def run(**inputs: Any) -> dict[str, Any]:
        return dict(zip(names, session.run(None, inputs), strict=True))

    return run


def _features(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else -1 for axis in shape[1:])


def main(arguments: Sequence[str]) -> None:
    """Serves until it is ended."""
    triton_module: Any = importlib.import_module("pytriton.triton")
    port, thread_count, *models = arguments
    http_port, metrics_port = free_ports(2)
    config = triton_module.TritonConfig(
        grpc_port=int(port), http_port=http_port, metrics_port=metrics_port, grpc_address="127.0.0.1"
    )
    with triton_module.Triton(config=config) as triton:
        for name, session in open_models(models, int(thread_count)).items():
            bind(triton, name, session)
        triton.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
