"""What every server under measurement is asked: ModelInfer requests of the Open Inference Protocol, and their answers.

The same bytes go to every contestant: over gRPC as they are, over HTTP as a request's body. Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fitserve_benchmarks.peers_model import open_models
from fitserve_benchmarks.subject import Array, Batch, Subject, random_batches
from fitserve_contract.datatypes import NUMPY_DTYPES, datatype_of
from fitserve_contract.tensor_bytes import decode, encode
from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse

MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
POOL_SIZE: Final = 16
"""Different random requests that are sent in rotation where the load source can."""

_AGREEMENT: Final = 1e-4
_TYPED_FIELDS: Final = {"FP32": "fp32_contents", "FP64": "fp64_contents", "INT64": "int64_contents"}


@dataclass(frozen=True)
class Traffic:
    """Requests of one batch size to one model.

    Args:
        model: Model name.
        batch_size: B.
        batches: The inputs of each request.
        messages: Serialized ModelInferRequests, in the same order.
        expected: What ONNX Runtime in this process answers to each, by output name; empty for an echo's.
    """

    model: str
    batch_size: int
    batches: Sequence[Batch]
    messages: Sequence[bytes]
    expected: Sequence[Mapping[str, Array]]


def make_traffic(subject: Subject, batch_size: int, count: int = POOL_SIZE) -> Traffic:
    """Makes random requests and computes their answers.

    Raises:
        SubjectError: the inputs cannot be invented.
    """
    batches = random_batches(subject, batch_size, count)
    session = open_models([f"{subject.model}={subject.onnx_path}"], 1)[subject.model]
    names = [node.name for node in session.get_outputs()]
    expected = [dict(zip(names, session.run(None, dict(batch)), strict=True)) for batch in batches]
    messages = [infer_request(subject.model, batch) for batch in batches]
    return Traffic(subject.model, batch_size, batches, messages, expected)


def infer_request(model: str, batch: Batch) -> bytes:
    """Writes a request with raw contents."""
    request = ModelInferRequest(model_name=model)
    for name, array in batch.items():
        datatype = datatype_of(array.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(encode(array, datatype))
    return request.SerializeToString()


def infer_answer(message: bytes) -> dict[str, Array]:
    """Reads a ModelInferResponse, raw or typed contents.

    Raises:
        ValueError: contents that do not fit their shape, or of a datatype that is not measured.
    """
    response = ModelInferResponse.FromString(message)
    outputs: dict[str, Array] = {}
    for index, tensor in enumerate(response.outputs):
        shape = tuple(tensor.shape)
        if response.raw_output_contents:
            outputs[tensor.name] = decode(tensor.name, tensor.datatype, shape, response.raw_output_contents[index])
            continue
        if tensor.datatype not in _TYPED_FIELDS:
            expected = ", ".join(_TYPED_FIELDS)
            raise ValueError(f"output '{tensor.name}': expected a datatype of {expected}, got '{tensor.datatype}'")
        values = getattr(tensor.contents, _TYPED_FIELDS[tensor.datatype])
        outputs[tensor.name] = np.array(values, NUMPY_DTYPES[tensor.datatype]).reshape(shape)
    return outputs


def is_right(message: bytes, expected: Mapping[str, Array]) -> bool:
    """Tells whether an answer has the expected outputs, within 1e-4 · max(1, largest expected value)."""
    try:
        found = infer_answer(message)
    except Exception:  # a message that is none is a wrong answer, whatever protobuf or numpy says of it
        return False
    if {name: array.shape for name, array in found.items()} != {name: a.shape for name, a in expected.items()}:
        return False
    return all(
        bool(np.all(np.abs(found[name] - wanted) <= _AGREEMENT * np.abs(wanted).max(initial=1.0)))
        for name, wanted in expected.items()
    )
