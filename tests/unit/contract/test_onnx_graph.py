"""The lazy graph reader: constants and attributes with the onnx package as oracle, and no step for each number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fitserve_contract import onnx_file, onnx_graph, onnx_tensors, onnx_wire
from fitserve_contract.joinability.proof import RowProof, prove_rows
from fitserve_contract.onnx_graph import MAX_STEPS, read_attribute, read_graph, read_model
from fitserve_contract.onnx_tensors import read_tensor, tensor_name
from fitserve_contract.onnx_wire import Budget, OnnxFileError

TYPES = [
    "float32",
    "float64",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "int64",
    "uint32",
    "uint64",
    "bool",
]
LARGE = 1_000_000
MOST_FIELDS = 2_000


def budget() -> Budget:
    return Budget(MAX_STEPS)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0, 4)])
def test_raw_constants_are_those_that_the_onnx_package_reads(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    message = memoryview(numpy_helper.from_array(array, "w").SerializeToString())
    tensor = read_tensor(message, budget())

    assert (bytes(tensor_name(message, budget())), tensor.dims) == (b"w", shape)
    assert tensor.values is not None
    np.testing.assert_array_equal(tensor.values, array)


@pytest.mark.parametrize(
    ("data_type", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.0]),
        (TensorProto.INT32, [-7, 9]),
        (TensorProto.INT64, [-(2**62), 3]),
        (TensorProto.INT8, [-128, 127]),
        (TensorProto.BOOL, [1, 0]),
    ],
)
def test_typed_constants_are_those_that_the_onnx_package_reads(data_type: int, values: list[float]) -> None:
    message = helper.make_tensor("w", data_type, [2], values)
    found = read_tensor(memoryview(message.SerializeToString()), budget()).values

    assert found is not None
    np.testing.assert_array_equal(found, numpy_helper.to_array(message))


def test_large_and_external_constants_stay_where_they_are() -> None:
    large = read_tensor(memoryview(numpy_helper.from_array(np.zeros(5000)).SerializeToString()), budget())
    elsewhere = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)

    assert (large.dims, large.values) == ((5000,), None)
    assert read_tensor(memoryview(elsewhere.SerializeToString()), budget()).values is None


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.lists(st.floats(width=32, allow_nan=False), max_size=20)
)
def test_attributes_are_those_that_the_onnx_package_reads(integers: list[int], reals: list[float]) -> None:
    for name, values in (("i", integers), ("f", reals)):
        kind = onnx.AttributeProto.INTS if name == "i" else onnx.AttributeProto.FLOATS
        message = helper.make_attribute(name, values, attr_type=kind)
        attribute = read_attribute(memoryview(message.SerializeToString()), budget())

        assert (attribute.integers if name == "i" else attribute.reals) == (values or None)


def test_packed_numbers_are_read_like_unpacked_ones() -> None:
    packed = b"\x0a\x01i" + b"\x42\x03\x01\x02\x03"

    assert read_attribute(memoryview(packed), budget()).integers == [1, 2, 3]


def varint(number: int) -> bytes:
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def with_attribute(content: bytes) -> bytes:
    """A model of one tree ensemble, whose one attribute is `content`."""
    texts = field(1, b"x") + field(2, b"y") + field(4, b"TreeEnsembleRegressor") + field(7, b"ai.onnx.ml")
    declared = helper.make_tensor_value_info("x", 1, ["N", 4]).SerializeToString()
    graph = field(1, texts + field(5, content)) + field(11, declared) + field(12, field(1, b"y"))
    return field(7, graph) + field(8, b"\x10\x14") + field(8, field(1, b"ai.onnx.ml") + b"\x10\x03")


def with_weights(tensor: TensorProto) -> bytes:
    tensor.name = "w"
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", LARGE])],
        [onnx.ValueInfoProto(name="y")],
        [tensor],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())


MODES = field(9, b"BRANCH_LEQ") + field(9, b"LEAF")
LARGE_FILES = {
    "raw weights": lambda: with_weights(numpy_helper.from_array(np.zeros((1, LARGE), np.float32))),
    "typed weights": lambda: with_weights(helper.make_tensor("w", 1, [1, LARGE], np.zeros(LARGE, np.float32))),
    "integers of trees": lambda: with_attribute(field(1, b"nodes_treeids") + b"\x40\x07\x40\x87\x68" * (LARGE // 2)),
    "floats of trees": lambda: with_attribute(field(1, b"nodes_values") + b"\x3d\x00\x00\x80\x3f" * LARGE),
    "modes of trees": lambda: with_attribute(field(1, b"nodes_modes") + MODES * LARGE),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the fields that anybody gets to see."""
    count = [0]
    plain = onnx_wire.fields

    def counting(*arguments: Any, **options: Any) -> Iterator[onnx_wire.Field]:
        for found in plain(*arguments, **options):
            count[0] += 1
            yield found

    monkeypatch.setattr(onnx_graph, "fields", counting)
    monkeypatch.setattr(onnx_tensors, "fields", counting)
    monkeypatch.setattr(onnx_file, "fields", counting)
    return count


@pytest.mark.parametrize("make", LARGE_FILES.values(), ids=LARGE_FILES)
def test_no_step_is_taken_for_each_number(make: object, counted: list[int]) -> None:
    content = make()  # type: ignore[operator]

    assert prove_rows(content) == RowProof("")
    onnx_file.read_facts(content)
    onnx_file.read_facts(content + field(7, field(1, field(4, b"Loop"))))
    assert 0 < counted[0] < MOST_FIELDS


def test_facts_of_many_nodes_take_no_step_for_each(counted: list[int]) -> None:
    node = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu"))
    onnx_file.read_facts(field(7, node * 100_000))

    assert counted[0] < MOST_FIELDS


def test_more_nodes_than_can_be_followed_are_not_proved() -> None:
    node = field(1, field(1, b"x") + field(4, b"Relu"))

    assert "more than 100,000 nodes" in prove_rows(field(7, node * 100_001)).problem


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (field(7, field(5, field(8, b"w")) * 2), "initializer 'w' is given twice"),
        (field(7, field(11, field(1, b"x") + field(2, field(1, b"") * 2))), "the type of 'x' is given twice"),
        (field(7, b"") + field(25, field(1, b"F")) * 2, "function 'F' is given twice"),
    ],
)
def test_what_is_given_twice_is_not_proved(content: bytes, text: str) -> None:
    assert text in prove_rows(content).problem


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), max_size=6), st.integers(0, 1 << 16))
def test_damaged_files_are_refused_or_judged(flips: list[tuple[int, int]], end: int) -> None:
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "b", [], [onnx.ValueInfoProto(name="a")])
    nodes = [
        helper.make_node("Reshape", ["x", "w"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["c"], pads=[0, 1], kernel_shape=[3]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    inputs, outputs = [helper.make_tensor_value_info("x", 1, ["N", "S", 3])], [onnx.ValueInfoProto(name="y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [helper.make_tensor("w", 7, [3], [0, -1, 3])])
    damaged = bytearray(helper.make_model(graph).SerializeToString())
    for place, bit in flips:
        damaged[place % len(damaged)] ^= 1 << bit
    try:
        proof = prove_rows(bytes(damaged[: end % (len(damaged) + 1)]))
    except OnnxFileError:
        return
    assert isinstance(proof, RowProof)


def test_a_graph_is_read_as_protobuf_merges_it() -> None:
    one, other = field(1, field(4, b"Relu")), field(1, field(4, b"Neg"))

    assert [node.operator for node in read_model(field(7, one) + field(7, other)).graph.nodes] == ["Relu", "Neg"]
    assert [node.operator for node in read_graph(memoryview(one + other), budget()).nodes] == ["Relu", "Neg"]


def declared_x() -> bytes:
    return field(11, helper.make_tensor_value_info("x", 1, ["N", 4]).SerializeToString())


HOSTILE = {
    "fields of no meaning": field(7, b"\x10\x00\x18\x00" * LARGE),
    "runs of no meaning": field(7, b"\x10\x00\x10\x00\x18\x00" * LARGE),
    "inputs of a node": field(7, field(1, field(1, b"ab") * LARGE)),
    "attributes of a node": field(7, field(1, field(5, b"") * LARGE)),
    "empty strings": with_attribute(field(1, b"s") + field(9, b"") * (40 * LARGE)),
    "initializers": field(7, b"".join(field(5, field(8, b"%d" % number)) for number in range(LARGE // 4))),
    "inputs of the graph": field(7, field(11, b"") * LARGE),
    "functions": b"".join(field(25, field(1, b"%d" % number)) for number in range(LARGE // 4)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_small_things_without_end_are_paid_from_one_budget(content: bytes) -> None:
    assert "more than 2,000,000 steps" in prove_rows(content).problem


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        (field(1, b"axis") + b"\x18\x01\xa0\x01\x01", "several types"),
        (field(1, b"axis") + b"\x18\x01\x40\x01", "several types"),
        (field(1, b"axis") + field(21, b"along") + b"\x18\x01", "several types"),
        (field(1, b"alpha") + b"\x15\x00\x00\x80\x3f" * 2, "given twice"),
        (field(1, b"\xff"), "no UTF-8"),
        (field(1, b"a" * 5000), "a name has 5,000 bytes"),
    ],
)
def test_what_could_be_read_in_two_ways_is_not_read(attribute: bytes, text: str) -> None:
    assert text in prove_rows(with_attribute(attribute)).problem


def test_the_last_of_a_number_that_is_given_again_holds() -> None:
    message = field(1, b"axis") + b"\x18\x01\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"

    assert read_attribute(memoryview(message), budget()).integer == -1


def test_an_operator_set_of_two_versions_is_not_read() -> None:
    graph = field(7, declared_x())

    assert "at two versions" in prove_rows(graph + field(8, b"\x10\x0b") + field(8, b"\x10\x0d")).problem
