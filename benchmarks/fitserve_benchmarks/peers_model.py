"""Models run inline on ModelInfer messages: the ten lines that somebody puts into a server of theirs.

It also runs in the environments of other servers, so that it needs onnxruntime, numpy, protobuf and the protocol's
messages alone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse

_DTYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "BOOL": "?", "UINT8": "u1"}
_DATATYPES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def open_models(models: Sequence[str], thread_count: int) -> dict[str, Any]:
    """Opens ONNX Runtime sessions on the CPU.

    Args:
        models: `NAME=FILE` each.
        thread_count: Threads inside an operator.

    Returns:
        Sessions by name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    pairs = [model.split("=", 1) for model in models]
    return {
        name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for name, path in pairs
    }


class InlineModels:
    """Answers ModelInfer messages. Thread-safe.

    Args:
        models: `NAME=FILE` each.
        thread_count: Threads inside an operator.
    """

    def __init__(self, models: Sequence[str], thread_count: int) -> None:
        self._sessions = open_models(models, thread_count)
        self._outputs = {name: [node.name for node in s.get_outputs()] for name, s in self._sessions.items()}

    def answer(self, message: bytes) -> bytes:
        """Runs a serialized ModelInferRequest with raw contents; gives the serialized ModelInferResponse."""
        request = ModelInferRequest.FromString(message)
        inputs = {
            tensor.name: np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        outputs = self._sessions[request.model_name].run(None, inputs)
        response = ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, array in zip(self._outputs[request.model_name], outputs, strict=True):
            response.outputs.add(name=name, datatype=_DATATYPES[array.dtype], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response.SerializeToString()


def free_ports(count: int) -> list[int]:
    """Finds TCP ports that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
