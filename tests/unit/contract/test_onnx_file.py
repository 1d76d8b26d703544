"""Facts of ONNX files, with the `onnx` package as oracle, and hostile bytes."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from fitserve_contract.onnx_file import OnnxFacts, OnnxFileError, read_facts


def external_tensor(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=builders.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_external_everywhere() -> bytes:
    """External tensors wherever a tensor may stand: graph, attribute, subgraph, sparse, function and its default."""
    graph_tensor = external_tensor("a", "graph.bin")
    constant = helper.make_node("Constant", [], ["c"], value=external_tensor("b", "attribute.bin"))
    several = helper.make_node("Several", [], ["l"], domain="own")
    several.attribute.append(
        helper.make_attribute("tensors", [external_tensor("l", "list.bin")], attr_type=onnx.AttributeProto.TENSORS)
    )
    branch = helper.make_graph([], "branch", [], [builders.value("d", (1,))], [external_tensor("d", "branch.bin")])
    condition = helper.make_node("If", ["x"], ["i"], then_branch=branch, else_branch=branch)
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(external_tensor("e", "values.bin"))
    sparse.indices.CopyFrom(external_tensor("f", "indices.bin"))
    graph = helper.make_graph(
        [constant, several, condition], "g", [builders.value("x")], [builders.value("c")], [graph_tensor]
    )
    graph.sparse_initializer.append(sparse)
    inner = helper.make_node("Constant", [], ["h"], value=external_tensor("g", "function.bin"))
    function = helper.make_function("own", "F", [], ["h"], [inner], [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("t", external_tensor("t", "default.bin")))
    model = helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def oracle(content: bytes) -> OnnxFacts:
    """The same facts by the onnx package, for models whose external data lies in initializers."""
    model = onnx.load_from_string(content)
    facts = OnnxFacts(model.ir_version, {entry.domain: entry.version for entry in model.opset_import})
    facts.input_shapes = {entry.name: _shape(entry.type) for entry in model.graph.input}
    facts.output_shapes = {entry.name: _shape(entry.type) for entry in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    facts.external_files = {ExternalDataInfo(tensor).location for tensor in tensors}
    return facts


def _shape(kind: onnx.TypeProto) -> tuple[int | str | None, ...] | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        (dim.dim_value if dim.dim_value >= 0 else None) if dim.HasField("dim_value") else dim.dim_param or None
        for dim in kind.tensor_type.shape.dim
    )


MODELS = {
    "identity": builders.identity(),
    "scalar": builders.identity(shape=()),
    "open rank": builders.identity(shape=None),
    "unnamed axis": builders.identity(shape=(None, -1, 0, "S")),
    "two in, two out": builders.two_in_two_out(),
    "default": builders.default_input(),
    "optional": builders.optional_tensor(),
    "maps": builders.zipmap_like(),
    "sequence": builders.sequence_input(),
    "external": builders.external("d/w.bin"),
    "gather": builders.gather(),
}


@pytest.mark.parametrize("content", MODELS.values(), ids=MODELS)
def test_facts_are_those_that_the_onnx_package_reads(content: bytes) -> None:
    assert read_facts(content) == oracle(content)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"]))),
        max_size=5,
    ),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_shape_and_name(shape: list[int | str | None], name: str) -> None:
    info = builders.value(name, shape)
    content = builders.model([], [info], [info])

    assert read_facts(content) == oracle(content)


def test_external_files_are_found_wherever_a_tensor_may_stand() -> None:
    names = {"graph", "attribute", "list", "branch", "values", "indices", "function", "default"}

    assert read_facts(with_external_everywhere()).external_files == {f"{name}.bin" for name in names}


def test_a_graph_in_two_parts_is_read_whole_as_protobuf_merges_it() -> None:
    content = builders.external("one.bin") + builders.external("two.bin")

    assert read_facts(content).external_files == {"one.bin", "two.bin"}


def test_weights_are_skipped_not_read() -> None:
    weights = np.zeros(1 << 20, np.float32)
    content = builders.model([], [builders.value("x")], [builders.value("x")], {"w": weights})

    assert read_facts(content).external_files == set()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "expected an ONNX model, found no graph in it"),
        (b"\x08\x07", "expected an ONNX model, found no graph in it"),
        (b"not an onnx file at all", "expected .*, found"),
        (b"\x3a\x05ab", "expected 5 bytes in a field, found 2: cut off?"),
        (b"\x3a", "expected a number, found the end: cut off?"),
        (b"\x3b\x00", "expected a protobuf field, found wire type 3"),
        (b"\xff" * 12, "expected a number of at most 10 bytes"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "expected 18446744073709551615 bytes in a field, found 0"),
    ],
)
def test_what_is_no_model_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(OnnxFileError, match=f"file 'model.onnx': {text}"):
        read_facts(content)


def test_nesting_has_a_bound() -> None:
    graph = helper.make_graph([], "leaf", [], []).SerializeToString()
    for _ in range(70):
        node = onnx.NodeProto(op_type="Loop")
        node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
        wrapped = node.attribute[0].SerializeToString() + b"\x32" + _length(len(graph)) + graph
        node_bytes = b"\x22\x04Loop\x2a" + _length(len(wrapped)) + wrapped
        graph = b"\x0a" + _length(len(node_bytes)) + node_bytes
    with pytest.raises(OnnxFileError, match="expected at most 64 nested graphs, found more"):
        read_facts(b"\x3a" + _length(len(graph)) + graph)


def _length(size: int) -> bytes:
    parts = []
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*parts, size])


HOSTILE = [with_external_everywhere(), *MODELS.values()]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(HOSTILE), st.integers(0, 1 << 16))
def test_a_file_cut_off_anywhere_is_refused_or_read(content: bytes, end: int) -> None:
    _read_or_refuse(content[: end % (len(content) + 1)])


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(HOSTILE), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), min_size=1, max_size=8)
)
def test_flipped_bits_are_refused_or_read(content: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(content)
    for place, bit in flips:
        damaged[place % len(damaged)] ^= 1 << bit
    _read_or_refuse(bytes(damaged))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
@example(b"\x3a\x00")
def test_any_bytes_are_refused_or_read(content: bytes) -> None:
    _read_or_refuse(content)


def _read_or_refuse(content: bytes) -> None:
    try:
        facts = read_facts(content)
    except OnnxFileError:
        return
    assert isinstance(facts, OnnxFacts)
