"""Rules of If, Loop and Scan: what they decide by must be the same for every row; what they carry keeps its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from fitserve_contract.joinability.calls import Call, axis_of, refuse_rows
from fitserve_contract.joinability.sizes import Product, Size, Symbols
from fitserve_contract.joinability.values import (
    INT64,
    UNKNOWN_CONSTANT,
    UNKNOWN_COUNT,
    Kind,
    RowAxis,
    Value,
    constant,
    like,
    mixed,
    rows,
    typed,
)
from fitserve_contract.onnx_graph import Attribute, Graph

_MOST_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Bodies:
    """What runs the graphs in a node's attributes.

    Args:
        graph_of: Returns the graph of an attribute.
        run: Runs it on the values of its inputs.
    """

    graph_of: Callable[[Attribute], Graph]
    run: Callable[[Attribute, Sequence[Value]], list[Value]]


def branch(call: Call, bodies: Bodies) -> Sequence[Value]:
    """Rule of If."""
    condition = call.tensor(0)
    _require_shared(call, condition, "decides by")
    chosen = call.literals(0)
    if chosen is not None and len(chosen) == 1:
        return bodies.run(_graph(call, "then_branch" if chosen[0] else "else_branch"), [])
    one, other = bodies.run(_graph(call, "then_branch"), []), bodies.run(_graph(call, "else_branch"), [])
    if len(one) != len(other):
        raise call.refusal("with branches of different outputs")
    return [_named(call, joined(call.symbols, pair)) for pair in zip(one, other, strict=True)]


def loop(call: Call, bodies: Bodies) -> Sequence[Value]:
    """Rule of Loop: carried values are followed until nothing more becomes known of them."""
    for index in (0, 1):
        if (value := call.given(index)) is not None:
            _require_shared(call, value, "runs as often as says")
    body, start = _graph(call, "body"), [value or UNKNOWN_CONSTANT for value in call.inputs[2:]]
    # The number of the round is a scalar, or a vector where the body declares that.
    declared = bodies.graph_of(body).inputs[0].shape or ()
    counter = typed(constant([1] * len(declared)), INT64)
    carried, scanned = _settled(call, bodies, body, [counter, UNKNOWN_CONSTANT], start, has_condition=True)
    has_rounds = call.given(1) is None or call.literals(1) == [1]
    rounds = call.elements(0)
    has_rounds = has_rounds and rounds is not None and rounds.size == 1 and _is_positive(call, rounds.flat[0])
    return [*carried, *(_stacked(call, value, 0, has_rounds) for value in scanned)]


def _is_positive(call: Call, count: object) -> bool:
    return isinstance(count, int | Product) and call.symbols.least(count) > 0


def scan(call: Call, bodies: Bodies) -> Sequence[Value]:
    """Rule of Scan, from operator set 9 on: each scanned input along an axis that is not that of the rows."""
    count = call.integer("num_scan_inputs", 0)
    if call.version < 9 or not 0 < count <= len(call.inputs):
        raise call.refusal("of an operator set without a rule")
    state_count = len(call.inputs) - count
    axes = call.integers("scan_input_axes") or [0] * count
    scanned_inputs = [call.tensor(state_count + place) for place in range(count)]
    slices = [_sliced(call, value, axis) for value, axis in zip(scanned_inputs, axes, strict=True)]
    rounds = (scanned_inputs[0].shape or ())[axes[0]]
    start = [call.tensor(place) for place in range(state_count)]
    carried, scanned = _settled(call, bodies, _graph(call, "body"), [], start, tail=slices)
    output_axes = call.integers("scan_output_axes") or [0] * len(scanned)
    has_rounds = _is_positive(call, rounds)
    stacked = [_stacked(call, value, axis, has_rounds) for value, axis in zip(scanned, output_axes, strict=True)]
    return [*carried, *stacked]


def _settled(
    call: Call,
    bodies: Bodies,
    body: Attribute,
    head: Sequence[Value],
    start: Sequence[Value],
    has_condition: bool = False,
    tail: Sequence[Value] = (),
) -> tuple[list[Value], list[Value]]:
    """Carried values after the last round, and what the body yields beside them in each.

    A symbol of a carried size stands for that size at the begin of a round; after the last one it is another.
    """
    carried = [replace(value, elements=None) for value in start]
    key, changing = call.symbols.fresh(), set[Size]()
    for turn in range(_MOST_ROUNDS):
        outputs = bodies.run(body, [*head, *carried, *tail])
        if has_condition:
            _require_shared(call, outputs[0], "runs as often as says")
            outputs = outputs[1:]
        merged = [
            joined(call.symbols, pair, partial(_changing, call, changing, key, place), turn > 1)
            for place, pair in enumerate(zip(carried, outputs, strict=False))
        ]
        if len(merged) != len(carried):
            raise call.refusal("with a body of too few outputs")
        if all(same(one, other) for one, other in zip(merged, carried, strict=True)):
            final = [_named(call, _after(call, value, changing)) for value in carried]
            return final, outputs[len(carried) :]
        carried = merged
    raise call.refusal("carries values whose shape does not settle")


def _changing(call: Call, changing: set[Size], *key: object) -> Size:
    """The size of an axis at the begin of a round: the same symbol in every turn."""
    size = call.symbols.derived("carried", *key)
    changing.add(size)
    return size


def _after(call: Call, value: Value, changing: set[Size]) -> Value:
    if value.shape is None or value.kind is Kind.MIXED:
        return value
    return like(value, [call.symbols.fresh() if size in changing else size for size in value.shape], value.row)


def _graph(call: Call, name: str) -> Attribute:
    attribute = call.attributes.get(name)
    if attribute is None:
        raise call.refusal(f"without '{name}'")
    return attribute


def _require_shared(call: Call, value: Value, what: str) -> None:
    if value.kind is Kind.MIXED:
        raise call.refusal(f"{what} what mixes rows: {value.problem}")
    if value.kind is not Kind.CONSTANT:
        raise call.refusal(f"{what} {'the rows' if value.kind is Kind.ROWS else 'the number of rows'}")


def joined(
    symbols: Symbols, pair: Sequence[Value], size_of: Callable[[int], Size] | None = None, is_wide: bool = False
) -> Value:
    """What is known of a value that is one of two, whichever it is.

    Args:
        symbols: Maker of symbols.
        pair: The two.
        size_of: Makes the size of an axis whose sizes differ; a new symbol each time where that is left out.
        is_wide: Shapes that differ in rank are given up.
    """
    one, other = pair
    for value in pair:
        if value.kind is Kind.MIXED:
            return value
    if same(one, other):
        return one
    kinds, number = {one.kind, other.kind}, one.type if one.type == other.type else 0
    if kinds <= {Kind.CONSTANT, Kind.COUNT}:
        if Kind.COUNT in kinds:
            return typed(UNKNOWN_COUNT, number)
        if one.shape is None or other.shape is None or len(one.shape) != len(other.shape) or is_wide:
            return typed(UNKNOWN_CONSTANT, number)
        return typed(constant(_either(symbols, one.shape, other.shape, size_of)), number)
    if kinds == {Kind.ROWS} and one.row == other.row and one.row is not None:
        shapes = (one.shape or (), other.shape or ())
        if len(shapes[0]) == len(shapes[1]):
            return typed(rows(_either(symbols, *shapes, size_of), one.row), number)
    return mixed("")


def same(one: Value, other: Value) -> bool:
    """The same is known of both."""
    if (one.elements is None) != (other.elements is None) or (one.parts is None) != (other.parts is None):
        return False
    if one.elements is not None and not np.array_equal(one.elements, other.elements):  # type: ignore[arg-type]
        return False
    ones, others = one.parts or (), other.parts or ()
    if len(ones) != len(others) or not all(map(same, ones, others)):
        return False
    return replace(one, elements=None, parts=None) == replace(other, elements=None, parts=None)


def _either(
    symbols: Symbols, one: Sequence[Size], other: Sequence[Size], size_of: Callable[[int], Size] | None
) -> list[Size]:
    found = list[Size]()
    for place, (first, second) in enumerate(zip(one, other, strict=True)):
        if first == second:
            found.append(first)
        elif size_of is not None:
            found.append(size_of(place))
        else:
            found.append(symbols.fresh(min(symbols.least(first), symbols.least(second))))
    return found


def _named(call: Call, value: Value) -> Value:
    """Names the node where its branches or rounds first differ in their rows."""
    if value.kind is not Kind.MIXED or value.problem:
        return value
    node = call.node
    name = node.name or next(iter(node.outputs), "")
    return mixed(f"node '{name}' ({node.operator} yields rows in one case and others, or none, in another)")


def _sliced(call: Call, value: Value, axis: int) -> Value:
    if value.shape is None:
        raise call.refusal("of an unknown shape")
    place = axis_of(call, axis, len(value.shape))
    refuse_rows(call, value, place)
    row = value.row
    if row is not None and row.axis > place:
        row = RowAxis(row.axis - 1, row.before, row.after)
    return like(value, [*value.shape[:place], *value.shape[place + 1 :]], row)


def _stacked(call: Call, value: Value, axis: int, has_rounds: bool) -> Value:
    """One slice of each round along a new axis, whose length the rounds decide.

    Where there is no round, the runtime makes up the other sizes.
    """
    if value.kind is Kind.COUNT:
        return typed(UNKNOWN_COUNT, value.type)
    if value.kind is Kind.SEQUENCE:
        return mixed("")
    if value.kind is Kind.ROWS and not has_rounds:
        raise call.refusal("stacks rows and may have no rounds")
    if value.kind is Kind.MIXED or value.shape is None:
        return value if value.kind is Kind.MIXED else typed(UNKNOWN_CONSTANT, value.type)
    if not has_rounds:
        return typed(UNKNOWN_CONSTANT, value.type)
    place = axis_of(call, axis, len(value.shape) + 1)
    row = value.row
    if row is not None and row.axis >= place:
        row = RowAxis(row.axis + 1, row.before, row.after)
    return like(value, [*value.shape[:place], call.symbols.fresh(1), *value.shape[place:]], row)


CONTROL_FLOW: Final = {"If": branch, "Loop": loop, "Scan": scan}
