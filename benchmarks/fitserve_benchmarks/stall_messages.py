"""The worst messages that we can think of, with what each must be answered: a table for tests and for the drill.

Each is within the default bound of 64 MiB, and costs many times its size to whoever parses it unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from fitserve.types.v1 import tensor_pb2
from fitserve_oip import inference_pb2 as oip

WIDE: Final = "wide"
"""Model of `hostile_models.wide`."""

WORDS: Final = "words"

VICTIM: Final = "victim"
"""Models of `hostile_models.put_good_models`; others call another one."""

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
PREDICT: Final = "/fitserve.inference.v1.InferenceService/Predict"
EVALUATE: Final = "/fitserve.inference.v1.InferenceService/Evaluate"
COMPARE: Final = "/fitserve.inference.v1.InferenceService/CompareVersions"

_MI: Final = 1 << 20
_LARGE: Final = 60 * _MI


class StallMessage(NamedTuple):
    """One message.

    Args:
        name: What it is.
        method: Full name.
        make: Makes its bytes.
        code: Name of the status code of the answer. An error of ModelStreamInfer comes within the stream.
        most_growth_mib: What the server's memory may grow by.
    """

    name: str
    method: str
    make: Callable[[], bytes]
    code: str
    most_growth_mib: float = 256.0


def _varint(number: int) -> bytes:
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _infer(model: str, datatype: str, shape: list[int], raw: bytes) -> bytes:
    message = oip.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    return message.SerializeToString()


def _typed(model: str, datatype: str, shape: list[int], contents: bytes) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
    return _field(1, model.encode()) + _field(5, tensor.SerializeToString() + _field(5, contents))


def _text(size: int) -> bytes:
    """One BYTES element of zeros."""
    return size.to_bytes(4, "little") + bytes(size)


def _wide_text(size: int) -> bytes:
    """One BYTES element that takes four times its size as a Python string."""
    face = "\U0001f600".encode()
    return size.to_bytes(4, "little") + face + bytes(size - len(face))


def _wide(megabytes: int) -> bytes:
    message = oip.ModelInferRequest(model_name=WIDE)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    message.inputs.add(name="s", datatype="INT64", shape=[2])
    message.raw_input_contents.append(np.ones(1, "<f4").tobytes())
    message.raw_input_contents.append(np.array([1, megabytes * 250_000], "<i8").tobytes())
    return message.SerializeToString()


def _tensors(model_count: int, field: int) -> bytes:
    texts = tensor_pb2.Tensor(name="x", datatype="BYTES", shape=[15 * _MI], content=bytes(_LARGE))
    model = tensor_pb2.ModelSpec(name=VICTIM).SerializeToString()
    head = b"".join(_field(number, model) for number in range(1, model_count + 1))
    return head + _field(field, texts.SerializeToString())


def _named() -> bytes:
    return _infer(VICTIM, "FP32", [1, 2], bytes(8))


def _mixed_texts() -> bytes:
    """Runs of short texts that a long one breaks off, one element before a counter of runs would count them."""
    return (_field(8, b"x") * 255 + _field(8, b"x" * 128)) * 20_000


def _wrapped() -> bytes:
    """A text whose length is 1 in the parser's 64 bits and beyond the message without them; texts follow it."""
    return b"\x42\x81" + b"\x80" * 8 + b"\x02a" + _field(8, b"") * (15 * _MI)


STALL_MESSAGES: Final = (
    StallMessage(
        "empty texts, raw", INFER, lambda: _infer(VICTIM, "BYTES", [15 * _MI], bytes(_LARGE)), "RESOURCE_EXHAUSTED"
    ),
    StallMessage(
        "texts of a byte",
        INFER,
        lambda: _infer(WORDS, "BYTES", [3 * _MI, 2], b"\1\0\0\0A" * (6 * _MI)),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage(
        "texts at the bound", INFER, lambda: _infer(WORDS, "BYTES", [120_000, 2], b"\1\0\0\0A" * 240_000), "OK"
    ),
    StallMessage("two long texts", INFER, lambda: _infer(WORDS, "BYTES", [1, 2], _text(15 * _MI) * 2), "OK"),
    StallMessage(
        "a text of 60 MiB", INFER, lambda: _infer(WORDS, "BYTES", [1, 1], _text(_LARGE)), "RESOURCE_EXHAUSTED"
    ),
    StallMessage(
        "a wide text of 30 MiB",
        INFER,
        lambda: _infer(WORDS, "BYTES", [1, 2], _wide_text(15 * _MI) * 2),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage("a wide text of 14 MiB", INFER, lambda: _infer(WORDS, "BYTES", [1, 2], _wide_text(7 * _MI) * 2), "OK"),
    StallMessage("texts of 128 bytes", INFER, lambda: _infer(WORDS, "BYTES", [60_000, 2], _text(120) * 120_000), "OK"),
    StallMessage(
        "a torn text",
        INFER,
        lambda: _infer(WORDS, "BYTES", [120_000, 2], b"\1\0\0\0A" * 239_999 + b"\xff\0\0\0A"),
        "INVALID_ARGUMENT",
    ),
    StallMessage(
        "texts that are no UTF-8",
        INFER,
        lambda: _infer(WORDS, "BYTES", [120_000, 2], b"\1\0\0\0\xff" * 240_000),
        "INVALID_ARGUMENT",
    ),
    StallMessage(
        "empty texts, typed",
        INFER,
        lambda: _typed(WORDS, "BYTES", [15 * _MI, 2], _field(8, b"") * (30 * _MI)),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage(
        "texts of mixed lengths", INFER, lambda: _typed(WORDS, "BYTES", [_MI, 2], _mixed_texts()), "RESOURCE_EXHAUSTED"
    ),
    StallMessage(
        "numbers, packed",
        INFER,
        lambda: _typed(VICTIM, "INT64", [_LARGE], _field(3, bytes(_LARGE))),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage(
        "numbers, unpacked",
        INFER,
        lambda: _typed(VICTIM, "INT64", [_MI], b"\x18\1" * (30 * _MI)),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage(
        "numbers of FP32, unpacked",
        INFER,
        lambda: _typed(VICTIM, "FP32", [_MI, 2], b"\x35\0\0\0\0" * (2 * _MI)),
        "OK",
    ),
    StallMessage(
        "empty lists", INFER, lambda: _typed(VICTIM, "INT64", [1], b"\x1a\0" * (30 * _MI)), "RESOURCE_EXHAUSTED"
    ),
    StallMessage(
        "wanted outputs", INFER, lambda: _named() + _field(6, _field(1, b"y")) * (5 * _MI), "RESOURCE_EXHAUSTED"
    ),
    StallMessage(
        "outputs within the bound", INFER, lambda: _named() + _field(6, _field(1, b"y")) * 8_000, "INVALID_ARGUMENT"
    ),
    StallMessage(
        "inputs", INFER, lambda: _field(1, b"m") + _field(5, _field(1, b"x")) * (3 * _MI), "RESOURCE_EXHAUSTED"
    ),
    StallMessage("empty inputs", INFER, lambda: _field(1, b"m") + b"\x2a\0" * (30 * _MI), "RESOURCE_EXHAUSTED"),
    StallMessage("empty raw contents", INFER, lambda: _field(1, b"m") + b"\x3a\0" * (30 * _MI), "RESOURCE_EXHAUSTED"),
    StallMessage(
        "parameters",
        INFER,
        lambda: _named() + b"".join(_field(4, _field(1, b"%07x" % number)) for number in range(200_000)),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage("a name", INFER, lambda: _field(1, b"m" * _LARGE), "RESOURCE_EXHAUSTED"),
    StallMessage(
        "a shape",
        INFER,
        lambda: _field(1, b"m") + _field(5, _field(1, b"x") + _field(3, b"\1" * _LARGE)),
        "INVALID_ARGUMENT",
    ),
    StallMessage(
        "a shape within the bound",
        INFER,
        lambda: _field(1, VICTIM.encode()) + _field(5, _field(1, b"x") + _field(3, b"\1" * (_MI - 100))),
        "INVALID_ARGUMENT",
    ),
    StallMessage(
        "texts in a wanted output",
        INFER,
        lambda: _named() + _field(6, _field(5, _field(8, bytes(30 * _MI)))),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage(
        "texts behind a length that wraps",
        INFER,
        lambda: _typed(WORDS, "BYTES", [1, 2], _wrapped()),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage("unknown fields", INFER, lambda: _named() + b"\xf8\x06\1" * (20 * _MI), "RESOURCE_EXHAUSTED"),
    StallMessage("a number without end", INFER, lambda: b"\x08" + b"\xff" * _LARGE, "INVALID_ARGUMENT"),
    StallMessage("groups", INFER, lambda: b"\x0b" * _LARGE, "INVALID_ARGUMENT"),
    StallMessage("numbers, raw", INFER, lambda: _infer(VICTIM, "FP32", [7 * _MI, 2], bytes(56 * _MI)), "OK"),
    StallMessage("an answer of 60 MB", INFER, lambda: _wide(60), "OK"),
    StallMessage("an answer of 300 MB", INFER, lambda: _wide(300), "RESOURCE_EXHAUSTED", 400),
    StallMessage(
        "streamed texts", STREAM, lambda: _infer(VICTIM, "BYTES", [15 * _MI], bytes(_LARGE)), "RESOURCE_EXHAUSTED"
    ),
    StallMessage(
        "streamed outputs", STREAM, lambda: _named() + _field(6, _field(1, b"y")) * (5 * _MI), "RESOURCE_EXHAUSTED"
    ),
    StallMessage("texts to Predict", PREDICT, lambda: _tensors(1, 2), "RESOURCE_EXHAUSTED"),
    StallMessage("outputs of Predict", PREDICT, lambda: _field(3, b"y") * (15 * _MI), "RESOURCE_EXHAUSTED"),
    StallMessage("inputs of Predict", PREDICT, lambda: b"\x12\0" * (30 * _MI), "RESOURCE_EXHAUSTED"),
    StallMessage("texts as labels", EVALUATE, lambda: _tensors(1, 3), "RESOURCE_EXHAUSTED"),
    StallMessage("texts to Evaluate", EVALUATE, lambda: _tensors(1, 2), "RESOURCE_EXHAUSTED"),
    StallMessage("texts to CompareVersions", COMPARE, lambda: _tensors(2, 3), "RESOURCE_EXHAUSTED"),
    StallMessage("a name to health", "/grpc.health.v1.Health/Check", lambda: _field(1, b"m" * _LARGE), "NOT_FOUND"),
    StallMessage(
        "parameters of a load",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        lambda: _field(3, _field(1, b"p")) * (10 * _MI),
        "RESOURCE_EXHAUSTED",
    ),
    StallMessage(
        "unknown fields of ServerLive",
        "/inference.GRPCInferenceService/ServerLive",
        lambda: b"\xf8\x06\1" * (20 * _MI),
        "RESOURCE_EXHAUSTED",
    ),
)
