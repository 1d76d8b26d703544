"""ONNX Runtime sessions of an exported model, and which execution providers really work here."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnxruntime

from fitserve_exporters.candidate.candidate import Array, Arrays
from fitserve_exporters.errors import NotVerifiedError

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    CPU: {},
    # TF32 rounds the factors of a product to 10 bits: what it gives is not fp32, and would fail any fp32 tolerance.
    CUDA: {"use_tf32": "0"},
}


class ProviderError(RuntimeError):
    """An execution provider that cannot run a model here."""


class OrtSession:
    """Runs a model on one execution provider. Not thread-safe; owns the runtime's memory until it is collected.

    Args:
        content: Serialized model.
        provider: Execution provider that must take the model.

    Raises:
        ProviderError: the provider does not work here, or refuses the model.
    """

    def __init__(self, content: bytes, provider: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        chosen = [(provider, _OPTIONS[provider])]
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=chosen)
        except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
            raise ProviderError(f"{provider} refuses the model: {str(error)[:400]}") from error
        self.provider: str = self._session.get_providers()[0]
        if self.provider != provider:
            raise ProviderError(f"{provider} does not work here: ONNX Runtime took {self.provider} in its place")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Gives every output by name; texts go in as `bytes` of UTF-8."""
        answers: list[Array] = self._session.run(self._outputs, fed(inputs))
        return dict(zip(self._outputs, answers, strict=True))


def fed(inputs: Arrays) -> Arrays:
    """Returns inputs as the runtime takes them: texts as `str`, for it writes other objects as Python does."""
    return {name: _decoded(array) if array.dtype.kind == "O" else array for name, array in inputs.items()}


def _decoded(texts: Array) -> Array:
    decoded = np.empty(texts.size, object)
    decoded[:] = [text.decode() for text in texts.reshape(-1)]
    return decoded.reshape(texts.shape)


def sessions_here(content: bytes) -> list[OrtSession]:
    """Opens the model on the CPU, and on CUDA where there is a device; the CPU is first.

    Raises:
        NotVerifiedError: one of them does not work or refuses the model: it would be served unverified there.
    """
    providers = [CPU, CUDA] if can_use_cuda() else [CPU]
    try:
        return [OrtSession(content, provider) for provider in providers]
    except ProviderError as error:
        raise NotVerifiedError(str(error)) from error


def can_use_cuda() -> bool:
    """Tells whether the CUDA provider is compiled in and torch sees a device; torch loads the libraries it needs."""
    if CUDA not in onnxruntime.get_available_providers():
        return False
    import torch

    if not torch.cuda.is_available():
        return False
    onnxruntime.preload_dlls()  # the provider's own library finds cuBLAS and cuDNN only where they are loaded already
    return True
