"""Requests and answers by template: what protobuf says of them is the law."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from fitserve_service import codec, codec_oip
from fitserve_service.errors import ServiceError
from fitserve_service.intake import Target
from fitserve_service.requests.message_spans import content_spans, skeleton
from fitserve_service.runs import Completed, Timing
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers import inference, oip
from fitserve_service.signature import Signature, Tensor
from fitserve_service.templates import RequestTemplate, Templates, request_parts

FIXED = tuple(name for name in NUMPY_DTYPES if name != "BYTES")
CONTENTS = (7,)

shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
kinds = st.tuples(st.sampled_from(FIXED), shapes)


def content_of(kind: tuple[str, tuple[int, ...]], fill: int) -> bytes:
    datatype, shape = kind
    size = int(np.prod(shape, dtype=np.int64)) * NUMPY_DTYPES[datatype].itemsize
    most = 2 if datatype == "BOOL" else 251
    return bytes((fill * 31 + index) % most for index in range(size))


def infer_message(
    kinds_of: list[tuple[str, tuple[int, ...]]], fill: int, request_id: str = "", model: str = "m"
) -> bytes:
    request = ModelInferRequest(model_name=model, id=request_id)
    for index, kind in enumerate(kinds_of):
        request.inputs.add(name=f"input-{index}", datatype=kind[0], shape=kind[1])
        request.raw_input_contents.append(content_of(kind, fill + index))
    return request.SerializeToString()


def predict_message(kinds_of: list[tuple[str, tuple[int, ...]]], fill: int) -> bytes:
    request = pb.PredictRequest(outputs=["y"])
    request.model.name = "m"
    for index, kind in enumerate(kinds_of):
        request.inputs.add(
            name=f"input-{index}", datatype=kind[0], shape=kind[1], content=content_of(kind, fill + index)
        )
    return request.SerializeToString()


@dataclass(eq=False)
class Instance:
    """What a template looks at of a loaded version."""

    signature: Signature
    version: int = 1
    model: str = "m"


def served_with(
    kinds_of: list[tuple[str, tuple[int, ...]]], version: int = 1, outputs: Sequence[str] = ("y",)
) -> ServedVersion:
    inputs = tuple(TensorSpec(f"input-{i}", kind[0], kind[1]) for i, kind in enumerate(kinds_of))
    specs = tuple(TensorSpec(name, "FP32", (None,)) for name in outputs)
    return cast(ServedVersion, Instance(Signature(inputs, specs, has_batch_axis=False), version))


def infer_template(message: bytes) -> RequestTemplate | None:
    return oip._infer_template(message)


def learn(templates: Templates, message: bytes) -> None:
    templates.learn(message, ModelInferRequest.FromString(message).raw_input_contents[0])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        found[name].datatype == expected[name].datatype
        and found[name].array.dtype == expected[name].array.dtype
        and found[name].array.shape == expected[name].array.shape
        and found[name].array.tobytes() == expected[name].array.tobytes()
        for name in expected
    )


@given(st.lists(kinds, min_size=1, max_size=3), st.integers(0, 99), st.integers(0, 99), st.text(max_size=20))
def test_infer_requests_are_read_as_protobuf_reads_them(
    kinds_of: list[tuple[str, tuple[int, ...]]], first: int, second: int, request_id: str
) -> None:
    template = infer_template(infer_message(kinds_of, first, request_id))
    assert template is not None
    message = infer_message(kinds_of, second, request_id)
    assert template.fits(message)
    assert template.target == Target("m")
    expected = codec_oip.decode_inputs(ModelInferRequest.FromString(message))
    assert same(template.prepare(message, served_with(kinds_of)).inputs, expected)


@given(st.lists(kinds, min_size=1, max_size=3), st.integers(0, 99), st.integers(0, 99))
def test_predict_requests_are_read_as_protobuf_reads_them(
    kinds_of: list[tuple[str, tuple[int, ...]]], first: int, second: int
) -> None:
    template = inference._predict_template(predict_message(kinds_of, first))
    assert template is not None
    message = predict_message(kinds_of, second)
    assert template.fits(message)
    prepared = template.prepare(message, served_with(kinds_of))
    assert same(prepared.inputs, codec.decode_inputs(pb.PredictRequest.FromString(message).inputs))
    assert prepared.kind.output_names == ("y",)


@given(st.lists(st.binary(min_size=6, max_size=6), min_size=1, max_size=4))
def test_bool_bytes_are_read_as_protobuf_reads_them_alone_and_joined(contents: list[bytes]) -> None:
    kind = ("BOOL", (2, 3))
    first = infer_message([kind], 0)
    template = infer_template(first)
    assert template is not None
    messages = [first.replace(content_of(kind, 0), content) for content in contents]
    expected = [codec_oip.decode_inputs(ModelInferRequest.FromString(message)) for message in messages]
    for message, inputs in zip(messages, expected, strict=True):
        assert same(template.prepare(message, served_with([kind])).inputs, inputs)
        assert set(inputs["input-0"].array.tobytes()) <= {0, 1}
    joined = {"input-0": Tensor("BOOL", np.concatenate([inputs["input-0"].array for inputs in expected]))}
    assert same(template.join(messages), joined)


@given(st.lists(kinds, min_size=1, max_size=2), st.data())
def test_a_byte_changed_outside_the_contents_is_another_request(
    kinds_of: list[tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    message = infer_message(kinds_of, 3)
    template, spans = infer_template(message), content_spans(message, CONTENTS)
    assert template is not None
    assert spans is not None
    place = data.draw(st.integers(0, len(message) - 1))
    changed = bytearray(message)
    changed[place] ^= data.draw(st.integers(1, 255))
    is_content = any(start <= place < end for start, end in spans)
    assert template.fits(bytes(changed)) is is_content


@given(st.binary(max_size=80))
def test_what_is_found_in_any_bytes_is_what_protobuf_finds(message: bytes) -> None:
    try:
        expected = list(ModelInferRequest.FromString(message).raw_input_contents)
    except Exception:
        return
    spans = content_spans(message, CONTENTS)
    if spans is not None:
        assert [message[start:end] for start, end in spans] == expected


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_a_skeleton_and_its_spans_are_the_message(message: bytes, places: list[int]) -> None:
    cuts = sorted(min(place, len(message)) for place in places)
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    pieces = skeleton(message, spans, has_empty=True)
    contents = [message[start:end] for start, end in spans] + [b""]
    assert b"".join(piece + content for (_, piece), content in zip(pieces, contents, strict=True)) == message


@given(kinds, st.lists(st.integers(0, 99), min_size=2, max_size=5), st.text(max_size=10))
def test_answers_are_written_as_protobuf_writes_them(
    kind: tuple[str, tuple[int, ...]], fills: list[int], request_id: str
) -> None:
    message = infer_message([kind], 0, request_id)
    template, served = infer_template(message), served_with([kind])
    assert template is not None
    for fill in fills:
        array = np.frombuffer(content_of(kind, fill), NUMPY_DTYPES[kind[0]]).reshape(kind[1])
        completed = Completed(
            {"y": Tensor(kind[0], array), "z": Tensor("FP32", np.ones(fill % 2 + 1, "f4"))}, Timing(0, 0)
        )
        found = ModelInferResponse.FromString(template.encode(served, completed))
        pieces = codec_oip.encode_response(served, request_id, completed)
        assert found == ModelInferResponse.FromString(b"".join(pieces))


@pytest.mark.parametrize("shape", [(1, 100_000), (300, 400)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_large_answers_are_written_likewise(shape: tuple[int, int], is_transposed: bool) -> None:
    kind = ("FP32", (2,))
    template, served = infer_template(infer_message([kind], 0)), served_with([kind])
    assert template is not None
    for fill in range(3):
        array = np.arange(fill, fill + shape[0] * shape[1], dtype=np.float32).reshape(shape)
        completed = Completed({"y": Tensor("FP32", array.T if is_transposed else array)}, Timing(0, 0))
        assert template.encode(served, completed) == oip._encode("", served, completed)


def test_an_answer_names_the_version_that_gave_it() -> None:
    kind = ("FP32", (2,))
    template = infer_template(infer_message([kind], 0))
    assert template is not None
    completed = Completed({"y": Tensor("FP32", np.zeros(2, "f4"))}, Timing(0, 0))
    versions = [
        ModelInferResponse.FromString(template.encode(served_with([kind], version), completed)).model_version
        for version in (1, 1, 2, 1)
    ]
    assert versions == ["1", "1", "2", "1"]


def answer_of(template: RequestTemplate, served: ServedVersion, names: Sequence[str], dtype: str) -> None:
    """Answers twice, so that the second answer is written by what is known, and checks both against protobuf's."""
    for fill in range(2):
        array = np.full(2, fill).astype(dtype)
        tensors = {name: Tensor("FP32" if dtype == "f4" else "INT64", array) for name in names}
        completed = Completed(tensors, Timing(0, 0))
        assert template.encode(served, completed) == oip._encode("", served, completed)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_two_instances_of_one_name_and_number_answer_each_for_itself(turns: list[int]) -> None:
    kind = ("FP32", (2,))
    template = infer_template(infer_message([kind], 0))
    assert template is not None
    forms = [(("y", "z"), "f4"), (("z", "y"), "f4"), (("y", "z"), "i8"), (("other",), "f4"), (("y",), "f4"), ((), "f4")]
    instances = [served_with([kind], outputs=names) for names, _ in forms]
    for turn in turns:
        names, dtype = forms[turn]
        prepared = template.prepare(infer_message([kind], turn), instances[turn])
        assert prepared.kind.output_names == names
        answer_of(template, instances[turn], names, dtype)
        assert template.kind_of(instances[turn]) in (None, prepared.kind)


def test_instances_that_share_a_signature_share_no_answer() -> None:
    kind = ("FP32", (2,))
    template, served = infer_template(infer_message([kind], 0)), served_with([kind])
    assert template is not None
    answer_of(template, served, ("y",), "f4")
    template.prepare(infer_message([kind], 0), served)
    assert template.kind_of(served) is not None
    other = cast(ServedVersion, Instance(served.signature, served.version))
    completed = {"renamed": Tensor("FP32", np.zeros(2, "f4"))}
    assert template.encode_all(other, completed, 1) is None
    assert template.kind_of(other) is None
    answer_of(template, other, ("renamed",), "f4")
    answer_of(template, served, ("y",), "f4")


def test_what_requests_have_in_common_is_read_anew_where_the_signature_is_another() -> None:
    kind = ("FP32", (1, 2))
    template, served = infer_template(infer_message([kind], 0)), served_with([kind])
    assert template is not None
    served.signature = replace(served.signature, has_batch_axis=True)
    assert template.prepare(infer_message([kind], 0), served).kind.key is not None
    answer_of(template, served, ("y",), "f4")
    assert template.kind_of(served) is not None
    served.signature = replace(served.signature, has_batch_axis=False)
    assert template.kind_of(served) is None
    assert template.prepare(infer_message([kind], 0), served).kind.key is None


def test_a_template_keeps_no_instance_and_forgets_what_it_knew_of_it() -> None:
    kind = ("FP32", (2,))
    template = infer_template(infer_message([kind], 0))
    assert template is not None
    gc.disable()
    try:
        for _ in range(3):
            served = served_with([kind])
            template.prepare(infer_message([kind], 0), served)
            answer_of(template, served, ("y",), "f4")
            reference = weakref.ref(served)
            del served
            assert reference() is None
            assert len(template._by_served) == 0
    finally:
        gc.enable()


def test_a_version_that_was_loaded_often_is_answered_by_template_all_the_same() -> None:
    kind = ("FP32", (2,))
    template = infer_template(infer_message([kind], 0))
    assert template is not None
    for _ in range(20):
        served = served_with([kind])
        template.prepare(infer_message([kind], 0), served)
        answer_of(template, served, ("y",), "f4")
        assert template.kind_of(served) is not None


def test_a_request_that_does_not_fit_the_version_is_refused_each_time() -> None:
    message = infer_message([("FP32", (2,))], 0)
    template = infer_template(message)
    assert template is not None
    for _ in range(2):
        with pytest.raises(ServiceError, match="input-0"):
            template.prepare(message, served_with([("FP32", (3,))]))
    assert template.prepare(message, served_with([("FP32", (2,))])).kind.example_count == 1
    with pytest.raises(ServiceError, match="input-0"):
        template.prepare(message, served_with([("INT32", (2,))]))


def with_parameter() -> ModelInferRequest:
    request = ModelInferRequest.FromString(infer_message([("FP32", (2,))], 0))
    request.parameters["timeout"].int64_param = 5
    return request


def with_text() -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\x01\x00\x00\x00a")
    return request


def with_typed_contents() -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    return request


def without_elements() -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[0, 3])
    request.raw_input_contents.append(b"")
    return request


def with_a_long_name() -> ModelInferRequest:
    request = ModelInferRequest.FromString(infer_message([("FP32", (2,))], 0))
    request.inputs[0].name = "x" * 5000
    return request


@pytest.mark.parametrize(
    "make",
    [with_parameter, with_text, with_typed_contents, without_elements, with_a_long_name],
    ids=lambda m: m.__name__,
)
def test_requests_whose_meaning_is_not_in_their_form_have_no_template(make: Any) -> None:
    assert infer_template(make().SerializeToString()) is None


def test_contents_that_come_twice_have_no_template() -> None:
    # protobuf keeps the last: the first would be taken for the tensor's.
    request = pb.PredictRequest()
    request.inputs.add(name="x", datatype="FP32", shape=[1], content=b"\0\0\0\0")
    twice = request.SerializeToString() + pb.PredictRequest(inputs=[{}]).SerializeToString()
    parsed = pb.PredictRequest.FromString(twice)
    assert request_parts(twice, (2, 4), {"x": codec.decode_tensor("x", parsed.inputs[0])}) is not None
    tensor = request.inputs[0].SerializeToString()
    doubled = b"\x12" + bytes([2 * len(tensor)]) + tensor + tensor
    assert request_parts(doubled, (2, 4), {"x": codec.decode_tensor("x", parsed.inputs[0])}) is None


@pytest.mark.parametrize("message", [b"\x3b\x3c", b"\x3a\x05abc", b"\x3a", b"\x80" * 11, b"\x00\x01", b"\x39\x01"])
def test_no_message_has_no_spans(message: bytes) -> None:
    assert content_spans(message, CONTENTS) is None


def test_a_kind_of_request_is_known_from_its_third_coming() -> None:
    templates = Templates(infer_template)
    messages = [infer_message([("FP32", (2,))], fill) for fill in range(3)]
    for message in messages[:2]:
        assert templates.find(message) is None
        learn(templates, message)
    assert templates.find(messages[2]) is not None
    assert templates.find(messages[2][:-1]) is None


def test_a_thousand_kinds_take_bounded_room_and_ids_that_change_none() -> None:
    templates = Templates(infer_template)
    for number in range(2000):
        message = infer_message([("FP32", (number % 700 + 1,))], 0)
        learn(templates, message)
        learn(templates, message)
    assert len(templates._by_length) == 256
    read: list[bytes] = []
    templates = Templates(lambda message: read.append(message))  # type: ignore[func-returns-value]
    for number in range(3000):
        learn(templates, infer_message([("FP32", (2,))], 0, f"{number:08}"))
    assert read == []
    assert len(templates._seen) <= 1024


def test_kinds_of_one_length_stand_beside_each_other() -> None:
    templates = Templates(infer_template)
    messages = [infer_message([("FP32", (2,))], 0, model=f"model{letter}") for letter in "abcdef"]
    for message in messages:
        learn(templates, message)
        learn(templates, message)
    targets = [found.target.model if (found := templates.find(message)) else None for message in messages]
    assert targets == [None, None, "modelc", "modeld", "modele", "modelf"]
