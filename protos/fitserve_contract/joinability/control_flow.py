"""Rules of If, Loop and Scan: what they decide by must be the same for every row; what they carry keeps its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from fitserve_contract.joinability.calls import Call, axis_of, refuse_rows
from fitserve_contract.joinability.sizes import Size, Symbols
from fitserve_contract.joinability.values import (
    UNKNOWN_CONSTANT,
    UNKNOWN_COUNT,
    Kind,
    RowAxis,
    Value,
    constant,
    like,
    mixed,
    rows,
)
from fitserve_contract.onnx_graph import Attribute

Run = Callable[[Attribute, Sequence[Value]], list[Value]]
"""Runs a body on the values of its inputs."""

_MOST_ROUNDS = 8


def branch(call: Call, run: Run) -> Sequence[Value]:
    """Rule of If."""
    condition = call.tensor(0)
    _require_shared(call, condition, "decides by")
    chosen = call.literals(0)
    if chosen is not None and len(chosen) == 1:
        return run(_graph(call, "then_branch" if chosen[0] else "else_branch"), [])
    one, other = run(_graph(call, "then_branch"), []), run(_graph(call, "else_branch"), [])
    if len(one) != len(other):
        raise call.refusal("with branches of different outputs")
    return [_named(call, joined(call.symbols, pair)) for pair in zip(one, other, strict=True)]


def loop(call: Call, run: Run) -> Sequence[Value]:
    """Rule of Loop: carried values are followed until nothing more becomes known of them."""
    for index in (0, 1):
        if (value := call.given(index)) is not None:
            _require_shared(call, value, "runs as often as says")
    body, start = _graph(call, "body"), [value or UNKNOWN_CONSTANT for value in call.inputs[2:]]
    carried, scanned = _settled(call, run, body, [constant(()), constant(())], start, has_condition=True)
    return [*carried, *(_stacked(call, value, 0) for value in scanned)]


def scan(call: Call, run: Run) -> Sequence[Value]:
    """Rule of Scan, from operator set 9 on: each scanned input along an axis that is not that of the rows."""
    count = call.integer("num_scan_inputs", 0)
    if call.version < 9 or not 0 < count <= len(call.inputs):
        raise call.refusal("of an operator set without a rule")
    state_count = len(call.inputs) - count
    axes = call.integers("scan_input_axes") or [0] * count
    slices = [_sliced(call, call.tensor(state_count + place), axes[place]) for place in range(count)]
    start = [call.tensor(place) for place in range(state_count)]
    carried, scanned = _settled(call, run, _graph(call, "body"), [], start, tail=slices)
    output_axes = call.integers("scan_output_axes") or [0] * len(scanned)
    return [*carried, *(_stacked(call, value, axis) for value, axis in zip(scanned, output_axes, strict=True))]


def _settled(
    call: Call,
    run: Run,
    body: Attribute,
    head: Sequence[Value],
    start: Sequence[Value],
    has_condition: bool = False,
    tail: Sequence[Value] = (),
) -> tuple[list[Value], list[Value]]:
    """Carried values that hold before and after every round, and what the body yields beside them."""
    carried = [Value(v.kind, v.shape, v.row, None, v.problem, v.is_position, v.column_count, v.parts) for v in start]
    for turn in range(_MOST_ROUNDS):
        outputs = run(body, [*head, *carried, *tail])
        if has_condition:
            _require_shared(call, outputs[0], "runs as often as says")
            outputs = outputs[1:]
        merged = [
            joined(call.symbols, pair, f"{id(body)}.{place}", turn > 1)
            for place, pair in enumerate(zip(carried, outputs, strict=False))
        ]
        if len(merged) != len(carried):
            raise call.refusal("with a body of too few outputs")
        if merged == carried:
            return [_named(call, value) for value in carried], outputs[len(carried) :]
        carried = merged
    raise call.refusal("carries values whose shape does not settle")


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


def joined(symbols: Symbols, pair: Sequence[Value], key: str = "", is_wide: bool = False) -> Value:
    """What is known of a value that is one of two, whichever it is.

    Args:
        symbols: Maker of symbols.
        pair: The two.
        key: Where they come from: sizes that differ get the same symbol each time.
        is_wide: Shapes that differ in rank are given up.
    """
    one, other = pair
    for value in pair:
        if value.kind is Kind.MIXED:
            return value
    if _same(one, other):
        return one
    kinds = {one.kind, other.kind}
    if kinds <= {Kind.CONSTANT, Kind.COUNT}:
        if Kind.COUNT in kinds:
            return UNKNOWN_COUNT
        if one.shape is None or other.shape is None or len(one.shape) != len(other.shape) or is_wide:
            return UNKNOWN_CONSTANT
        return constant(_either(symbols, one.shape, other.shape, key))
    if kinds == {Kind.ROWS} and one.row == other.row and one.row is not None:
        shapes = (one.shape or (), other.shape or ())
        if len(shapes[0]) == len(shapes[1]):
            return rows(_either(symbols, *shapes, key), one.row)
    return mixed("")


def _same(one: Value, other: Value) -> bool:
    is_known = (one.elements is None) == (other.elements is None)
    if not is_known or (one.elements is not None and not np.array_equal(one.elements, other.elements)):  # type: ignore[arg-type]
        return False
    layout = (one.kind, one.shape, one.row, one.is_position, one.column_count, one.parts)
    return layout == (other.kind, other.shape, other.row, other.is_position, other.column_count, other.parts)


def _either(symbols: Symbols, one: Sequence[Size], other: Sequence[Size], key: str) -> list[Size]:
    """Sizes that differ get a symbol of their own; in a loop, the same one in every round."""
    found = list[Size]()
    for place, (first, second) in enumerate(zip(one, other, strict=True)):
        if first == second:
            found.append(first)
        elif key:
            found.append(symbols.derived("carried", key, place))
        else:
            found.append(symbols.fresh())
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


def _stacked(call: Call, value: Value, axis: int) -> Value:
    """One slice of each round along a new axis, whose length the rounds decide."""
    if value.kind is Kind.MIXED or value.shape is None:
        return value if value.kind is not Kind.COUNT else UNKNOWN_COUNT
    if value.kind in (Kind.COUNT, Kind.SEQUENCE):
        return UNKNOWN_COUNT if value.kind is Kind.COUNT else mixed("")
    place = axis_of(call, axis, len(value.shape) + 1)
    row = value.row
    if row is not None and row.axis >= place:
        row = RowAxis(row.axis + 1, row.before, row.after)
    return like(value, [*value.shape[:place], call.symbols.fresh(), *value.shape[place:]], row)


CONTROL_FLOW: Final = {"If": branch, "Loop": loop, "Scan": scan}
