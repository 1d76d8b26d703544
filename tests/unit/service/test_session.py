"""Sessions: every datatype through the runtime unchanged, and errors that tell nothing of this machine."""

from __future__ import annotations

import re

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_file import read_facts
from fitserve_contract.tensor_bytes import Array, decode
from fitserve_service.session import (
    CPU_PROVIDER,
    LOWEST_VERSION,
    OperatorError,
    Session,
    SessionError,
    SessionOptions,
    check_runtime,
    cuda_problem,
    runtime_version,
)
from fitserve_service.signature import Tensor

NUMBERS = [datatype for datatype in NUMPY_DTYPES if datatype != BYTES]


def opened(model: bytes, device: str = "cpu", external: dict[str, bytes] | None = None) -> Session:
    return Session(model, read_facts(model), SessionOptions(device), external)


def echoed(datatype: str, array: Array) -> Array:
    session = opened(builders.identity(datatype, array.shape))
    result = session.run({"x": Tensor(datatype, array)}, ["y"])["y"]
    assert result.datatype == datatype
    return result.array


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_numbers_come_back_bit_for_bit(datatype: str, shape: tuple[int, ...]) -> None:
    dtype = NUMPY_DTYPES[datatype]
    random = np.random.default_rng(7)
    high = 2 if datatype == "BOOL" else 256
    content = random.integers(0, high, int(np.prod(shape)) * dtype.itemsize, np.uint8).tobytes()
    array = decode("x", datatype, shape, content)

    back = echoed(datatype, array)
    assert (back.shape, back.dtype) == (shape, dtype)
    assert back.tobytes() == content


@pytest.mark.parametrize(
    ("datatype", "bits"),
    [
        ("FP16", [0x8000, 0x7C00, 0xFC00, 0x7E01, 0xFE55, 0x0001]),
        ("BF16", [0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFD5, 0x0001]),
        ("FP32", [0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFD55555, 0x00000001]),
        ("FP64", [1 << 63, 0x7FF << 52, 0xFFF << 52, (0x7FF8 << 48) + 1, (0xFFFD << 48) + 5, 1]),
    ],
)
def test_minus_zero_infinities_and_nan_payloads_survive(datatype: str, bits: list[int]) -> None:
    dtype = NUMPY_DTYPES[datatype]
    array = np.array(bits, f"<u{dtype.itemsize}").view(dtype)

    assert echoed(datatype, array).tobytes() == array.tobytes()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).map(str.encode), max_size=5))
def test_words_come_back(words: list[bytes]) -> None:
    array = np.empty(len(words), object)
    array[:] = words

    assert echoed("BYTES", array).tolist() == words


def test_words_that_are_not_text_are_refused_by_element() -> None:
    session = opened(builders.identity("BYTES", ("B",)))

    with pytest.raises(OperatorError, match=r"^input 'x': expected UTF-8 text, got other bytes in element 1$"):
        session.run({"x": Tensor("BYTES", np.array([b"a", b"\xff"], object))}, ["y"])


def test_a_strided_view_is_taken_as_it_looks() -> None:
    wide = np.arange(12, dtype=np.uint16).reshape(3, 4)

    assert echoed(BF16, wide[:, ::2]).tolist() == wide[:, ::2].tolist()
    assert echoed("UINT16", wide[:, ::2]).tolist() == wide[:, ::2].tolist()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(None, None), ((), ()), ((-1, 2), (None, 2)), ((None, 2), (None, 2)), (("B", "S"), ("B", "S")), ((0, 2), (0, 2))],
)
def test_an_open_rank_is_told_from_a_scalar(
    shape: builders.Shape, expected: tuple[int | str | None, ...] | None
) -> None:
    session = opened(builders.identity(shape=shape))

    assert session.inputs == (TensorSpec("x", "FP32", expected),)
    assert session.outputs == (TensorSpec("y", "FP32", expected),)


def test_an_input_with_a_default_is_optional() -> None:
    session = opened(builders.default_input())
    x = Tensor("FP32", np.zeros((1, 2), np.float32))

    assert session.inputs == (TensorSpec("x", "FP32", ("B", 2)), TensorSpec("offset", "FP32", (1,), is_optional=True))
    assert session.run({"x": x}, ["y"])["y"].array.tolist() == [[10, 10]]
    offset = Tensor("FP32", np.array([3], np.float32))
    assert session.run({"x": x, "offset": offset}, ["y"])["y"].array.tolist() == [[3, 3]]


def test_an_optional_tensor_may_be_there_or_not() -> None:
    session = opened(builders.optional_tensor())
    x = Tensor("FP32", np.zeros((1, 2), np.float32))

    assert session.inputs[1] == TensorSpec("extra", "FP32", None, is_optional=True)
    assert not session.run({"x": x}, ["is_there"])["is_there"].array
    assert session.run({"x": x, "extra": x}, ["is_there"])["is_there"].array


def test_an_optional_output_that_is_not_there_is_the_callers_error() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(builders.FLOAT, None))
    model = builders.model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_value_info("x", kind)],
        [helper.make_value_info("y", kind)],
    )

    with pytest.raises(OperatorError, match="output 'y': expected a tensor, got none"):
        opened(model).run({}, ["y"])


def test_outputs_that_are_no_tensors_are_left_out_and_the_rest_is_served() -> None:
    session = opened(builders.zipmap_like())

    assert [spec.name for spec in session.outputs] == ["label"]
    x = Tensor("FP32", np.array([[1, 5, 2]], np.float32))
    assert session.run({"x": x}, ["label"])["label"].array.tolist() == [1]


def typed(input_type: onnx.TypeProto, output_type: onnx.TypeProto, node: onnx.NodeProto) -> bytes:
    """x -> y by one node, and r = relu(f) beside them: f FP32 (B)."""
    return builders.model(
        [node, helper.make_node("Relu", ["f"], ["r"])],
        [helper.make_value_info("x", input_type), builders.value("f", ("B",))],
        [helper.make_value_info("y", output_type), builders.value("r", ("B",))],
    )


FLOATS = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["B"])
FP8 = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT8E4M3FN, ["B"])
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
TO_FP8 = helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT8E4M3FN)
TO_FLOAT = helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        (builders.scaled(), []),
        (builders.optional_tensor(), []),
        (builders.zipmap_like(), ["output 'probabilities' is not served: .* a sequence of maps .*'zipmap': False"]),
        (typed(FLOATS, FP8, TO_FP8), ["output 'y' is not served: .* a tensor of float8e4m3fn .*Cast node to FP32"]),
        (
            typed(FLOATS, SEQUENCE, helper.make_node("SequenceConstruct", ["x", "x"], ["y"])),
            ["output 'y' is not served: .* a sequence .*ConcatFromSequence"],
        ),
        (
            typed(
                helper.make_optional_type_proto(SEQUENCE),
                helper.make_tensor_type_proto(onnx.TensorProto.BOOL, []),
                helper.make_node("OptionalHasElement", ["x"], ["y"]),
            ),
            ["input 'x' keeps its default: .* an optional value: a sequence"],
        ),
    ],
)
def test_what_is_left_out_is_named_with_the_way_to_get_a_tensor(model: bytes, lines: list[str]) -> None:
    found = opened(model).unserved

    assert len(found) == len(lines)
    assert all(re.search(line, text) for line, text in zip(lines, found, strict=True)), found


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (typed(FP8, FLOATS, TO_FLOAT), "input 'x': .* a tensor of float8e4m3fn .*add a Cast node from FP32"),
        (
            builders.model(
                [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
                [builders.value("x")],
                [helper.make_value_info("y", SEQUENCE)],
            ),
            r"output 'y': .* a sequence \(seq\(tensor\(float\)\)\); .*ConcatFromSequence",
        ),
    ],
)
def test_types_that_cannot_be_left_out_are_refused_by_name(model: bytes, text: str) -> None:
    with pytest.raises(SessionError, match=text):
        opened(model)


def test_a_failed_run_names_the_axes_of_one_name_that_differ() -> None:
    session = opened(builders.two_in_two_out())
    two, three = (Tensor("FP32", np.ones((rows, 2), np.float32)) for rows in (2, 3))

    expected = r"^input 'b': expected 2 for axis B, as in input 'a', got shape \(3, 2\): operator \w+ "
    with pytest.raises(OperatorError, match=expected):
        session.run({"a": two, "b": three}, ["total"])


def test_axes_of_one_name_may_differ_where_the_runtime_takes_them() -> None:
    session = opened(builders.two_in_two_out())
    one, two = (Tensor("FP32", np.ones((rows, 2), np.float32)) for rows in (1, 2))

    assert session.run({"a": one, "b": two}, ["total"])["total"].array.tolist() == [[2, 2], [2, 2]]


def test_outputs_come_in_the_order_asked_for() -> None:
    one = Tensor("FP32", np.ones((1, 2), np.float32))
    outputs = opened(builders.two_in_two_out()).run({"a": one, "b": one}, ["difference", "total"])

    assert list(outputs) == ["difference", "total"]
    assert outputs["total"].array.tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (builders.sequence_input(), r"input 's': expected a tensor of .*, got a sequence \(seq\(tensor\(float\)\)\)"),
        (
            builders.model(
                [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["v"])],
                [builders.value("x", ("B",), onnx.TensorProto.BFLOAT16), builders.value("w", ("B",), 8)],
                [builders.value("y", ("B",), onnx.TensorProto.BFLOAT16), builders.value("v", ("B",), 8)],
            ),
            "expected no BYTES beside BF16",
        ),
        (
            builders.model(
                [helper.make_node("NoSuchOperator", ["x"], ["y"])], [builders.value("x")], [builders.value("y")]
            ),
            "onnxruntime refused the model: .*NoSuchOperator",
        ),
        (builders.external("w.bin"), "external data: expected file 'w.bin', found none"),
    ],
)
def test_what_cannot_be_served_is_refused_at_load(model: bytes, text: str) -> None:
    with pytest.raises(SessionError, match=text):
        opened(model)


def test_external_data_comes_as_bytes() -> None:
    session = opened(builders.external("weights/w.bin"), external={"weights/w.bin": builders.external_content()})

    outputs = session.run({"x": Tensor("FP32", np.zeros((1, 2), np.float32))}, ["y"])
    assert outputs["y"].array.tolist() == [[1, 2]]


def test_external_data_that_is_too_short_is_refused() -> None:
    with pytest.raises(SessionError, match="onnxruntime refused the model"):
        opened(builders.external("w.bin", rows=1000), external={"w.bin": b"1234"})


def test_an_operators_refusal_names_the_operator_and_the_value() -> None:
    index = Tensor("INT64", np.array([9], np.int64))

    with pytest.raises(OperatorError, match=r"^operator Gather \(node ''\) refused the values: .*idx=9") as caught:
        opened(builders.gather()).run({"index": index}, ["y"])
    assert not re.search(r"\S/\S|\.cc", str(caught.value))


def test_memory_that_is_not_there_is_an_operators_refusal_without_a_place_in_it() -> None:
    model = builders.model(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        [builders.value("x", (1,)), builders.value("shape", (1,), onnx.TensorProto.INT64)],
        [builders.value("y", ("N",))],
    )
    inputs = {"x": Tensor("FP32", np.zeros(1, np.float32)), "shape": Tensor("INT64", np.array([1 << 45]))}

    with pytest.raises(OperatorError, match="operator Expand") as caught:
        opened(model).run(inputs, ["y"])
    assert not re.search(r"\S/\S|\.cc", str(caught.value))


def test_a_fault_of_ours_is_not_blamed_on_the_values() -> None:
    session = opened(builders.identity())

    with pytest.raises(Exception, match=r"(?i)complex|numpy") as caught:
        session.run({"x": Tensor("FP32", np.zeros((1, 2), complex))}, ["y"])
    assert not isinstance(caught.value, OperatorError)


@pytest.mark.parametrize("content", [b"", b"garbage", builders.identity()[:-1]])
def test_a_refused_model_is_told_without_a_place(content: bytes) -> None:
    facts = read_facts(builders.identity())

    with pytest.raises(SessionError, match="onnxruntime refused the model") as caught:
        Session(content, facts, SessionOptions("cpu"))
    assert not re.search(r"\S/\S|\.cc", str(caught.value))


def test_cuda_that_is_not_there_is_an_error_that_names_the_library() -> None:
    problem = cuda_problem()
    if problem is None:
        assert opened(builders.identity(), "cuda").provider == "CUDAExecutionProvider"
        return
    assert re.search(r"\.so|onnxruntime", problem)
    with pytest.raises(SessionError) as caught:
        opened(builders.identity(), "cuda")
    assert str(caught.value) == f"device 'cuda': {problem}"
    assert opened(builders.identity(), "auto").provider == CPU_PROVIDER


def test_looking_for_cuda_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    cuda_problem.cache_clear()
    cuda_problem()
    opened(builders.identity(), "auto")

    assert capfd.readouterr() == ("", "")


def test_the_runtime_is_new_enough_and_an_older_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_runtime()
    assert tuple(map(int, runtime_version().split(".")[:3])) >= LOWEST_VERSION
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.0")
    with pytest.raises(SessionError, match=r"^onnxruntime: expected at least 1\.30\.1, got 1\.30\.0$"):
        check_runtime()


def test_a_protobuf_that_is_not_upb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("google.protobuf.internal.api_implementation.Type", lambda: "python")
    with pytest.raises(SessionError, match=r"^protobuf: expected its implementation upb, got python; unset PROTOCOL_"):
        check_runtime()
