"""Rules of operators that pick by index, or cut, or pad."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rules, axis_of, refuse_rows
from fitserve_contract.joinability.positions import picks_own_rows
from fitserve_contract.joinability.rules_elements import slice_places
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.sizes import Product, Size, has_rows
from fitserve_contract.joinability.values import Kind, RowAxis, Value, constant, like, rows
from fitserve_contract.onnx_tensors import MAX_RANK


def gather(call: Call) -> Sequence[Value]:
    """Rule of Gather: rows of the data off the axis, or rows of the indices into what is the same for all."""
    data, indices, shape, places = call.tensor(0), call.tensor(1), call.shape(0), call.shape(1)
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    sizes = [*shape[:axis], *places, *shape[axis + 1 :]]
    if indices.row is not None:
        row = RowAxis(indices.row.axis + axis, indices.row.before, indices.row.after)
        if data.kind is Kind.CONSTANT and indices.kind is Kind.ROWS:
            return [rows(sizes, row)]
        # Row i picks from row i.
        if data.kind is Kind.ROWS and data.row is not None and picks_own_rows(indices, data.row, axis):
            return [rows(sizes, row)]
        raise call.refusal(f"over axis {axis} by indices of rows")
    refuse_rows(call, data, axis)
    if data.column_count:
        raise call.refusal("of columns")
    row_after = data.row
    if row_after is not None and row_after.axis > axis:
        row_after = RowAxis(row_after.axis + len(places) - 1, row_after.before, row_after.after)
    return [like(data, sizes, row_after)]


def gather_elements(call: Call) -> Sequence[Value]:
    """Rule of GatherElements: every place of the indices picks at the same place but for the axis."""
    data, indices, shape = call.tensor(0), call.tensor(1), call.shape(0)
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    places = call.shape(1)
    if data.kind is Kind.ROWS:
        refuse_rows(call, data, axis)
        if indices.kind is not Kind.ROWS or indices.row != data.row:
            raise call.refusal("by indices of other rows")
    elif indices.row is not None and indices.row.axis != axis:
        raise call.refusal("of a constant along the rows")
    return [value_like(indices, places)]


def gather_nd(call: Call) -> Sequence[Value]:
    """Rule of GatherND: in batches of rows, by indices whose first column is the row, or into a constant."""
    data, indices, shape, places = call.tensor(0), call.tensor(1), call.shape(0), call.shape(1)
    batches, depth = call.integer("batch_dims", 0), places[-1] if places else None
    if not isinstance(depth, int) or not 0 <= batches < len(places) or batches + depth > len(shape):
        raise call.refusal("of unknown depth")
    sizes = [*places[:-1], *shape[batches + depth :]]
    if indices.row is not None and indices.row.axis == len(places) - 1:
        raise call.refusal("by rows as indices")
    if data.kind is Kind.CONSTANT:
        if indices.row is not None and (indices.is_position or indices.row.axis < batches):
            raise call.refusal("of a constant along the rows")
        return [like(indices, sizes, indices.row)]
    row = data.row
    assert row is not None
    if row.axis < batches:
        if indices.kind is not Kind.ROWS or indices.row != row:
            raise call.refusal("by indices of other rows")
        return [rows(sizes, row)]
    if indices.is_position and indices.row is not None and indices.column_count == depth:
        if batches == 0 and row == RowAxis(0):
            return [rows(sizes, indices.row)]
        raise call.refusal("of rows that are not the first axis")
    if indices.row is not None or row.axis < batches + depth:
        raise call.refusal(f"over axis {row.axis}")
    return [rows(sizes, RowAxis(row.axis - batches - depth + len(places) - 1, row.before, row.after))]


def scatter_elements(call: Call) -> Sequence[Value]:
    """Rule of ScatterElements: all of the same rows, off the axis."""
    data, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    refuse_rows(call, data, axis)
    for index in (1, 2):
        if call.tensor(index).kind is not data.kind or call.tensor(index).row != data.row:
            raise call.refusal("of other rows")
    return [like(data, shape, data.row)]


def scatter_nd(call: Call) -> Sequence[Value]:
    """Rule of ScatterND: constant places off the row axis, or places whose first column is the row."""
    data, indices, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    shape, places = call.shape(0), call.shape(1)
    depth = places[-1] if places else None
    if not isinstance(depth, int) or updates.shape is None or data.kind is Kind.CONSTANT:
        raise call.refusal("of a constant, or of unknown depth")
    row = data.row
    assert row is not None
    if indices.is_position and indices.column_count == depth and row == RowAxis(0) and indices.row is not None:
        if updates.kind is Kind.ROWS and updates.row == indices.row:
            return [rows(shape, row)]
        raise call.refusal("of other rows")
    if indices.kind is not Kind.CONSTANT or row.axis < depth:
        raise call.refusal(f"over axis {row.axis}")
    expected = RowAxis(row.axis - depth + len(places) - 1, row.before, row.after)
    if updates.kind is not Kind.ROWS or updates.row != expected:
        raise call.refusal("of other rows")
    return [rows(shape, row)]


def slice_rule(call: Call) -> Sequence[Value]:
    """Rule of Slice: any part off the row axis, the whole along it."""
    value, shape = call.tensor(0), call.shape(0)
    starts, ends, axes, steps = _cuts(call, len(shape))
    result = list(shape)
    for place, axis in enumerate(axes):
        start, end, step = starts[place], ends[place], steps[place]
        if value.row is not None and value.row.axis == axis:
            # Exporters write 10**9, 2**31 - 1 or 2**63 - 1 for an open end.
            is_past = isinstance(end, int) and end >= call.symbols.range_of(shape[axis])[1]
            if not (start == 0 and step == 1 and (end == shape[axis] or is_past)):
                raise call.refusal(f"of axis {axis}")
            continue
        if any(part is None or has_rows(part) for part in (start, end, step)):
            raise call.refusal("by the number of rows")
        result[axis] = _cut_size(call, shape[axis], start, end, step)
    return [value_like(value, result)]


def _cuts(call: Call, rank: int) -> tuple[list[Size | None], list[Size | None], list[int], list[Size | None]]:
    if call.version < 10:
        starts: list[Size | None] = [*(call.integers("starts") or [])]
        ends: list[Size | None] = [*(call.integers("ends") or [])]
        given, steps = call.integers("axes"), None
    else:
        starts, ends = _numbers(call, 1), _numbers(call, 2)
        given = call.literals(3)
        if given is None and call.given(3) is not None:
            raise call.refusal("of axes that are not known")
        steps = None if call.given(4) is None else _numbers(call, 4)
    axes = [axis_of(call, axis, rank) for axis in (range(len(starts)) if given is None else given)]
    ones: list[Size | None] = [1] * len(axes)
    steps = ones if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)):
        raise call.refusal("of axes that are not known")
    return starts, ends, axes, steps


def _numbers(call: Call, index: int) -> list[Size | None]:
    numbers = call.numbers(index, 2 * MAX_RANK)
    if numbers is None:
        raise call.refusal("by numbers that are not known")
    return numbers


def _cut_size(call: Call, size: Size, start: Size | None, end: Size | None, step: Size | None) -> Size:
    """Elements that a slice keeps; a symbol where that is not known."""
    symbols = call.symbols
    most = symbols.range_of(size)[1]
    if isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
        if isinstance(size, int) and (places := slice_places(size, start, end, step)) is not None:
            return len(places)
        if start == 0 and step == 1 and end >= most:
            return size
    if start == 0 and step == 1 and end == size:
        return size
    if start == 0 and step == 1 and isinstance(end, Product) and symbols.least(end) >= 0:
        ranges = [symbols.range_of(size), symbols.range_of(end)]
        return symbols.derived("head", size, end, span=(min(r[0] for r in ranges), min(r[1] for r in ranges)))
    return symbols.derived("slice", size, start, end, step, span=(0, most))


def pad(call: Call) -> Sequence[Value]:
    """Rule of Pad: off the row axis."""
    value, shape = call.tensor(0), call.shape(0)
    if call.version < 11:
        pads: list[Size | None] = [*(call.integers("pads") or [])]
        axes = list(range(len(shape)))
    else:
        pads = _numbers(call, 1)
        call.require_constants(2)
        given = call.literals(3)
        if given is None and call.given(3) is not None:
            raise call.refusal("of axes that are not known")
        axes = list(range(len(shape))) if given is None else [axis_of(call, axis, len(shape)) for axis in given]
    if len(pads) != 2 * len(axes):
        raise call.refusal("by numbers that are not known")
    result = list(shape)
    for place, axis in enumerate(axes):
        before, after = pads[place], pads[place + len(axes)]
        if value.row is not None and value.row.axis == axis:
            if before != 0 or after != 0:
                raise call.refusal(f"of axis {axis}")
        elif any(part is None or has_rows(part) for part in (before, after)):
            raise call.refusal("by the number of rows")
        elif isinstance(before, int) and isinstance(after, int):
            result[axis] = _padded(call, shape[axis], before + after)
        else:
            result[axis] = call.symbols.derived("pad", shape[axis], before, after)
    return [value_like(value, result)]


def _padded(call: Call, size: Size, total: int) -> Size:
    if isinstance(size, int):
        if size + total < 0:
            raise call.refusal("of more than there is")
        return size + total
    low, high = call.symbols.range_of(size)
    return size if total == 0 else call.symbols.derived("pad", size, total, span=(max(low + total, 0), high + total))


def compress(call: Call) -> Sequence[Value]:
    """Rule of Compress: along a given axis, by what is the same for all."""
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    if "axis" not in call.attributes:
        raise call.refusal("of all axes")
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    refuse_rows(call, value, axis)
    return [value_like(value, [*shape[:axis], call.symbols.fresh(), *shape[axis + 1 :]])]


def reverse_sequence(call: Call) -> Sequence[Value]:
    """Rule of ReverseSequence: each row by its own length."""
    value, lengths, shape = call.tensor(0), call.tensor(1), call.shape(0)
    batch, time = call.integer("batch_axis", 1), call.integer("time_axis", 0)
    if value.row is None and lengths.row is None:
        return [constant(shape)]
    if value.row != RowAxis(batch) or lengths.row != RowAxis(0) or batch == time:
        raise call.refusal("of other rows")
    return [value_like(value, shape)]


RULES: Rules = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Pad": pad,
    "ReverseSequence": reverse_sequence,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_rule,
}
