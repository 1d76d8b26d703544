"""Rules of matrix products: rows among the batch axes or along the first operand's own axis, never summed over."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rules, broadcast, refuse_rows
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.sizes import Size
from fitserve_contract.joinability.values import Kind, RowAxis, Value, constant, like, rows


def transposed(value: Value, is_transposed: bool) -> Value:
    """The tensor with its last two axes swapped, if so."""
    if not is_transposed or value.shape is None or len(value.shape) < 2:
        return value
    last = len(value.shape) - 1
    row = value.row
    if row is not None and row.axis >= last - 1:
        row = RowAxis(2 * last - 1 - row.axis, row.before, row.after)
    return like(value, [*value.shape[:-2], value.shape[-1], value.shape[-2]], row)


def product(call: Call, left: Value, right: Value) -> Value:
    """Multiplies (..., M, K) by (..., K, P) as numpy's matmul does; one axis alone is K."""
    if left.shape is None or right.shape is None:
        raise call.refusal("of unknown shapes")
    if not left.shape or not right.shape:
        raise call.refusal("of scalars")
    one = left if len(left.shape) > 1 else _with_axis(left, 0)
    other = right if len(right.shape) > 1 else _with_axis(right, 1)
    summed = ((one.shape or ())[-1], (other.shape or ())[-2])
    if 0 in summed or all(call.symbols.may_be_empty(size) for size in summed):
        # ONNX Runtime leaves the result of a sum over nothing as it found the memory.
        raise call.refusal("sums over an axis that may have no elements")
    refuse_rows(call, one, len(one.shape or ()) - 1)
    refuse_rows(call, other, len(other.shape or ()) - 2)
    # (..., M, 1) and (..., 1, P) broadcast to (..., M, P): the same rows on both sides, or rows on one of them.
    result = broadcast(call, [_last(one, -1), _last(other, -2)])
    shape, row = result.shape or (), result.row
    own = {axis for axis in (len(shape) - 2, len(shape) - 1) if row is not None and row.axis == axis}
    if own and Kind.CONSTANT not in (left.kind, right.kind):
        raise call.refusal("of rows by rows")
    dropped = {len(shape) - 2} if len(left.shape) == 1 else set()
    dropped |= {len(shape) - 1} if len(right.shape) == 1 else set()
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    moved = None if row is None else RowAxis(kept.index(row.axis), row.before, row.after)
    return like(result, [shape[axis] for axis in kept], moved)


def _with_axis(vector: Value, place: int) -> Value:
    shape = vector.shape or ()
    row = vector.row
    if row is not None:
        row = RowAxis(1 - place, row.before, row.after)
    return like(vector, [1, *shape] if place == 0 else [*shape, 1], row)


def _last(value: Value, axis: int) -> Value:
    """The tensor with the axis that is summed over set to 1."""
    shape = list(value.shape or ())
    shape[axis] = 1
    return value_like(value, shape)


def matmul(call: Call) -> Sequence[Value]:
    """Rule of MatMul."""
    call.require_constants(2)
    return [product(call, call.tensor(0), call.tensor(1))]


def gemm(call: Call) -> Sequence[Value]:
    """Rule of Gemm."""
    left = transposed(call.tensor(0), bool(call.integer("transA", 0)))
    right = transposed(call.tensor(1), bool(call.integer("transB", 0)))
    if left.rank != 2 or right.rank != 2:
        raise call.refusal("of unknown shapes")
    result = product(call, left, right)
    bias = call.given(2)
    if bias is None:
        return [result]
    if result.kind is Kind.CONSTANT and bias.kind is Kind.ROWS:
        raise call.refusal("of constants with a bias of rows")
    return [_with_bias(call, result, bias)]


def _with_bias(call: Call, result: Value, bias: Value) -> Value:
    """The bias is broadcast to the product and never widens it."""
    broadcast(call, [result, bias])
    return result


def fused_matmul(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's FusedMatMul."""
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise call.refusal("with transposed batches")
    left = transposed(call.tensor(0), bool(call.integer("transA", 0)))
    return [product(call, left, transposed(call.tensor(1), bool(call.integer("transB", 0))))]


def integer_matmul(call: Call) -> Sequence[Value]:
    """Rule of MatMulInteger: a zero point for all, or for each row of the first operand."""
    left, zero = call.tensor(0), call.given(2)
    call.require_constants(3)
    if zero is not None and zero.shape not in ((), (1,)):
        if zero.shape is None or left.shape is None:
            raise call.refusal("with a zero point of unknown shape")
        axis = len(left.shape) - 2
        is_rows = left.row is not None and left.row.axis == axis
        if zero.kind is Kind.ROWS:
            row = zero.row
            is_same = row is not None and left.row is not None and (row.before, row.after) == (
                left.row.before, left.row.after)  # fmt: skip
            is_column = zero.rank == left.rank and row == left.row and zero.shape[-1] == 1
            if not (is_column or (zero.rank == 1 and is_rows and is_same)):
                raise call.refusal("with zero points of other rows")
        elif is_rows or (zero.rank != 1 and left.kind is Kind.ROWS):
            raise call.refusal(f"with constant zero points along axis {axis}, the rows")
    elif zero is not None and zero.kind is not Kind.CONSTANT:
        raise call.refusal("with a zero point of rows for all")
    return [product(call, left, call.tensor(1))]


def quantized_matmul(call: Call) -> Sequence[Value]:
    """Rule of QLinearMatMul: a, scale, zero point, b, scale, zero point, scale, zero point; those of `a` for all."""
    for index in (1, 2, 4, 5, 6, 7):
        value = call.given(index)
        if value is None:
            continue
        if value.kind is not Kind.CONSTANT or (index not in (4, 5) and value.shape not in ((), (1,))):
            raise call.refusal(f"with a scale along rows in input {index}")
        if index in (4, 5) and (value.shape is None or len(value.shape) > 1):
            raise call.refusal(f"with scales of several axes in input {index}")
    return [product(call, call.tensor(0), call.tensor(3))]


def quantized_gemm(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's QGemm: a, scale, zero point, b, scale, zero point, bias, ...; those of `a` for all."""
    call.require_constants(1)
    for index in (1, 2, 7, 8):
        value = call.given(index)
        if value is not None and value.shape not in ((), (1,)):
            raise call.refusal(f"with a scale along rows in input {index}")
    left = transposed(call.tensor(0), bool(call.integer("transA", 0)))
    right = transposed(call.tensor(3), bool(call.integer("transB", 0)))
    if left.rank != 2 or right.rank != 2:
        raise call.refusal("of unknown shapes")
    bias = call.given(6)
    result = product(call, left, right)
    return [result if bias is None else _with_bias(call, result, bias)]


def scaled_integer_matmul(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's MatMulIntegerToFloat: a, b, their scales, their zero points, bias."""
    call.require_constants(1)
    for index in (2, 4):
        value = call.given(index)
        if value is not None and value.shape not in ((), (1,)):
            raise call.refusal(f"with a scale along rows in input {index}")
    return [product(call, call.tensor(0), call.tensor(1))]


def packed_matmul(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's MatMulNBits: (..., K) by packed weights to (..., N)."""
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    refuse_rows(call, value, len(shape) - 1)
    return [value_like(value, [*shape[:-1], call.integer("N", 1)])]


def einsum(call: Call) -> Sequence[Value]:
    """Rule of Einsum: the rows keep one letter, which no operand sums over or repeats."""
    equation = call.text("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not all(name.isalpha() or name in ".," for name in left + right):
        raise call.refusal(f"'{equation}'")
    if len(terms) != len(call.inputs) or any(call.tensor(index).shape is None for index in range(len(terms))):
        raise call.refusal("of unknown shapes")
    axes = [_letters(call, term, len(call.shape(index))) for index, term in enumerate(terms)]
    target = _target(axes, right, bool(arrow))
    letters, sizes = set[str](), dict[str, Size]()
    found: RowAxis | None = None
    for index, names in enumerate(axes):
        value = call.tensor(index)
        if value.row is not None:
            letters.add(names[value.row.axis])
            if found is not None and (found.before, found.after) != (value.row.before, value.row.after):
                raise call.refusal("of rows along different axes")
            found = value.row
    for index, names in enumerate(axes):
        value = call.tensor(index)
        for axis, (name, size) in enumerate(zip(names, call.shape(index), strict=True)):
            if name not in letters:
                sizes[name] = call.symbols.broadcast(sizes.get(name, 1), size)
            elif value.row is None or value.row.axis != axis:
                raise call.refusal(f"'{equation}' of rows and another axis")
    if any(name not in target and call.symbols.may_be_empty(size) for name, size in sizes.items()):
        raise call.refusal("sums over an axis that may have no elements")
    shape = [sizes.get(name, 1) for name in target]
    if found is None:
        return [constant(shape)]
    if len(letters) > 1 or target.count(letter := letters.pop()) != 1:
        raise call.refusal(f"'{equation}' sums over the rows or pairs them")
    return [rows(shape, RowAxis(target.index(letter), found.before, found.after))]


def _letters(call: Call, term: str, rank: int) -> list[str]:
    """The name of each axis; those of an ellipsis are counted from its right end."""
    head, dots, tail = term.partition("...")
    names = [*head, *tail]
    if "." in names or len(names) > rank or (not dots and len(names) != rank):
        raise call.refusal(f"of {rank} axes as '{term}'")
    between = rank - len(names)
    return [*head, *(f".{between - place}" for place in range(between)), *tail]


def _target(axes: list[list[str]], right: str, is_given: bool) -> list[str]:
    every = [name for names in axes for name in names]
    dots = sorted({name for name in every if name[0] == "."}, key=lambda name: -int(name[1:]))
    if not is_given:
        return [*dots, *sorted({name for name in every if name[0] != "." and every.count(name) == 1})]
    head, found, tail = right.partition("...")
    return [*head, *(dots if found else ()), *tail]


RULES: Rules = {
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": integer_matmul,
    "QLinearMatMul": quantized_matmul,
}

MICROSOFT_RULES: Rules = {
    "FusedGemm": gemm,
    "FusedMatMul": fused_matmul,
    "MatMulIntegerToFloat": scaled_integer_matmul,
    "MatMulNBits": packed_matmul,
    "QGemm": quantized_gemm,
    "QLinearMatMul": quantized_matmul,
    "TransposeMatMul": fused_matmul,
}
