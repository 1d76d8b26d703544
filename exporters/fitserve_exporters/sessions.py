"""ONNX Runtime sessions of an exported model, and which execution providers really work here."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import onnxruntime

from fitserve_exporters.candidate import Array, Arrays

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

Provider: TypeAlias = tuple[str, dict[str, Any]]

_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    CPU: {},
    # TF32 rounds the factors of a product to 10 bits: what it gives is not fp32, and would fail any fp32 tolerance.
    CUDA: {"use_tf32": "0"},
}


class OrtSession:
    """Runs a model on one execution provider. Not thread-safe; owns the runtime's memory until it is collected.

    Args:
        content: Serialized model.
        provider: Execution provider that must take the model.

    Raises:
        RuntimeError: the provider does not work here.
        Exception: ONNX Runtime's own, where it refuses the model.
    """

    def __init__(self, content: bytes, provider: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=[(provider, _OPTIONS[provider])])
        self.provider: str = self._session.get_providers()[0]
        if self.provider != provider:
            raise RuntimeError(f"execution provider: expected {provider}, got {self.provider}")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Gives every output by name."""
        answers: list[Array] = self._session.run(self._outputs, inputs)
        return dict(zip(self._outputs, answers, strict=True))


def working_sessions(content: bytes) -> list[OrtSession]:
    """Opens the model on the CPU, and on CUDA where that provider works; the CPU is first."""
    sessions = [OrtSession(content, CPU)]
    if can_use_cuda():
        sessions.append(OrtSession(content, CUDA))
    return sessions


def can_use_cuda() -> bool:
    """Tells whether the CUDA provider is compiled in and torch sees a device; torch loads the libraries it needs."""
    if CUDA not in onnxruntime.get_available_providers():
        return False
    import torch

    return bool(torch.cuda.is_available())
