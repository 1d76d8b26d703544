"""Rules of operators that move elements without looking at them."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rules, axis_of, refuse_rows
from fitserve_contract.joinability.positions import counted_rows
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.sizes import INT64, ROW_COUNT, Size, divide, has_rows, times, times_all
from fitserve_contract.joinability.values import Kind, RowAxis, Value, constant, like, regrouped, rows, vector
from fitserve_contract.onnx_tensors import MAX_RANK, MAX_VALUES


def shape_text(shape: Sequence[Size | None]) -> str:
    """Returns a shape for messages; what is not known is '?'."""
    names = [str(size) if isinstance(size, int) else "N" if size == ROW_COUNT else "?" for size in shape]
    return f"({', '.join(names)})"


def reshaped(call: Call, value: Value, target: Sequence[Size]) -> Value:
    """A tensor of as many elements in the same order; refuses where rows no longer lie along one axis."""
    if value.row is None or value.shape is None:
        if any(has_rows(size) for size in target):
            raise call.refusal(f"of what carries no rows to {shape_text(target)}")
        return like(value, target, None)
    row = regrouped(value.shape, value.row, target)
    if row is None or value.column_count:
        raise call.refusal(f"to {shape_text(target)} tears rows apart or merges them")
    return like(value, target, row)


def reshape(call: Call) -> Sequence[Value]:
    """Rule of Reshape: 0 copies a size, -1 is what is left."""
    value, asked = call.tensor(0), _asked(call)
    target = [_wanted(call, value, place, size) for place, size in enumerate(asked)]
    if -1 not in target:
        return [reshaped(call, value, target)]
    place = target.index(-1)
    others = target[:place] + target[place + 1 :]
    if -1 in others:
        raise call.refusal("to a shape with two sizes left open")
    left = _left(call, value, times_all(others))
    return [reshaped(call, value, [*others[:place], left, *others[place:]])]


def _asked(call: Call) -> list[Size | None]:
    if call.version < 5:
        return [*(call.integers("shape") or [])]
    asked = call.numbers(1, MAX_RANK)
    if asked is None:
        raise call.refusal("to a shape that is not known")
    return asked


def _wanted(call: Call, value: Value, place: int, size: Size | None) -> Size:
    """A size of the result, or -1. A number that may be 0 or -1 is none, but one that 0 copies is itself."""
    if size == 0 and not call.integer("allowzero", 0):
        if value.shape is None or place >= len(value.shape):
            raise call.refusal("with a size of an unknown shape")
        return value.shape[place]
    if size is None:
        raise call.refusal("to a size that depends on the number of rows")
    least = call.symbols.least(size)
    is_copied = value.shape is not None and value.shape[place : place + 1] == (size,)
    if isinstance(size, int) or least > 0 or (least == 0 and is_copied):
        return size
    if value.kind is Kind.CONSTANT:
        return call.symbols.fresh()
    raise call.refusal("to a size that may be 0 or -1")


def _left(call: Call, value: Value, known: Size) -> Size:
    """What -1 stands for: the elements that the other axes leave."""
    if value.shape is None:
        if has_rows(known):
            raise call.refusal("of an unknown shape to rows")
        return call.symbols.fresh()
    total = times_all(value.shape)
    left = divide(total, known)
    if left is not None:
        return left
    if has_rows(total) != has_rows(known):
        raise call.refusal("leaves rows to an axis that may hold other sizes, too")
    rest, other = divide(total, ROW_COUNT), divide(known, ROW_COUNT)
    total, known = rest if rest is not None else total, other if other is not None else known
    least, most = call.symbols.range_of(total)
    return call.symbols.derived("left", total, known, span=(min(least, 1), most))


def flatten(call: Call) -> Sequence[Value]:
    """Rule of Flatten: to two axes."""
    shape = call.shape(0)
    axis = call.integer("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    if not 0 <= axis <= len(shape):
        raise call.refusal(f"over axis {axis} of {len(shape)}")
    return [reshaped(call, call.tensor(0), [times_all(shape[:axis]), times_all(shape[axis:])])]


def _axes(call: Call, rank: int, input_from: int) -> list[int] | None:
    """Axes from the attribute or, from an operator set on, from the second input; None where there are none."""
    if call.version < input_from:
        axes = call.integers("axes")
    elif call.given(1) is None:
        axes = None
    else:
        axes = call.literals(1)
        if axes is None:
            raise call.refusal("over axes that are not known")
    return [axis_of(call, axis, rank) for axis in axes] if axes else None


def squeeze(call: Call) -> Sequence[Value]:
    """Rule of Squeeze."""
    value, shape = call.tensor(0), call.shape(0)
    axes = _axes(call, len(shape), 13)
    if axes is None:
        if not all(isinstance(size, int) for size in shape):
            raise call.refusal("of every axis that is 1, the rows among them where there is one")
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    for axis in axes:
        refuse_rows(call, value, axis)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    return [_moved(value, kept)]


def _moved(value: Value, kept: Sequence[int]) -> Value:
    """A tensor of the axes `kept`, in that order; -1 is a new one of size 1."""
    shape = value.shape or ()
    row = None if value.row is None else RowAxis(kept.index(value.row.axis), value.row.before, value.row.after)
    return like(value, [1 if axis < 0 else shape[axis] for axis in kept], row)


def unsqueeze(call: Call) -> Sequence[Value]:
    """Rule of Unsqueeze."""
    axes = call.integers("axes") if call.version < 13 else call.literals(1)
    if axes is None:
        raise call.refusal("of axes that are not known")
    return [unsqueezed(call, call.tensor(0), axes)]


def unsqueezed(call: Call, value: Value, axes: Sequence[int]) -> Value:
    """A tensor with new axes of size 1, counted in the result."""
    if value.shape is None or len(axes) > MAX_RANK:
        raise call.refusal("of an unknown shape")
    rank = len(value.shape) + len(axes)
    places = {axis_of(call, axis, rank) for axis in axes}
    if len(places) != len(axes):
        raise call.refusal("of an axis twice")
    old = iter(range(len(value.shape)))
    kept = [-1 if axis in places else next(old) for axis in range(rank)]
    if value.column_count and kept[-1] < 0:
        raise call.refusal("of columns")
    return _moved(value, kept)


def transpose(call: Call) -> Sequence[Value]:
    """Rule of Transpose."""
    value, shape = call.tensor(0), call.shape(0)
    order = call.integers("perm") or list(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))) or value.column_count:
        raise call.refusal(f"by {order}")
    return [_moved(value, order)]


def expand(call: Call) -> Sequence[Value]:
    """Rule of Expand: to the number of rows makes rows of what is the same for all."""
    value, shape = call.tensor(0), call.shape(0)
    asked = call.numbers(1, MAX_RANK)
    if asked is None or any(size is None or call.symbols.least(size) < 0 for size in asked):
        raise call.refusal("to a shape that is not known")
    target = [size for size in asked if size is not None]
    rank = max(len(shape), len(target))
    sizes: list[Size] = [*[1] * (rank - len(shape)), *shape]
    target = [*[1] * (rank - len(target)), *target]
    row = value.row and RowAxis(value.row.axis + rank - len(shape), value.row.before, value.row.after)
    result = list[Size]()
    for axis, (size, wanted) in enumerate(zip(sizes, target, strict=True)):
        if row is not None and axis == row.axis:
            if wanted not in (1, size):
                raise call.refusal(f"of axis {axis}, the rows, to another size")
        elif has_rows(wanted):
            inner = divide(wanted, ROW_COUNT)
            if row is not None or size != 1 or inner is None or has_rows(inner):
                raise call.refusal(f"to {shape_text(target)}: the number of rows along another axis")
            row = RowAxis(axis, 1, inner)
        result.append(size if row is not None and axis == row.axis else call.symbols.broadcast(size, wanted))
    return [_with_row(value, result, row)]


def _with_row(value: Value, shape: Sequence[Size], row: RowAxis | None) -> Value:
    if value.kind is Kind.CONSTANT and row is not None:
        return rows(shape, row)
    return like(value, shape, row)


def tile(call: Call) -> Sequence[Value]:
    """Rule of Tile: as often as there are rows makes rows of what is the same for all."""
    value, shape = call.tensor(0), call.shape(0)
    counts = call.numbers(1, MAX_RANK)
    if counts is None or len(counts) != len(shape) or any(isinstance(c, int) and c < 0 for c in counts):
        raise call.refusal("by counts that are not known")
    row, result = value.row, list[Size]()
    for axis, (size, count) in enumerate(zip(shape, counts, strict=True)):
        if count is None:
            raise call.refusal("by counts that depend on the number of rows")
        if has_rows(count):
            before = divide(count, ROW_COUNT)
            if row is not None or before is None or has_rows(before):
                raise call.refusal(f"along axis {axis} by the number of rows")
            row = RowAxis(axis, before, size)
        elif row is not None and row.axis == axis:
            row = RowAxis(axis, times(count, row.before), row.after)
        result.append(times(size, count))
    return [_with_row(value, result, row)]


def concat(call: Call) -> Sequence[Value]:
    """Rule of Concat: off the row axis; along it only where all have the same rows, one copy behind the other."""
    values = [value for value in call.inputs if value is not None]
    if any(value.shape is None for value in values):
        raise call.refusal("of unknown shapes")
    shapes = [value.shape or () for value in values]
    if len({len(shape) for shape in shapes}) > 1 or any(0 in shape for shape in shapes):
        raise call.refusal("of tensors of different ranks, or without elements")
    axis = axis_of(call, call.integer("axis", 1), len(shapes[0]))
    found = [value.row for value in values if value.kind is Kind.ROWS and value.row is not None]
    result = list(shapes[0])
    result[axis] = _sum(call, [shape[axis] for shape in shapes])
    if not found:
        return [constant(result)]
    if len(found) != len(values):
        raise call.refusal(f"over axis {axis} of rows and constants")
    if all(row.axis == axis for row in found):
        if len({row.after for row in found}) > 1:
            raise call.refusal(f"over axis {axis}")
        return [rows(result, RowAxis(axis, _sum(call, [row.before for row in found]), found[0].after))]
    if len(set(found)) > 1:
        raise call.refusal(f"over axis {axis} of rows along different axes")
    result[found[0].axis] = 1
    return [rows(result, found[0])]


def _sum(call: Call, sizes: Sequence[Size]) -> Size:
    literal = [size for size in sizes if isinstance(size, int)]
    if len(literal) == len(sizes):
        return sum(literal)
    if any(has_rows(size) for size in sizes):
        return 1
    return call.symbols.derived("sum", *sizes, span=(sum(map(call.symbols.least, sizes)), INT64[1]))


def split(call: Call) -> Sequence[Value]:
    """Rule of Split."""
    value, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    count = len(call.node.outputs)
    parts: list[Size | None] | None = call.integers("split") if call.version < 13 else None  # type: ignore[assignment]
    if call.version >= 13 and call.given(1) is not None:
        parts = call.numbers(1, MAX_VALUES)
        if parts is None and call.tensor(1).kind is not Kind.CONSTANT:
            raise call.refusal("by what rows say")
    elif parts is None:
        size = shape[axis]
        whole = divide(size, count)
        parts = [whole] * count if whole is not None else _uneven(size, count)
    if value.row is not None and value.row.axis == axis:
        one = times(ROW_COUNT, value.row.after)
        is_each = parts is not None and len(parts) == count == value.row.before and all(part == one for part in parts)
        if not is_each or value.kind is not Kind.ROWS:
            raise call.refusal(f"over axis {axis}")
        return [rows(shape, RowAxis(axis, 1, value.row.after))] * count
    if parts is not None and any(part is None or has_rows(part) for part in parts):
        raise call.refusal("by the number of rows")
    if parts is None or len(parts) != count:
        parts = [call.symbols.fresh() for _ in range(count)]
    found = [part if part is not None and call.symbols.least(part) >= 0 else call.symbols.fresh() for part in parts]
    return [value_like(value, [*shape[:axis], part, *shape[axis + 1 :]]) for part in found]


def _uneven(size: Size, count: int) -> list[Size | None] | None:
    """From operator set 18 on, the last part is smaller."""
    if not isinstance(size, int):
        return None
    each = -(-size // count)
    if each * (count - 1) > size:
        return None
    return [*[each] * (count - 1), size - each * (count - 1)]


def depth_to_space(call: Call) -> Sequence[Value]:
    """Rule of DepthToSpace and SpaceToDepth: rows on the first axis."""
    value, shape = call.tensor(0), call.shape(0)
    if len(shape) != 4 or (value.row is not None and value.row.axis != 0):
        raise call.refusal("of rows that are not the first axis")
    block = call.integer("blocksize", 1)
    depth, height, width = shape[1:]
    if call.node.operator == "DepthToSpace":
        sizes = [divide(depth, block * block), times(height, block), times(width, block)]
    else:
        sizes = [times(depth, block * block), divide(height, block), divide(width, block)]
    return [value_like(value, [shape[0], *(size if size is not None else call.symbols.fresh() for size in sizes)])]


def shape_of(call: Call) -> Sequence[Value]:
    """Rule of Shape."""
    shape = call.shape(0)
    asked = shape[slice(call.integer("start", 0), call.integer("end", len(shape)))]
    return [vector([_exact(call, size) for size in asked])]


def _exact(call: Call, size: Size) -> Size | None:
    """A size as a number. Sizes of a tensor without elements may be larger than memory, and so be computed wrongly."""
    if call.symbols.is_exact(size):
        return size
    if not any(map(call.symbols.may_be_empty, call.shape(0))):
        return size
    return None if has_rows(size) else call.symbols.derived("size", size)


def size_of(call: Call) -> Sequence[Value]:
    """Rule of Size."""
    return [scalar(_exact(call, times_all(call.shape(0))))]


def scalar(size: Size | None) -> Value:
    """A tensor of one size, without axes."""
    value = vector([size])
    assert value.elements is not None
    return Value(value.kind, (), None, value.elements.reshape(()))


def constant_of_shape(call: Call) -> Sequence[Value]:
    """Rule of ConstantOfShape: as large as the rows are many, it carries them."""
    sizes = call.numbers(0, MAX_RANK)
    if sizes is None or any(size is None or (isinstance(size, int) and size < 0) for size in sizes):
        raise call.refusal("of a shape that is not known")
    shape = [size for size in sizes if size is not None]
    places = [axis for axis, size in enumerate(shape) if has_rows(size)]
    if not places:
        return [constant(shape)]
    inner = divide(shape[places[0]], ROW_COUNT)
    if len(places) > 1 or inner is None or has_rows(inner):
        raise call.refusal(f"of {shape_text(shape)}: the number of rows along two axes")
    return [rows(shape, RowAxis(places[0], 1, inner))]


def range_of(call: Call) -> Sequence[Value]:
    """Rule of Range: up to the number of rows, it counts them."""
    start, limit, step = (None if (e := call.elements(i)) is None or e.size != 1 else e.flat[0] for i in range(3))
    if start == 0 and step == 1 and limit is not None:
        if limit == ROW_COUNT:
            return [counted_rows()]
        if not isinstance(limit, float) and not has_rows(limit):
            is_size = call.symbols.least(limit) >= 0
            size = limit if is_size else call.symbols.derived("range", limit)
            return [Value(Kind.CONSTANT, (size,), below=size)]
    if any(value is not None and value.kind is not Kind.CONSTANT for value in call.inputs):
        raise call.refusal("reads the number of rows")
    return [constant([call.symbols.derived("range", start, limit, step) if None not in (start, limit, step)
                      else call.symbols.fresh()])]  # fmt: skip


RULES: Rules = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Range": range_of,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "SpaceToDepth": depth_to_space,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
