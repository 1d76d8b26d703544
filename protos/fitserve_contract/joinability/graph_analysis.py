"""Follows the rows through a graph, node by node, into branches, loops and functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fitserve_contract.joinability.calls import Call, Coupling, Randomness, attribute_constant, constant_of
from fitserve_contract.joinability.control_flow import CONTROL_FLOW, Bodies
from fitserve_contract.joinability.element_types import with_types
from fitserve_contract.joinability.positions import MOVING, kept_bound, of_positions
from fitserve_contract.joinability.rules import (
    CHANGED_IN_7,
    COUNTED_INPUTS,
    NEWEST_VERSION,
    POSITION_INPUTS,
    RANDOM,
    RULES,
    SEQUENCE_OPERATORS,
)
from fitserve_contract.joinability.rules_elements import fold
from fitserve_contract.joinability.sizes import OversizeError, Symbols
from fitserve_contract.joinability.values import UNKNOWN_CONSTANT, UNKNOWN_COUNT, Kind, Value, mixed
from fitserve_contract.onnx_graph import Attribute, DeclaredValue, Function, Graph, Model, Node, read_graph
from fitserve_contract.onnx_tensors import MAX_RANK, read_tensor
from fitserve_contract.onnx_wire import Budget, WorkLimitError

_MOST_DEPTH = 24
_OF_NOTHING = frozenset(("Cast", "ConstantOfShape", "Identity", "Shape", "Size"))
"""Operators whose results without elements have the shape that one would think."""
_RUNTIME_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms.", "org.pytorch.aten")
"""Domains of ONNX Runtime: of a name that both have, it may take its own operator."""
_NODE_STEPS = 16
_GRAPH_STEPS = 8
_ILL_FORMED = (ValueError, ArithmeticError, LookupError, TypeError)
"""What attributes that do not fit their operator lead to: the runtime refuses such a model, too."""


class Unprovable(Exception):
    """The model is not joinable, for the reason given."""


class Constants:
    """The initializers of a graph, each decoded once, when a node reads it.

    Args:
        graph: The graph.
        budget: What decoding is paid from.
    """

    def __init__(self, graph: Graph, budget: Budget) -> None:
        self._contents = graph.initializers
        self._budget = budget
        self._known: dict[str, Value] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._contents

    def get(self, name: str) -> Value | None:
        """Returns an initializer; None where there is none of that name."""
        found = self._known.get(name)
        if found is None and (content := self._contents.get(name)) is not None:
            found = self._known[name] = constant_of(read_tensor(content, self._budget), self._budget)
        return found


@dataclass(slots=True)
class Scope:
    """Values by name, of a graph and those around it.

    Args:
        outer: Scope around it; None in the main graph and in functions.
        produced: Names that its nodes write: none of them is looked for outside.
        constants: Its initializers.
        references: Attributes of the function call that this is in the body of; None outside functions.
        depth: Graphs and functions around it.
        absent: Inputs of the function that its caller leaves out.
        values: Name to value.
    """

    outer: Scope | None
    produced: frozenset[str]
    constants: Constants
    references: dict[str, Attribute] | None
    depth: int = 0
    absent: frozenset[str] = frozenset()
    values: dict[str, Value] = field(default_factory=dict)

    def read(self, name: str) -> Value | None:
        """Returns a value; None where it is left out, a mixed one where it is not made yet."""
        scope: Scope | None = self
        while scope is not None:
            value = scope.values.get(name) or scope.constants.get(name)
            if value is not None:
                return value
            if name in scope.absent:
                return None
            if name in scope.produced:
                break
            scope = scope.outer
        return mixed(f"'{name}' is read before it is made")


class GraphAnalysis:
    """Analyses one model.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.symbols = Symbols(model.budget)
        self._budget = model.budget
        self._functions = model.functions
        self._opsets = model.opsets
        self._bodies: dict[int, tuple[Attribute, Graph]] = {}
        self._constants: dict[int, Constants] = {}

    def run(self, graph: Graph, inputs: dict[str, Value]) -> list[Value]:
        """Returns the values of the graph's outputs.

        Args:
            graph: The main graph.
            inputs: Input name to value, those with a default included.
        """
        return self._run_graph(graph, Scope(None, graph.produced, self._initializers(graph), None, values=inputs))

    def _run_body(self, attribute: Attribute, inputs: Sequence[Value], outer: Scope) -> list[Value]:
        """Runs a branch or the body of a loop, whose node stands in the scope `outer`."""
        graph = self._body(attribute)
        if len(graph.inputs) != len(inputs):
            raise Coupling(f"a graph of {len(graph.inputs)} inputs instead of {len(inputs)}")
        values = {entry.name: value for entry, value in zip(graph.inputs, inputs, strict=True)}
        constants = self._initializers(graph)
        scope = Scope(outer, graph.produced, constants, outer.references, outer.depth + 1, values=values)
        return self._run_graph(graph, scope)

    def _initializers(self, graph: Graph) -> Constants:
        """The graph is kept by whoever gives it, so that its identity stays its own."""
        known = self._constants.get(id(graph))
        if known is None:
            known = self._constants[id(graph)] = Constants(graph, self._budget)
        return known

    def _body(self, attribute: Attribute) -> Graph:
        """The graph is read once; the attribute is kept, so that its identity stays its own."""
        known = self._bodies.get(id(attribute))
        if known is None:
            if attribute.graph is None:
                raise Coupling("without its graph")
            known = self._bodies[id(attribute)] = (attribute, read_graph(attribute.graph, self._budget))
        return known[1]

    def _run_graph(self, graph: Graph, scope: Scope) -> list[Value]:
        if scope.depth > _MOST_DEPTH:
            raise WorkLimitError(f"graphs and functions nested more than {_MOST_DEPTH} deep")
        if graph.sparse_count:
            raise Unprovable("the model has sparse initializers, for which there is no rule")
        self._budget.spend(_GRAPH_STEPS + len(graph.inputs) + len(graph.outputs))
        for node in graph.nodes:
            self._budget.spend(_NODE_STEPS + len(node.inputs) + 2 * len(node.outputs) + len(node.raw_attributes))
            outputs = self._run_node(node, scope)
            for place, name in enumerate(node.outputs):
                if name in scope.values or name in scope.constants:
                    raise Unprovable(f"'{name}' is made twice")
                if name:
                    scope.values[name] = outputs[place] if place < len(outputs) else _unruled(node, place)
        return [self._output(scope, entry) for entry in graph.outputs]

    def _output(self, scope: Scope, entry: DeclaredValue) -> Value:
        value = scope.read(entry.name)
        return mixed(f"output '{entry.name}' is not made") if value is None else value

    def _run_node(self, node: Node, scope: Scope) -> Sequence[Value]:
        inputs = [scope.read(name) if name else None for name in node.inputs]
        self._budget.spend(sum(_steps(value) for value in inputs))
        attributes = _resolved(node, scope.references)
        if node.operator == "Constant" and not node.domain:
            return [attribute_constant(attributes, self._budget)]
        spoiled = next((value for value in inputs if value is not None and value.kind is Kind.MIXED), None)
        if spoiled is not None:
            return [mixed(spoiled.problem)] * len(node.outputs)
        call = Call(node, self._opsets.get(node.domain, 1), inputs, self.symbols, attributes)
        try:
            outputs = self._applied(call, scope)
            if any(value.shape is not None and len(value.shape) > MAX_RANK for value in outputs):
                raise call.refusal(f"makes a tensor of more than {MAX_RANK} axes")
            return [_blamed(node, value) for value in outputs]
        except Randomness as error:
            return [mixed(_blame(node, str(error)))] * len(node.outputs)
        except Coupling as error:
            return _refused(call, str(error))
        except OversizeError:
            return _refused(call, f"{node.operator} makes a tensor that is too large")
        except _ILL_FORMED:
            return _refused(call, f"{node.operator} with inputs that do not fit")

    def _applied(self, call: Call, scope: Scope) -> Sequence[Value]:
        node = call.node
        rule = RULES.get(node.domain, {}).get(node.operator)
        function = self._functions.get((node.domain, node.operator, node.overload))
        if function is not None:
            if rule is not None or node.domain.startswith(_RUNTIME_DOMAINS) or not node.domain:
                raise call.refusal("is an operator and a function of the file")
            return self._run_function(call, function, scope)
        if not node.domain:
            if node.operator in RANDOM:
                raise Randomness(f"{node.operator} draws random numbers")
            if node.operator in CONTROL_FLOW:
                bodies = Bodies(self._body, lambda body, inputs: self._run_body(body, inputs, scope))
                return CONTROL_FLOW[node.operator](call, bodies)
        oldest = 7 if node.operator in CHANGED_IN_7 else 1
        if not node.domain and not oldest <= call.version <= NEWEST_VERSION:
            raise Randomness(f"no rule for operator set {call.version} of ai.onnx")
        if rule is None:
            raise Coupling(f"no rule for {node.domain or 'ai.onnx'}:{node.operator}")
        special = None if node.domain else fold(call) or of_positions(call)
        if special is not None:
            return [special]
        _check_kinds(call)
        _check_elements(call)
        made = with_types(call, rule(call))
        return [kept_bound(call, made[0])] if node.operator in MOVING and not node.domain else made

    def _run_function(self, call: Call, function: Function, scope: Scope) -> Sequence[Value]:
        self._check_versions(call, function)
        body, names = function.body, [entry.name for entry in function.body.inputs]
        given = {name: value for name, value in zip(names, call.inputs, strict=False) if value is not None}
        references = {**function.defaults, **call.attributes}
        self._budget.spend(len(references))
        absent = frozenset(names) - given.keys()
        constants = self._initializers(body)
        return self._run_graph(body, Scope(None, body.produced, constants, references, scope.depth + 1, absent, given))

    def _check_versions(self, call: Call, function: Function) -> None:
        """ONNX Runtime writes the body in place of the call and then reads it by the model's operator sets."""
        for domain in RULES:
            version = function.opsets.get(domain)
            if version is not None and version != self._opsets.get(domain):
                found = self._opsets.get(domain, "none")
                name = domain or "ai.onnx"
                raise call.refusal(f"is a function of operator set {version} of {name}, the model's is {found}")


def _steps(value: Value | None) -> int:
    """What the rules do with an input costs as many steps as it has axes or parts."""
    if value is None:
        return 0
    return len(value.shape or ()) + len(value.parts or ())


def _check_kinds(call: Call) -> None:
    """Refuses the number of rows, and their places, as values: only some inputs say no more than how much."""
    operator = call.node.operator if not call.node.domain else ""
    if operator in ("Shape", "Size"):
        return
    counted, positions = COUNTED_INPUTS.get(operator, ()), POSITION_INPUTS.get(operator, ())
    for index, value in enumerate(call.inputs):
        if value is None or (value.kind is Kind.COUNT and index in counted):
            continue
        if value.kind is Kind.SEQUENCE and (index != 0 or operator not in SEQUENCE_OPERATORS):
            raise call.refusal("reads a sequence")
        if value.kind is Kind.COUNT and not (value.is_position and index in positions):
            raise call.refusal("reads the number of rows" if value.row is None else "reads the places of the rows")


def _check_elements(call: Call) -> None:
    """Refuses a tensor without elements: what shape kernels give the result is theirs to say."""
    value = call.given(0)
    if call.node.operator in _OF_NOTHING or value is None or value.shape is None:
        return
    if 0 in value.shape:
        raise call.refusal("of a tensor without elements")


def _refused(call: Call, reason: str) -> Sequence[Value]:
    """What a node makes that its rule refuses: where no rows come in, no rows are mixed."""
    node, kinds = call.node, {value.kind for value in call.inputs if value is not None}
    if node.operator in RULES.get(node.domain, {}):
        if kinds <= {Kind.CONSTANT}:
            return [UNKNOWN_CONSTANT] * len(node.outputs)
        if kinds <= {Kind.CONSTANT, Kind.COUNT}:
            return [UNKNOWN_COUNT] * len(node.outputs)
    return [mixed(_blame(node, reason))] * len(node.outputs)


def _unruled(node: Node, place: int) -> Value:
    return mixed(_blame(node, f"no rule for output {place} of {node.operator}"))


def _blame(node: Node, reason: str) -> str:
    return f"node '{node.name or next(iter(node.outputs), '')}' ({reason})"


def _blamed(node: Node, value: Value) -> Value:
    if value.kind is Kind.MIXED and not value.problem:
        return mixed(_blame(node, f"{node.operator} counts places across rows"))
    return value


def _resolved(node: Node, references: dict[str, Attribute] | None) -> dict[str, Attribute]:
    """Attributes of a node in a function's body: what it refers to, where the caller gives that."""
    if not any(attribute.reference for attribute in node.attributes.values()):
        return node.attributes
    if references is None:
        raise Unprovable(f"node '{node.name or next(iter(node.outputs), '')}' refers to attributes of no function")
    found = dict[str, Attribute]()
    for name, attribute in node.attributes.items():
        if not attribute.reference:
            found[name] = attribute
        elif attribute.reference in references:
            found[name] = replace(references[attribute.reference], name=name)
    return found
