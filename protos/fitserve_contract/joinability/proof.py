"""Proves from the graph of a model that rows of different callers' requests may share a run.

Start with `prove_rows`. It is sound before it is complete: what it does not know is not proved.
"""

from __future__ import annotations

from dataclasses import dataclass

from fitserve_contract.joinability.graph_analysis import GraphAnalysis, Unprovable
from fitserve_contract.joinability.sizes import ROW_COUNT, Product, Size, Symbols
from fitserve_contract.joinability.values import Kind, RowAxis, Value, rows, typed
from fitserve_contract.onnx_graph import AmbiguousFileError, Axis, DeclaredValue, Graph, read_model
from fitserve_contract.onnx_types import axis_name
from fitserve_contract.onnx_wire import WorkLimitError

_TENSORS = ("tensor", "")


@dataclass(frozen=True, slots=True)
class RowProof:
    """Whether each output row of a model is proved to depend on the same row of the inputs alone.

    Args:
        problem: Why it is not, naming the node, e.g. "node 'peak' (ReduceMax over axis 0)"; empty where it is.
    """

    problem: str

    @property
    def is_proved(self) -> bool:
        """Rows are independent."""
        return not self.problem


def joining_text(problem: str) -> str:
    """Returns what people are told: `joinable`, or `not joinable: ` and why requests are not joined."""
    return f"not joinable: {problem}" if problem else "joinable"


def prove_rows(model: bytes | memoryview) -> RowProof:
    """Follows the rows through the graph of a serialized ModelProto.

    Axes of one name are taken for one size. ONNX Runtime does not ask for that, so requests in which their sizes differ
    are not to be joined.

    Raises:
        OnnxFileError: the bytes are no ONNX model.
    """
    try:
        parsed = read_model(model)
        analysis = GraphAnalysis(parsed)
        outputs = analysis.run(parsed.graph, input_values(parsed.graph, analysis.symbols))
        return RowProof(_output_problem(parsed.graph, outputs))
    except Unprovable as error:
        return RowProof(str(error))
    except (AmbiguousFileError, WorkLimitError) as error:
        return RowProof(f"the graph cannot be analysed: {error}")
    except RecursionError:
        return RowProof("the graph cannot be analysed: it is nested too deeply")


def input_values(graph: Graph, symbols: Symbols) -> dict[str, Value]:
    """Returns the values of the inputs that a caller must give: their first axis are the rows.

    An input with a default is that constant, for a request that gives another value runs alone.

    Raises:
        Unprovable: one of them has no such axis.
    """
    required = [entry for entry in graph.inputs if entry.name not in graph.initializers]
    if not required:
        raise Unprovable("the model has no inputs that carry rows")
    for entry in required:
        _check_input(entry)
    _check_names(required)
    found = dict[str, Value]()
    for entry in required:
        sizes = [ROW_COUNT, *_open_sizes(entry)[1:]]
        symbols.of_input(sizes)
        found[entry.name] = typed(rows(sizes, RowAxis(0)), entry.element_type)
    return found


def _check_input(entry: DeclaredValue) -> None:
    if entry.kind != "tensor":
        raise Unprovable(f"input '{entry.name}': it is no tensor but a {entry.kind or 'value of unknown type'}")
    if entry.shape is None:
        raise Unprovable(f"input '{entry.name}': its rank is open")
    text = f"input '{entry.name}' ({', '.join(_axis_text(axis) for axis in entry.shape)})"
    if not entry.shape:
        raise Unprovable(f"input '{entry.name}': it is a scalar")
    if isinstance(entry.shape[0], int):
        raise Unprovable(f"{text}: its first axis is fixed")


def _axis_text(axis: Axis) -> str:
    return "?" if axis is None else str(axis)


def _check_names(required: list[DeclaredValue]) -> None:
    """Different names on first axes are different sizes; one that stands elsewhere, too, is no free one."""
    names = {
        name: entry for entry in required if (name := axis_name(entry.shape[0] if entry.shape else None)) is not None
    }
    if len(names) > 1:
        listed = ", ".join(f"'{entry.name}' ({name})" for name, entry in names.items())
        raise Unprovable(f"inputs {listed}: their first axes have different names")
    for entry in required:
        for axis in (entry.shape or ())[1:]:
            if axis_name(axis) in names:
                raise Unprovable(f"input '{entry.name}': '{axis}' is its first axis and another one")


def _open_sizes(entry: DeclaredValue) -> list[Size]:
    """Sizes of all axes: a symbol for each open one, by its name where that is the same size everywhere."""
    found = list[Size]()
    for place, axis in enumerate(entry.shape or ()):
        name = axis_name(axis)
        symbol = f"{place}:{entry.name}" if name is None else f":{name}"
        found.append(axis if isinstance(axis, int) and axis else Product(1, (symbol,)))
    return found


def _output_problem(graph: Graph, outputs: list[Value]) -> str:
    """The first output that does not carry one row for each row of the inputs; empty where there is none."""
    tensors = [(entry, value) for entry, value in zip(graph.outputs, outputs, strict=True) if entry.kind in _TENSORS]
    if not tensors:
        return "the model has no output that is a tensor"
    for entry, value in tensors:
        if value.kind is Kind.MIXED:
            return value.problem
        if value.kind is Kind.COUNT:
            return f"output '{entry.name}': it depends on the number of rows"
        if value.kind is Kind.CONSTANT:
            return f"output '{entry.name}': it does not depend on the inputs"
        if value.row != RowAxis(0):
            where = value.row.axis if value.row is not None else 0
            shape = "rows merged with another axis" if where == 0 else f"its rows are axis {where}"
            return f"output '{entry.name}': {shape}"
    return ""
