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
from fitserve_contract.onnx_wire import Budget, OnnxFileError, Run, fields, floats, integers, last, short_fields

Array = npt.NDArray[Any]
Axis = int | str | None
"""Size, name, or None where it is open."""

MAX_NODES: Final = 100_000
MAX_STEPS: Final = 2_000_000
"""Steps that the reading of a file and whatever is then done with its graph may take, about a second."""

_MOST_NAME_BYTES = 1 << 12
_MESSAGE_STEPS = 8
"""What a message costs that is kept as an object."""
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
        element_type: Of a tensor: the number of its type in onnx.proto; 0 where none is declared.
    """

    name: str
    kind: str
    shape: tuple[Axis, ...] | None
    element_type: int = 0


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

    def count(self, budget: Budget) -> int:
        """Returns how many numbers or strings it holds; 0 where it holds neither, or very many."""
        numbers = self.integers if self.integers is not None else self.reals
        if numbers is not None:
            return 0 if self.is_long else len(numbers)
        if self.raw is None or len(self.raw) > MAX_VALUES * 16:
            return 0
        return sum(number == 9 for number, _ in fields(self.raw, budget=budget))


@dataclass(slots=True)
class Node:
    """A NodeProto; attributes are decoded when they are asked for, at the cost of the file's budget."""

    budget: Budget
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
            found = [read_attribute(content, self.budget) for content in self.raw_attributes]
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
    """A ModelProto.

    Args:
        graph: The main graph.
        opsets: Operator set domain ("" is ai.onnx) to version.
        functions: (domain, name, overload) to model-local function.
        budget: Steps that are left for whatever is done with the model.
    """

    graph: Graph
    opsets: dict[str, int]
    functions: dict[tuple[str, str, str], Function]
    budget: Budget


def read_model(content: bytes | memoryview) -> Model:
    """Reads a serialized ModelProto.

    Raises:
        OnnxFileError: the bytes are no ModelProto, or hold no graph.
        AmbiguousFileError: more nodes than MAX_NODES, or something is given twice.
        WorkLimitError: it takes more than MAX_STEPS.
    """
    budget = Budget(MAX_STEPS)
    graph, opsets, functions, has_graph = Graph(), dict[str, int](), dict[tuple[str, str, str], Function](), False
    for number, value in fields(memoryview(content), budget=budget):
        if not isinstance(value, memoryview):
            continue
        if number == 7:
            has_graph = True
            _read_graph_into(graph, value, budget)
        elif number == 8:
            _read_opset(value, opsets, budget)
        elif number == 25:
            function = _read_function(value, budget)
            key = (function.domain, function.name, function.overload)
            if key in functions:
                raise AmbiguousFileError(f"function '{function.name}' is given twice")
            functions[key] = function
    if not has_graph:
        raise OnnxFileError("file 'model.onnx': expected an ONNX model, found no graph in it")
    return Model(graph, opsets, functions, budget)


def read_graph(content: memoryview, budget: Budget) -> Graph:
    """Reads a serialized GraphProto. Raises as `read_model`."""
    _read_graph_into(graph := Graph(), content, budget)
    return graph


def _name(content: memoryview, budget: Budget) -> str:
    """Returns a name: one that two others could be taken for is refused."""
    budget.spend(2 + len(content) // 16)
    if len(content) > _MOST_NAME_BYTES:
        raise AmbiguousFileError(f"a name has {len(content):,} bytes, more than {_MOST_NAME_BYTES:,}")
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise AmbiguousFileError(f"a name is no UTF-8: {error}") from None


def _domain(content: memoryview, budget: Budget) -> str:
    name = _name(content, budget)
    return "" if name == "ai.onnx" else name


def _read_graph_into(graph: Graph, content: memoryview, budget: Budget) -> None:
    for number, value in fields(content, budget=budget):
        if not isinstance(value, memoryview):
            continue
        budget.spend(_MESSAGE_STEPS)
        if number == 1:
            _add_node(graph, value, budget)
        elif number == 5:
            name = _name(tensor_name(value, budget), budget)
            if name in graph.initializers:
                raise AmbiguousFileError(f"initializer '{name}' is given twice")
            graph.initializers[name] = value
        elif number == 11:
            graph.inputs.append(_read_declared(value, budget))
        elif number == 12:
            graph.outputs.append(_read_declared(value, budget))
        elif number == 15:
            graph.sparse_count += 1


def _add_node(graph: Graph, content: memoryview, budget: Budget) -> None:
    graph.nodes.append(_read_node(content, budget))
    if len(graph.nodes) > MAX_NODES:
        raise AmbiguousFileError(f"it has more than {MAX_NODES:,} nodes")


def _read_node(content: memoryview, budget: Budget) -> Node:
    node = Node(budget)
    for number, value in fields(content, budget=budget):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            node.inputs.append(_name(value, budget))
        elif number == 2:
            node.outputs.append(_name(value, budget))
        elif number == 5:
            budget.spend(_MESSAGE_STEPS)
            node.raw_attributes.append(value)
        elif number == 4:
            node.operator = _name(value, budget)
        elif number == 3:
            node.name = _name(value, budget)
        elif number == 7:
            node.domain = _domain(value, budget)
        elif number == 8:
            node.overload = _name(value, budget)
    return node


_TYPE_OF_FIELD: Final = {2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8, 10: 9, 11: 10, 22: 11, 23: 12, 14: 13, 15: 14}
"""Field that holds an attribute's value to the attribute's type (AttributeProto.AttributeType)."""


def read_attribute(content: memoryview, budget: Budget) -> Attribute:
    """Reads a serialized AttributeProto.

    Raises:
        AmbiguousFileError: its tensor or graph is given twice, or its type is not that of its value.
        WorkLimitError: the budget is spent.
    """
    budget.spend(_MESSAGE_STEPS)
    attribute, declared, held = Attribute(raw=content), 0, set[int]()
    for number, value in fields(content, _STRINGS, budget):
        if number in _TYPE_OF_FIELD:
            held.add(_TYPE_OF_FIELD[number])
        if number in (5, 6) and isinstance(value, memoryview):
            if attribute.tensor is not None or attribute.graph is not None:
                raise AmbiguousFileError(f"attribute '{attribute.name}' is given twice")
            attribute.tensor, attribute.graph = (value, None) if number == 5 else (None, value)
        elif number == 1 and isinstance(value, memoryview):
            attribute.name = _name(value, budget)
        elif number == 21 and isinstance(value, memoryview):
            attribute.reference = _name(value, budget)
        elif number == 4 and isinstance(value, memoryview):
            attribute.text = bytes(value[:_MOST_NAME_BYTES]).decode(errors="replace")
        elif number == 3 and (integer := last(value)) is not None:
            attribute.integer = integer
        elif number == 2 and not isinstance(value, memoryview):
            if attribute.real is not None or isinstance(value, Run):
                raise AmbiguousFileError(f"attribute '{attribute.name}' is given twice")
            attribute.real = (floats(value, 1) or [0.0])[0]
        elif number == 20 and isinstance(value, int):
            declared = value
        elif number in (7, 8):
            _add_numbers(attribute, number, value, budget)
    if len(held) > 1 or (declared and held - {declared}) or (held and attribute.reference):
        raise AmbiguousFileError(f"attribute '{attribute.name}' holds values of several types")
    return attribute


def _add_numbers(attribute: Attribute, number: int, value: int | memoryview | Run, budget: Budget) -> None:
    if attribute.is_long:
        return
    held = attribute.integers if number == 8 else attribute.reals
    more = integers(value, MAX_VALUES) if number == 8 else floats(value, MAX_VALUES)
    if more is None or len(held or ()) + len(more) > MAX_VALUES:
        attribute.is_long = True
        return
    budget.spend(len(more))
    if number == 8:
        attribute.integers = attribute.integers or []
        attribute.integers += more  # type: ignore[arg-type]
    else:
        attribute.reals = attribute.reals or []
        attribute.reals += more


def _read_function(content: memoryview, budget: Budget) -> Function:
    budget.spend(8 * _MESSAGE_STEPS)
    function = Function()
    for number, value in fields(content, budget=budget):
        if not isinstance(value, memoryview):
            continue
        budget.spend(_MESSAGE_STEPS)
        if number == 7:
            _add_node(function.body, value, budget)
        elif number == 4:
            function.body.inputs.append(DeclaredValue(_name(value, budget), "", None))
        elif number == 5:
            function.body.outputs.append(DeclaredValue(_name(value, budget), "", None))
        elif number == 11:
            attribute = read_attribute(value, budget)
            function.defaults[attribute.name] = attribute
        elif number == 9:
            _read_opset(value, function.opsets, budget)
        elif number == 1:
            function.name = _name(value, budget)
        elif number == 10:
            function.domain = _domain(value, budget)
        elif number == 13:
            function.overload = _name(value, budget)
    return function


def _read_opset(content: memoryview, opsets: dict[str, int], budget: Budget) -> None:
    budget.spend(_MESSAGE_STEPS)
    domain, version = "", 0
    for number, value in fields(content, budget=budget):
        if number == 1 and isinstance(value, memoryview):
            domain = _domain(value, budget)
        elif number == 2:
            version = last(value) or 0
    if opsets.setdefault(domain, version) != version:
        raise AmbiguousFileError(f"operator set '{domain or 'ai.onnx'}' is imported at two versions")


def _read_declared(content: memoryview, budget: Budget) -> DeclaredValue:
    name, kinds, shape, element_type = "", list[str](), None, 0
    for number, value in fields(content, budget=budget):
        if number == 1 and isinstance(value, memoryview):
            name = _name(value, budget)
        elif number == 2 and isinstance(value, memoryview):
            for kind, inner in fields(value, budget=budget):
                if kind in _KINDS and isinstance(inner, memoryview):
                    if kinds:
                        raise AmbiguousFileError(f"the type of '{name}' is given twice")
                    kinds.append(_KINDS[kind])
                    shape, element_type = _read_tensor_type(inner, budget) if kind == _TENSOR else (None, 0)
    return DeclaredValue(name, "".join(kinds), shape, element_type)


def _read_tensor_type(tensor: memoryview, budget: Budget) -> tuple[tuple[Axis, ...] | None, int]:
    shapes, element_type = list[memoryview](), 0
    for part, value in fields(tensor, budget=budget):
        if part == 2 and isinstance(value, memoryview) and len(shapes) < 2:
            shapes.append(value)
        elif part == 1:
            element_type = last(value) or 0
    if len(shapes) != 1:
        return None, element_type
    axes = list[Axis]()
    for part, dim in fields(shapes[0], budget=budget):
        if part == 1 and isinstance(dim, memoryview) and len(axes) <= MAX_RANK:
            axes.append(_read_axis(dim, budget))
    return (None if len(axes) > MAX_RANK else tuple(axes)), element_type


def _read_axis(dim: memoryview, budget: Budget) -> Axis:
    axis: Axis = None
    for number, value in fields(dim, budget=budget):
        if number == 1 and (size := last(value)) is not None:
            axis = size if size >= 0 else None
        elif number == 2 and isinstance(value, memoryview):
            axis = _name(value, budget) or None
    return axis
