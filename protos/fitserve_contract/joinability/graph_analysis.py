"""Follows the rows through a graph, node by node, into branches, loops and functions."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Coupling, Rule, attribute_constant, constant_of
from fitserve_contract.joinability.rules import COUNTED_INPUTS, POSITION_INPUTS, RANDOM, RULES
from fitserve_contract.joinability.rules_elements import fold
from fitserve_contract.joinability.rules_indexing import concat_positions
from fitserve_contract.joinability.sizes import OversizeError, Symbols
from fitserve_contract.joinability.values import UNKNOWN_CONSTANT, UNKNOWN_COUNT, Kind, Value, mixed
from fitserve_contract.onnx_graph import Attribute, Graph, Model, Node, read_tensor

_MOST_NODES = 200_000
_INTEGER_TYPES = (6, 7, 12, 13)
_ILL_FORMED = (ValueError, ArithmeticError, LookupError, TypeError)
"""What attributes that do not fit their operator lead to: the runtime refuses such a model, too."""


class Unprovable(Exception):
    """The model is not joinable, for the reason given."""


class WorkLimitError(Exception):
    """The graph takes more steps than any model that people have."""


class Scope:
    """Values by name, of a graph and those around it."""

    __slots__ = ("outer", "produced", "values")

    def __init__(self, outer: Scope | None, produced: frozenset[str]) -> None:
        self.values: dict[str, Value] = {}
        self.outer = outer
        self.produced = produced

    def find(self, name: str) -> Value | None:
        """Returns a value; None where it is not made yet, or never."""
        scope: Scope | None = self
        while scope is not None:
            value = scope.values.get(name)
            if value is not None or name in scope.produced:
                return value
            scope = scope.outer
        return None


class GraphAnalysis:
    """Analyses one model."""

    def __init__(self, model: Model) -> None:
        self._functions = model.functions
        self._opsets = model.opsets
        self._symbols = Symbols()
        self._work = 0

    def run(self, graph: Graph, inputs: dict[str, Value]) -> list[Value]:
        """Returns the values of the graph's outputs.

        Args:
            graph: The main graph.
            inputs: Input name to value, those with a default included.
        """
        scope = self._opened(graph, None, inputs)
        self._run_nodes(graph, scope, self._opsets, {})
        return [self._read(scope, entry.name) for entry in graph.outputs]

    def _opened(self, graph: Graph, outer: Scope | None, inputs: dict[str, Value]) -> Scope:
        if graph.sparse_count:
            raise Unprovable("the model has sparse initializers, for which there is no rule")
        scope = Scope(outer, graph.produced)
        scope.values.update(inputs)
        for name, content in graph.initializers.items():
            if name not in inputs:
                scope.values[name] = constant_of(read_tensor(content))
        if not graph.produced.isdisjoint(scope.values):
            raise Unprovable("the graph writes one of its inputs or initializers")
        return scope

    def _read(self, scope: Scope, name: str) -> Value:
        value = scope.find(name)
        return mixed(f"'{name}' is read before it is made") if value is None else value

    def _run_nodes(self, graph: Graph, scope: Scope, opsets: dict[str, int], references: dict[str, Attribute]) -> None:
        for node in graph.nodes:
            self._work += 1
            if self._work > _MOST_NODES:
                raise WorkLimitError(f"it takes more than {_MOST_NODES:,} steps")
            outputs = self._run_node(node, scope, opsets, references)
            for place, name in enumerate(node.outputs):
                if not name:
                    continue
                if name in scope.values:
                    raise Unprovable(f"'{name}' is made twice")
                scope.values[name] = outputs[place] if place < len(outputs) else mixed(
                    _blame(node, f"no rule for output {place} of {node.operator}"))  # fmt: skip

    def _run_node(
        self, node: Node, scope: Scope, opsets: dict[str, int], references: dict[str, Attribute]
    ) -> Sequence[Value]:
        inputs = [self._read(scope, name) if name else None for name in node.inputs]
        if node.operator == "Constant" and not node.domain:
            return [attribute_constant(_resolved(node, references))]
        call = Call(node, opsets.get(node.domain, 1), inputs, self._symbols, _resolved(node, references))
        given = [value for value in inputs if value is not None]
        problem = next((value.problem for value in given if value.kind is Kind.MIXED), "")
        if problem:
            return [mixed(problem)] * len(node.outputs)
        rule = RULES.get(node.domain, {}).get(node.operator)
        try:
            return [_blamed(node, value) for value in self._applied(call, rule)]
        except Coupling as error:
            return self._refused(call, given, str(error), is_known=rule is not None)
        except OversizeError:
            return self._refused(call, given, f"{node.operator} makes a tensor that is too large", is_known=False)
        except _ILL_FORMED:
            return self._refused(call, given, f"{node.operator} with inputs that do not fit", is_known=False)

    def _applied(self, call: Call, rule: Rule | None) -> Sequence[Value]:
        node = call.node
        if node.operator in RANDOM and not node.domain:
            raise call.refusal("draws random numbers")
        if rule is None:
            raise Coupling(f"no rule for {node.domain or 'ai.onnx'}:{node.operator}")
        if not node.domain:
            folded = fold(call)
            if folded is not None:
                return [folded]
            special = self._of_positions(call)
            if special is not None:
                return [special]
        self._check_counts(call)
        return rule(call)

    def _of_positions(self, call: Call) -> Value | None:
        if not any(value is not None and value.is_position for value in call.inputs):
            return None
        if call.node.operator == "Concat":
            return concat_positions(call)
        if call.node.operator == "Cast" and call.integer("to", 0) in _INTEGER_TYPES:
            return call.inputs[0]
        return None

    def _check_counts(self, call: Call) -> None:
        """Refuses the number of rows, and their places, as values: only some inputs say no more than how much."""
        operator = call.node.operator if not call.node.domain else ""
        if operator in ("Shape", "Size"):
            return
        counted, positions = COUNTED_INPUTS.get(operator, ()), POSITION_INPUTS.get(operator, ())
        for index, value in enumerate(call.inputs):
            if value is None or value.kind is not Kind.COUNT or index in counted:
                continue
            if not value.is_position:
                raise call.refusal("reads the number of rows")
            if index not in positions:
                raise call.refusal("reads the places of the rows")

    def _refused(self, call: Call, given: Sequence[Value], reason: str, is_known: bool) -> Sequence[Value]:
        """What a node makes that its rule refuses: no rows come in, no rows are mixed."""
        is_deterministic = is_known and call.node.operator not in RANDOM
        kinds = {value.kind for value in given}
        if is_deterministic and kinds <= {Kind.CONSTANT}:
            return [UNKNOWN_CONSTANT] * len(call.node.outputs)
        if is_deterministic and Kind.ROWS not in kinds:
            return [UNKNOWN_COUNT] * len(call.node.outputs)
        return [mixed(_blame(call.node, reason))] * len(call.node.outputs)


def _blame(node: Node, reason: str) -> str:
    name = node.name or next(iter(node.outputs), "")
    return f"node '{name}' ({reason})"


def _blamed(node: Node, value: Value) -> Value:
    if value.kind is Kind.MIXED and not value.problem:
        return mixed(_blame(node, f"{node.operator} counts places across rows"))
    return value


def _resolved(node: Node, references: dict[str, Attribute]) -> dict[str, Attribute]:
    """Attributes of a node in a function's body: what it refers to, where the caller gives that."""
    found = dict[str, Attribute]()
    for name, attribute in node.attributes.items():
        if not attribute.reference:
            found[name] = attribute
        elif attribute.reference in references:
            found[name] = references[attribute.reference]
    return found
