"""What becomes of the places of rows that a graph counts, to pick for each row from that row.

A place is the row's index times a stride, plus an offset below that stride: an element of row i where (N, stride) lies
flat.
"""

from __future__ import annotations

from dataclasses import replace

from fitserve_contract.joinability.calls import Call, broadcast
from fitserve_contract.joinability.element_types import INTEGER_RANGES, result_type
from fitserve_contract.joinability.rules_elementwise import BROADCASTING
from fitserve_contract.joinability.sizes import ROW_COUNT, Product, Size, Symbols, has_rows, times
from fitserve_contract.joinability.values import Kind, RowAxis, Value, typed

MOVING = frozenset(("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators that keep the elements of their first input, as a set."""


def counted_rows() -> Value:
    """0, 1, ... up to the number of rows."""
    return Value(Kind.COUNT, (ROW_COUNT,), RowAxis(0), is_position=True, below=1)


def bound(value: Value) -> Size | None:
    """Returns what all elements, none of them negative, are below; None where that is not known."""
    elements = value.elements
    if elements is None:
        return value.below
    if elements.size and all(isinstance(element, int) and element >= 0 for element in elements.flat):
        return int(max(elements.flat)) + 1
    return None


def of_positions(call: Call) -> Value | None:
    """Returns what a node makes of places of rows; None where there are none, or its ordinary rule decides."""
    given = [value for value in call.inputs if value is not None]
    if not any(value.kind is Kind.COUNT and value.row is not None for value in given):
        return None
    operator = call.node.operator
    if operator in BROADCASTING:
        # Places that are computed with are as long as they were, whatever else becomes of them.
        shaped = broadcast(call, given)
        plain = Value(Kind.COUNT, shaped.shape, shaped.row, type=result_type(call, 0))
        moved = _moved(call, given, plain)
        return moved or (None if any(v.kind is Kind.ROWS for v in given) else plain)
    if operator == "Concat":
        return _columns(call, given)
    if operator == "Cast" and _fits(call.symbols, given[0], call.integer("to", 0)):
        return typed(given[0], call.integer("to", 0))
    return None


def _fits(symbols: Symbols, value: Value, number: int) -> bool:
    """Every place, and the offset that is added to it, is in the range of the type."""
    span = INTEGER_RANGES.get(number)
    ends = [value.below, times(ROW_COUNT, value.stride) if value.is_position else 0]
    if span is None or value.below is None or any(not symbols.is_exact(end or 0) for end in ends):
        return False
    return sum(symbols.range_of(end or 0)[1] for end in ends) <= span[1]


def _moved(call: Call, given: list[Value], plain: Value) -> Value | None:
    """Places times a size, or plus an offset; None where the result is no place."""
    operator = call.node.operator
    if len(given) != 2:
        return None
    places, other = given if given[0].is_position else reversed(given)
    if not places.is_position or places.column_count or other.kind is Kind.COUNT or plain.row is None:
        return None
    if operator == "Mul" and places.below == 1 and other.elements is not None and other.elements.size == 1:
        factor = other.elements.flat[0]
        if (isinstance(factor, Product) or type(factor) is int) and call.symbols.least(factor) > 0:
            moved = replace(plain, is_position=True, stride=times(places.stride, factor), below=1)
            return moved if _fits(call.symbols, moved, plain.type) else None
    added = bound(other) if operator == "Add" else None
    if added is None or places.below is None or has_rows(added):
        return None
    if places.below == 1 or added == 1:
        below = added if places.below == 1 else places.below
    elif isinstance(places.below, int) and isinstance(added, int):
        below = places.below + added - 1
    else:
        return None
    return replace(plain, is_position=True, stride=places.stride, below=below)


def _columns(call: Call, values: list[Value]) -> Value | None:
    """The index columns that a Concat over the last axis makes, the first of which is the row."""
    first, axis = values[0], call.integer("axis", 1)
    if not is_row_index(first) or first.row is None or first.shape is None or first.shape[-1] != 1:
        return None
    rank = len(first.shape)
    if first.row.axis == rank - 1 or axis not in (-1, rank - 1) or not first.row.is_plain:
        return None
    for value in values[1:]:
        is_same = value.kind is Kind.ROWS and value.row == first.row
        if not is_same or value.shape is None or len(value.shape) != rank or value.shape[-1] != 1:
            return None
    return replace(first, shape=(*first.shape[:-1], len(values)), column_count=len(values))


def is_row_index(value: Value) -> bool:
    """Each element is the index of its row and nothing else."""
    return value.is_position and value.stride == 1 and value.below == 1 and not value.column_count


def picks_own_rows(places: Value, row: RowAxis, axis: int) -> bool:
    """Indices along that axis, on which the rows lie, pick for row i from row i."""
    if not places.is_position or places.column_count or row.axis != axis or row.before != 1:
        return False
    if places.stride != row.after or places.below is None:
        return False
    is_below = isinstance(places.below, int) and isinstance(row.after, int) and places.below <= row.after
    return places.below == row.after or is_below


def kept_bound(call: Call, made: Value) -> Value:
    """The result of an operator that only moves elements, with the bound of its input."""
    source = call.given(0)
    if (
        source is None
        or source.kind is not Kind.CONSTANT
        or made.kind is not Kind.CONSTANT
        or made.elements is not None
    ):
        return made
    kept = replace(made, below=bound(source))
    if call.node.operator == "Cast" and not _fits(call.symbols, kept, call.integer("to", 0)):
        return made
    return kept
