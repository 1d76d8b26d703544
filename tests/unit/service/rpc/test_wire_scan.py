"""Counting on the wire: never less than what the parser makes, and in few steps whatever the message is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fitserve_benchmarks.stall_messages import INFER, STALL_MESSAGES, StallMessage
from fitserve_contract.tensor_bytes import MAX_RANK
from fitserve_oip.inference_pb2 import InferTensorContents, ModelInferRequest
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import LAYOUTS, MAX_FIELDS, MAX_LIGHT_FIELDS, is_light, parse
from fitserve_service.rpc import wire_scan
from fitserve_service.rpc.wire_scan import (
    COST_BYTES,
    DEFAULT_MAX_ELEMENTS,
    ELEMENT_COST,
    AxesError,
    GroupError,
    MalformedError,
    scan,
    typed_cost,
)

LAYOUT = LAYOUTS["inference.ModelInferRequest"]
NO_LIMIT = 1 << 40
STEPS_OF_A_FIELD = 16
"""Bytes that are looked at one by one for a field: a tag, a length or number of ten bytes at most, and a few more."""


class Watched(bytes):
    """Counts the bytes that are looked at one by one."""

    steps = 0

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if not isinstance(key, slice):
            self.steps += 1
        return super().__getitem__(key)


int32s, uint64s = st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**64 - 1)
contents = st.builds(
    InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=5),
    int_contents=st.lists(int32s, max_size=5),
    uint64_contents=st.lists(uint64s, max_size=5),
    fp32_contents=st.lists(st.floats(width=32), max_size=5),
    fp64_contents=st.lists(st.floats(), max_size=5),
    bytes_contents=st.lists(st.binary(max_size=200), max_size=600),
)


def cost_of(message: InferTensorContents) -> int:
    """What the elements cost that the parser made."""
    texts = message.bytes_contents
    numbers = sum(len(values) for field, values in message.ListFields() if field.name != "bytes_contents")
    return len(texts) * ELEMENT_COST + sum(len(text) // COST_BYTES for text in texts) + numbers


@given(st.lists(contents, min_size=1, max_size=3))
def test_no_element_is_missed_in_contents_that_encoders_write(parts: list[InferTensorContents]) -> None:
    # Messages one after the other are one message, whose lists are joined.
    message = b"".join(part.SerializeToString() for part in parts)
    expected = cost_of(InferTensorContents.FromString(message))
    assert typed_cost(message, 0, len(message), NO_LIMIT) >= expected


PIECES = (
    *(b"\x18\x01", b"\x08\xff\x01", b"\x35abcd", b"\x39abcdefgh"),
    *(b"\x42\x00", b"\x42\x03abc", b"\x42\x80\x01" + bytes(128), b"\x1a\x02\x01\x01"),
)
runs = st.builds(lambda piece, count: piece * count, st.sampled_from(PIECES), st.integers(1, 600))


@given(st.lists(runs, max_size=6))
def test_no_element_is_missed_in_runs(pieces: list[bytes]) -> None:
    message = b"".join(pieces)
    assert typed_cost(message, 0, len(message), NO_LIMIT) >= cost_of(InferTensorContents.FromString(message))


@given(st.binary(max_size=120))
def test_no_element_is_missed_in_any_bytes(message: bytes) -> None:
    try:
        expected = cost_of(InferTensorContents.FromString(message))
    except DecodeError:
        return
    assert typed_cost(message, 0, len(message), NO_LIMIT) >= expected


OUTPUT_LIKE_TEXT = b"\x32\x5d\x12\x5bBYTES" + b"x" * 86
"""A wanted output with a parameter that begins like the datatype of an input."""


OUTPUT_WITH_CONTENTS = b"\x32\x06\x2a\x04\x42\x02ab"
"""A wanted output with a field that has the number of an input's contents."""

WRAP = b"\x80" * 8 + b"\x02"
"""Ends a length of ten bytes whose bits past 64 a parser drops."""


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests of fields in any order, some of them changed in a byte."""
    fields = [
        b"\x0a\x01m", b"\x2a\x05\x0a\x01x\x12\x00", b"\x2a\x07\x12\x05BYTES", b"\x32\x03\x0a\x01y", b"\x3a\x04\0\0\0\0",
        b"\x22\x03\x0a\x01p", b"\x2a\x06\x2a\x04\x42\x02ab", OUTPUT_LIKE_TEXT, b"\x2a\x04\x1a\x02\x01\x02",
        b"\xf8\x06\x01", b"\x0b\x0c", b"\x2a\x02\x18\x01", OUTPUT_WITH_CONTENTS,
        b"\x0a\x81" + WRAP + b"m", b"\x2a\x86" + WRAP + b"\x2a\x04\x42\x02ab", b"\x3a\x84" + WRAP + bytes(4),
    ]  # fmt: skip
    message = bytearray(b"".join(draw(st.lists(st.sampled_from(fields), max_size=20))))
    if message and draw(st.booleans()):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message)


@given(requests())
def test_no_field_and_no_contents_are_missed(message: bytes) -> None:
    try:
        request = ModelInferRequest.FromString(message)
    except DecodeError:
        return
    try:
        scan(message, LAYOUT, NO_LIMIT)
    except GroupError:
        return
    except AxesError:
        assert max(len(tensor.shape) for tensor in request.inputs) > MAX_RANK
        return
    fields = len(request.inputs) + len(request.outputs) + len(request.raw_input_contents) + len(request.parameters)
    assert fields == 0 or scan(message, LAYOUT, fields - 1) is None
    found = scan(message, LAYOUT, NO_LIMIT)
    assert found is not None
    assert found.frame_bytes >= sum(output.ByteSize() for output in request.outputs)
    assert all(len(tensor.shape) <= MAX_RANK for tensor in request.inputs)
    cost = sum(typed_cost(message, start, end, NO_LIMIT) for start, end in found.typed)
    assert cost >= sum(cost_of(tensor.contents) for tensor in request.inputs)
    if len(request.inputs) == len(request.raw_input_contents):
        texts = [tensor.datatype == "BYTES" for tensor in request.inputs]
        raw = zip(texts, request.raw_input_contents, strict=True)
        assert found.text_bytes >= sum(len(content) for is_text, content in raw if is_text)


@given(st.lists(st.sampled_from([b"\x42\x82" + WRAP + b"ab", b"\x42\x00", b"\x1a\x81" + WRAP + b"\x01"]), max_size=5))
def test_no_element_hides_behind_a_length_that_wraps(pieces: list[bytes]) -> None:
    message = b"".join(pieces)
    assert typed_cost(message, 0, len(message), NO_LIMIT) >= cost_of(InferTensorContents.FromString(message))


def shaped(*shapes: bytes) -> bytes:
    """A request with one input whose shape comes in several fields."""
    return b"".join((b"\x2a", bytes([sum(map(len, shapes))]), *shapes))


@pytest.mark.parametrize(
    "shapes",
    [
        (b"\x1a\x20" + b"\1" * 32,),
        (b"\x1a\x40" + b"\x81\1" * 32,),
        (b"\x18\1",) * 32,
        (b"\x1a\x10" + b"\1" * 16, b"\x18\1") * 1 + (b"\x1a\x0f" + b"\1" * 15,),
    ],
    ids=["packed", "packed in two bytes", "one by one", "mixed"],
)
def test_a_shape_has_as_many_axes_as_are_served(shapes: tuple[bytes, ...]) -> None:
    message = shaped(*shapes)
    assert len(parse(ModelInferRequest, message).inputs[0].shape) == MAX_RANK
    # Of each tensor by itself.
    assert len(parse(ModelInferRequest, message * 3).inputs) == 3
    for one_more in (b"\x18\1", b"\x1a\1\1"):
        with pytest.raises(ServiceError, match="expected at most 32 axes, got more") as refused:
            is_light(LAYOUT, shaped(*shapes, one_more))
        assert refused.value.reason is Reason.INVALID_INPUT


def test_the_contents_of_a_wanted_output_are_frame() -> None:
    output = b"\x2a\x80\x80\x80\x01" + bytes(2 << 20)
    message = b"\x32" + bytes([0x85, 0x80, 0x80, 0x01]) + output
    with pytest.raises(ServiceError, match=r"at most 1048576 bytes beside the contents of tensors, got 2097162"):
        is_light(LAYOUT, message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x7fm", b"\x2a\x05\x0a\x7fx", b"\x2a\x04\x0a\x04abcd", b"\x10" + b"\x80" * 10 + b"\0", b"\x0e", b"\x0a",
        b"\x2a\x02", b"\x0d\0\0", b"\x32\x03\x0a\x05abcde", b"\x2a\x04\x3a\xff\xff\x7f" + bytes(100),
    ],
)  # fmt: skip
def test_what_no_parser_takes_is_refused_before_it_is_parsed(message: bytes) -> None:
    with pytest.raises(DecodeError):
        ModelInferRequest.FromString(message)
    with pytest.raises(MalformedError):
        scan(message, LAYOUT, NO_LIMIT)


@pytest.mark.parametrize("size", [0, 3_136, 10 << 20])
def test_raw_numbers_are_skipped_whatever_their_size(size: int) -> None:
    request = ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, size // 4])
    message = Watched(request.SerializeToString())
    assert is_light(LAYOUT, message)
    assert message.steps < 60


@pytest.mark.parametrize("case", [case for case in STALL_MESSAGES if case.method == INFER], ids=lambda case: case.name)
def test_the_worst_messages_take_few_steps(case: StallMessage) -> None:
    message = Watched(case.make())
    code_of(lambda: is_light(LAYOUT, message))
    assert message.steps <= STEPS_OF_A_FIELD * MAX_LIGHT_FIELDS
    code = code_of(lambda: parse(ModelInferRequest, message))
    # Texts, names of outputs and answers are checked later.
    assert code in (case.code, "OK")
    # An element by itself takes three steps; most are counted in runs.
    assert message.steps <= STEPS_OF_A_FIELD * MAX_FIELDS + 4 * DEFAULT_MAX_ELEMENTS


def code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ServiceError as error:
        return error.code.name
    return "OK"


def test_what_is_too_large_says_what_is_taken_and_what_to_do() -> None:
    with pytest.raises(ServiceError, match=r"at most 16384 fields .* name fewer inputs, outputs and parameters"):
        parse(ModelInferRequest, b"\x32\x03\x0a\x01y" * 20_000)
    with pytest.raises(ServiceError, match=r"at most 262144 elements \(the server's --max-elements\), got \d+ or"):
        parse(ModelInferRequest, b"\x2a\x84\x80\x40\x2a\x80\x80\x40" + b"\x42\0" * (1 << 19))
    with pytest.raises(ServiceError, match=r"at most 1048576 bytes beside the contents of tensors, got 2097157"):
        parse(ModelInferRequest, b"\x0a\x80\x80\x80\x01" + b"m" * (1 << 21))


def test_as_many_axes_are_counted_as_tensors_may_have() -> None:
    # Written down twice: what holds the contract's figure brings numpy, whose threads the command cannot have.
    assert wire_scan.MAX_RANK == MAX_RANK
