"""Facts of an ONNX file that ONNX Runtime does not tell, read from the protobuf wire format itself.

The service does without the `onnx` package; what it needs are a few fields: whether an input leaves its rank open
(the runtime says `[]` for that and for a scalar alike), and which external files the tensors lie in. Everything here is
untrusted: a length that passes its buffer, a field of the wrong wire type or a nesting that does not end is an error.

Source: onnx/onnx.proto (field numbers), protobuf encoding guide (wire types).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from fitserve_contract.onnx_wire import OnnxFileError as OnnxFileError
from fitserve_contract.onnx_wire import fields, short_fields, text

_MAX_DEPTH = 64
_MAX_AXES = 1 << 12

# Field numbers of the messages read.
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET_IMPORT, _MODEL_FUNCTIONS = 1, 7, 8, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE_INITIALIZER = 1, 5, 11, 12, 15
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 7, 11
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = (
    5,
    6,
    10,
    11,
    22,
    23,
)
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_EXTERNAL_DATA = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE, _DIM_PARAM = 1, 2, 1, 1, 2


_LOOPS = (b"Loop", b"Scan")
_LOCATION = b"location"
_NODES = short_fields(_GRAPH_NODE)
_STRINGS = short_fields(9)
"""Of an attribute."""
_STRING_DATA = short_fields(6)
"""Of a tensor."""


@dataclass(slots=True)
class OnnxFacts:
    """What the file says.

    Args:
        ir_version: IR version.
        opset_imports: Operator set domain ("" is ai.onnx) to version.
        input_shapes: Input name to shape: int, name or None for each axis; None where the rank is open.
        output_shapes: The same for outputs.
        external_files: Relative paths of the files that hold tensors, as the model writes them.
        has_loops: It has an operator that runs as often as its values say.
    """

    ir_version: int = 0
    opset_imports: dict[str, int] = field(default_factory=dict)
    input_shapes: dict[str, tuple[int | str | None, ...] | None] = field(default_factory=dict)
    output_shapes: dict[str, tuple[int | str | None, ...] | None] = field(default_factory=dict)
    external_files: set[str] = field(default_factory=set)
    has_loops: bool = False


def read_facts(content: bytes) -> OnnxFacts:
    """Reads the facts of a serialized ModelProto.

    Raises:
        OnnxFileError: the bytes are no ModelProto, or hold no graph.
    """
    # Where neither word stands anywhere, no node says anything that is asked for: a search at the speed of memory.
    has_nodes_to_read = any(word in content for word in (*_LOOPS, _LOCATION))
    facts = OnnxFacts()
    has_graph = False
    for number, value in fields(memoryview(content)):
        if number == _MODEL_IR_VERSION and isinstance(value, int):
            facts.ir_version = value
        elif number == _MODEL_OPSET_IMPORT and isinstance(value, memoryview):
            _read_opset(value, facts)
        elif number == _MODEL_GRAPH and isinstance(value, memoryview):
            has_graph = True
            _read_graph(value, facts, 0, has_nodes_to_read)
        elif number == _MODEL_FUNCTIONS and isinstance(value, memoryview) and has_nodes_to_read:
            _read_function(value, facts)
    if not has_graph:
        raise OnnxFileError("file 'model.onnx': expected an ONNX model, found no graph in it")
    return facts


def _read_opset(message: memoryview, facts: OnnxFacts) -> None:
    domain, version = "", 0
    for number, value in fields(message):
        if number == _OPSET_DOMAIN and isinstance(value, memoryview):
            domain = text(value)
        elif number == _OPSET_VERSION and isinstance(value, int):
            version = value
    facts.opset_imports[domain] = version


def _read_graph(message: memoryview, facts: OnnxFacts, depth: int, has_nodes_to_read: bool = True) -> None:
    for number, value in fields(message, None if has_nodes_to_read else _NODES):
        if not isinstance(value, memoryview):
            continue
        if number == _GRAPH_INITIALIZER and has_nodes_to_read:
            _read_tensor(value, facts)
        elif number == _GRAPH_SPARSE_INITIALIZER and has_nodes_to_read:
            _read_sparse(value, facts)
        elif number == _GRAPH_NODE and has_nodes_to_read:
            _read_node(value, facts, depth)
        elif number == _GRAPH_INPUT and depth == 0:
            name, shape = _read_value_info(value)
            facts.input_shapes[name] = shape
        elif number == _GRAPH_OUTPUT and depth == 0:
            name, shape = _read_value_info(value)
            facts.output_shapes[name] = shape


def _read_function(message: memoryview, facts: OnnxFacts) -> None:
    for number, value in fields(message):
        if number == _FUNCTION_NODE and isinstance(value, memoryview):
            _read_node(value, facts, depth=0)
        elif number == _FUNCTION_ATTRIBUTE and isinstance(value, memoryview):
            _read_attribute(value, facts, depth=0)


def _read_node(message: memoryview, facts: OnnxFacts, depth: int) -> None:
    for number, value in fields(message):
        if number == _NODE_ATTRIBUTE and isinstance(value, memoryview):
            _read_attribute(value, facts, depth)
        elif number == _NODE_OPERATOR and isinstance(value, memoryview):
            facts.has_loops = facts.has_loops or bytes(value) in _LOOPS


def _read_attribute(message: memoryview, facts: OnnxFacts, depth: int) -> None:
    for part, value in fields(message, _STRINGS):
        if not isinstance(value, memoryview):
            continue
        if part in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _read_tensor(value, facts)
        elif part in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
            _read_sparse(value, facts)
        elif part in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            if depth >= _MAX_DEPTH:
                raise OnnxFileError(f"file 'model.onnx': expected at most {_MAX_DEPTH} nested graphs, found more")
            _read_graph(value, facts, depth + 1)


def _read_sparse(message: memoryview, facts: OnnxFacts) -> None:
    for number, value in fields(message):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES) and isinstance(value, memoryview):
            _read_tensor(value, facts)


def _read_tensor(message: memoryview, facts: OnnxFacts) -> None:
    for number, value in fields(message, _STRING_DATA):
        if number != _TENSOR_EXTERNAL_DATA or not isinstance(value, memoryview):
            continue
        entry = {part: bytes(item) for part, item in fields(value) if isinstance(item, memoryview)}
        if entry.get(_ENTRY_KEY) == b"location":
            facts.external_files.add(_location(entry.get(_ENTRY_VALUE, b"")))


def _location(name: bytes) -> str:
    """A path that is no UTF-8 would be another path for the runtime than the one that was checked."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise OnnxFileError("external data: expected a location in UTF-8, got other bytes") from None


def _read_value_info(message: memoryview) -> tuple[str, tuple[int | str | None, ...] | None]:
    name, shape = "", None
    for number, value in fields(message):
        if number == _VALUE_NAME and isinstance(value, memoryview):
            name = text(value)
        elif number == _VALUE_TYPE and isinstance(value, memoryview):
            shape = _read_type(value)
    return name, shape


def _read_type(message: memoryview) -> tuple[int | str | None, ...] | None:
    for number, tensor in fields(message):
        if number != _TYPE_TENSOR or not isinstance(tensor, memoryview):
            continue
        for part, shape in fields(tensor):
            if part == _TENSOR_SHAPE and isinstance(shape, memoryview):
                axes = (dim for tag, dim in fields(shape) if tag == _SHAPE_DIM and isinstance(dim, memoryview))
                dims = tuple(map(_read_dim, islice(axes, _MAX_AXES + 1)))
                if len(dims) > _MAX_AXES:
                    raise OnnxFileError(f"file 'model.onnx': expected at most {_MAX_AXES} axes of a tensor, found more")
                return dims
    return None


def _read_dim(message: memoryview) -> int | str | None:
    axis: int | str | None = None
    for number, value in fields(message):
        if number == _DIM_VALUE and isinstance(value, int):
            axis = value if value < 1 << 63 else None
        elif number == _DIM_PARAM and isinstance(value, memoryview):
            axis = text(value) or None
    return axis
