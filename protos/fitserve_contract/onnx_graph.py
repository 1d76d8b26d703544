"""Reads the graph of an ONNX file: nodes, attributes, initializers and declared types, each when it is asked for.

Weights and long attributes are skipped at the speed of memory; only small constants are decoded. Where protobuf would
merge a message that is given twice, the file is called ambiguous instead: nothing that exports models writes that.

Source: onnx/onnx.proto (field numbers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy.typing as npt

from fitserve_contract.onnx_tensors import MAX_RANK, MAX_VALUES, tensor_name
from fitserve_contract.onnx_wire import OnnxFileError, Run, fields, floats, integers, short_fields, text

Array = npt.NDArray[Any]
Axis = int | str | None
"""Size, name, or None where it is open."""

MAX_NODES: Final = 100_000

_STRINGS = short_fields(9)
_TENSOR, _SEQUENCE, _MAP, _SPARSE, _OPTIONAL = 1, 4, 5, 8, 9
_KINDS = {_TENSOR: "tensor", _SEQUENCE: "sequence", _MAP: "map", _SPARSE: "sparse tensor", _OPTIONAL: "optional"}


class AmbiguousFileError(Exception):
    """The file says one thing twice, or more than can be looked at."""


@dataclass(frozen=True, slots=True)
class DeclaredValue:
    """Name and declared type of an input or output.

    Args:
        name: Its name.
        kind: "tensor", "sequence", "map", ...; empty where none is declared.
        shape: Of a tensor; None where the rank is open.
    """

    name: str
    kind: str
    shape: tuple[Axis, ...] | None


@dataclass(slots=True)
class Attribute:
    """An AttributeProto; what is absent is None, and `is_long` says that numbers were left out."""

    name: str = ""
    integer: int | None = None
    real: float | None = None
    text: str | None = None
    integers: list[int] | None = None
    reals: list[float] | None = None
    tensor: memoryview | None = None
    graph: memoryview | None = None
    reference: str = ""
    is_long: bool = False
    raw: memoryview | None = None

    @property
    def count(self) -> int:
        """Integers or strings that it holds; 0 where it holds neither."""
        if self.integers is not None:
            return len(self.integers)
        if self.raw is None or len(self.raw) > MAX_VALUES * 16:
            return 0
        return sum(number == 9 for number, _ in fields(self.raw))


@dataclass(slots=True)
class Node:
    """A NodeProto; attributes are decoded when they are asked for."""

    operator: str = ""
    domain: str = ""
    overload: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    raw_attributes: list[memoryview] = field(default_factory=list)
    decoded: dict[str, Attribute] | None = None

    @property
    def attributes(self) -> dict[str, Attribute]:
        """Attribute name to attribute.

        Raises:
            AmbiguousFileError: one is given twice.
        """
        if self.decoded is None:
            found = [read_attribute(content) for content in self.raw_attributes]
            self.decoded = {attribute.name: attribute for attribute in found}
            if len(self.decoded) != len(found):
                raise AmbiguousFileError(f"node '{self.name}': an attribute is given twice")
        return self.decoded


@dataclass
class Graph:
    """A GraphProto or the body of a FunctionProto.

    Args:
        nodes: In the file's order.
        inputs: Declared inputs, initializers with a default among them.
        outputs: Declared outputs.
        initializers: Name to serialized TensorProto.
        sparse_count: Sparse initializers.
    """

    nodes: list[Node] = field(default_factory=list)
    inputs: list[DeclaredValue] = field(default_factory=list)
    outputs: list[DeclaredValue] = field(default_factory=list)
    initializers: dict[str, memoryview] = field(default_factory=dict)
    sparse_count: int = 0

    @cached_property
    def produced(self) -> frozenset[str]:
        """Names that its nodes write."""
        return frozenset(name for node in self.nodes for name in node.outputs if name)


@dataclass(slots=True)
class Function:
    """A FunctionProto: a body whose inputs and outputs are names alone."""

    domain: str = ""
    name: str = ""
    overload: str = ""
    body: Graph = field(default_factory=Graph)
    defaults: dict[str, Attribute] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """A ModelProto: graph, operator sets (domain, "" is ai.onnx, to version) and model-local functions."""

    graph: Graph
    opsets: dict[str, int]
    functions: dict[tuple[str, str, str], Function]


def read_model(content: bytes | memoryview) -> Model:
    """Reads a serialized ModelProto.

    Raises:
        OnnxFileError: the bytes are no ModelProto, or hold no graph.
        AmbiguousFileError: more nodes than MAX_NODES, or something is given twice.
    """
    graph, opsets, functions, has_graph = Graph(), dict[str, int](), dict[tuple[str, str, str], Function](), False
    for number, value in fields(memoryview(content)):
        if not isinstance(value, memoryview):
            continue
        if number == 7:
            has_graph = True
            _read_graph_into(graph, value)
        elif number == 8:
            _read_opset(value, opsets)
        elif number == 25:
            function = _read_function(value)
            key = (function.domain, function.name, function.overload)
            if key in functions:
                raise AmbiguousFileError(f"function '{function.name}' is given twice")
            functions[key] = function
    if not has_graph:
        raise OnnxFileError("file 'model.onnx': expected an ONNX model, found no graph in it")
    return Model(graph, opsets, functions)


def read_graph(content: memoryview) -> Graph:
    """Reads a serialized GraphProto. Raises as `read_model`."""
    _read_graph_into(graph := Graph(), content)
    return graph


def domain_name(domain: str) -> str:
    """Returns "" for both names of the default domain."""
    return "" if domain == "ai.onnx" else domain


def _read_graph_into(graph: Graph, content: memoryview) -> None:
    for number, value in fields(content):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            graph.nodes.append(_read_node(value))
            if len(graph.nodes) > MAX_NODES:
                raise AmbiguousFileError(f"it has more than {MAX_NODES:,} nodes")
        elif number == 5:
            name = tensor_name(value)
            if name in graph.initializers:
                raise AmbiguousFileError(f"initializer '{name}' is given twice")
            graph.initializers[name] = value
        elif number == 11:
            graph.inputs.append(_read_declared(value))
        elif number == 12:
            graph.outputs.append(_read_declared(value))
        elif number == 15:
            graph.sparse_count += 1


def _read_node(content: memoryview) -> Node:
    node = Node()
    for number, value in fields(content):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            node.inputs.append(text(value))
        elif number == 2:
            node.outputs.append(text(value))
        elif number == 5:
            node.raw_attributes.append(value)
        elif number == 4:
            node.operator = text(value)
        elif number == 3:
            node.name = text(value)
        elif number == 7:
            node.domain = domain_name(text(value))
        elif number == 8:
            node.overload = text(value)
    return node


def read_attribute(content: memoryview) -> Attribute:
    """Reads a serialized AttributeProto.

    Raises:
        AmbiguousFileError: its tensor or graph is given twice.
    """
    attribute = Attribute(raw=content)
    for number, value in fields(content, _STRINGS):
        if number in (5, 6) and isinstance(value, memoryview):
            if attribute.tensor is not None or attribute.graph is not None:
                raise AmbiguousFileError(f"attribute '{attribute.name}' is given twice")
            attribute.tensor, attribute.graph = (value, None) if number == 5 else (None, value)
        elif isinstance(value, memoryview) and number in (1, 4, 21):
            _set_text(attribute, number, text(value[: 1 << 16]))
        elif number == 3 and isinstance(value, int):
            attribute.integer = value - (1 << 64) if value >> 63 else value
        elif number == 2 and isinstance(value, int):
            attribute.real = (floats(value, 1) or [0.0])[0]
        elif number in (7, 8):
            _add_numbers(attribute, number, value)
    return attribute


def _add_numbers(attribute: Attribute, number: int, value: int | memoryview | Run) -> None:
    if number == 8 and (more := integers(value, MAX_VALUES)) is not None:
        attribute.integers = (attribute.integers or []) + more
    elif number == 7 and (reals := floats(value, MAX_VALUES)) is not None:
        attribute.reals = (attribute.reals or []) + reals
    else:
        attribute.is_long = True
    attribute.is_long = attribute.is_long or len(attribute.integers or attribute.reals or ()) > MAX_VALUES


def _set_text(attribute: Attribute, number: int, value: str) -> None:
    if number == 1:
        attribute.name = value
    elif number == 4:
        attribute.text = value
    else:
        attribute.reference = value


def _read_function(content: memoryview) -> Function:
    function = Function()
    for number, value in fields(content):
        if not isinstance(value, memoryview):
            continue
        if number == 7:
            function.body.nodes.append(_read_node(value))
        elif number == 4:
            function.body.inputs.append(DeclaredValue(text(value), "", None))
        elif number == 5:
            function.body.outputs.append(DeclaredValue(text(value), "", None))
        elif number == 11:
            attribute = read_attribute(value)
            function.defaults[attribute.name] = attribute
        elif number == 9:
            _read_opset(value, function.opsets)
        elif number == 1:
            function.name = text(value)
        elif number == 10:
            function.domain = domain_name(text(value))
        elif number == 13:
            function.overload = text(value)
    return function


def _read_opset(content: memoryview, opsets: dict[str, int]) -> None:
    domain, version = "", 0
    for number, value in fields(content):
        if number == 1 and isinstance(value, memoryview):
            domain = domain_name(text(value))
        elif number == 2 and isinstance(value, int):
            version = value
    opsets[domain] = version


def _read_declared(content: memoryview) -> DeclaredValue:
    name, kinds, shape = "", list[str](), None
    for number, value in fields(content):
        if number == 1 and isinstance(value, memoryview):
            name = text(value)
        elif number == 2 and isinstance(value, memoryview):
            for kind, inner in fields(value):
                if kind in _KINDS and isinstance(inner, memoryview):
                    kinds.append(_KINDS[kind])
                    shape = _read_shape(inner) if kind == _TENSOR else None
    if len(kinds) > 1:
        raise AmbiguousFileError(f"the type of '{name}' is given twice")
    return DeclaredValue(name, "".join(kinds), shape)


def _read_shape(tensor: memoryview) -> tuple[Axis, ...] | None:
    shapes = [shape for part, shape in fields(tensor) if part == 2 and isinstance(shape, memoryview)]
    if len(shapes) != 1:
        return None
    axes = list[Axis]()
    for part, dim in fields(shapes[0]):
        if part == 1 and isinstance(dim, memoryview):
            axes.append(_read_axis(dim))
        if len(axes) > MAX_RANK:
            return None
    return tuple(axes)


def _read_axis(dim: memoryview) -> Axis:
    axis: Axis = None
    for number, value in fields(dim):
        if number == 1 and isinstance(value, int):
            axis = value if value < 1 << 63 else None
        elif number == 2 and isinstance(value, memoryview):
            axis = text(value) or None
    return axis
