"""What becomes of small tensors of sizes: shapes that a graph computes to reshape, expand or slice by.

Each rule works on arrays of elements (int, bool, float or Product; None where not even a symbol is known) and returns
None where it cannot tell; the operator's ordinary rule decides then.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fitserve_contract.joinability.calls import Call
from fitserve_contract.joinability.sizes import Product, Size, Symbols, divide, has_rows, times, times_all
from fitserve_contract.joinability.values import Elements, Kind, Value, of_elements
from fitserve_contract.onnx_tensors import read_tensor

_MOST = 512
_INTEGER_TYPES = (6, 7, 12, 13)
_LARGEST = 1 << 62

Element = int | float | Product | None
Fold = Callable[[Call, list[Elements]], Elements | None]


def fold(call: Call) -> Value | None:
    """Computes the only output of a node from the known elements of all its inputs; None where that cannot be done."""
    rule = FOLDS.get(call.node.operator)
    if rule is None or len(call.node.outputs) != 1 or not call.inputs:
        return None
    arrays = list[Elements]()
    for value in call.inputs:
        elements = None if value is None else value.elements
        if elements is None and value is not None and call.node.operator == "Concat":
            elements = _unknown(call.symbols, value)
        if elements is None or elements.size > _MOST:
            return None
        arrays.append(elements)
    try:
        result = rule(call, arrays)
    except (ValueError, IndexError, OverflowError, TypeError):
        return None
    if result is None or result.size > _MOST:
        return None
    is_count = any(value is not None and value.kind is not Kind.CONSTANT for value in call.inputs)
    value = of_elements(result)
    # Elements that are not known stay a matter of the number of rows only where it came in.
    return Value(Kind.CONSTANT, value.shape) if value.kind is Kind.COUNT and not is_count else value


def _unknown(symbols: Symbols, value: Value) -> Elements | None:
    """Symbols for the elements of a small constant that is not known, so that its neighbours stay known."""
    shape = value.shape
    if value.kind is not Kind.CONSTANT or shape is None or len(shape) != 1 or not isinstance(shape[0], int):
        return None
    count = min(shape[0], _MOST + 1)
    return _array([symbols.derived("element", len(symbols), is_signed=True) for _ in range(count)], (count,))


def _array(elements: Iterable[Element], shape: tuple[int, ...]) -> Elements:
    array = np.empty(shape, object)
    for place, element in enumerate(elements):
        array.flat[place] = element
    return array


def _each(function: Callable[..., Element]) -> Fold:
    """The fold of an operator that broadcasts."""

    def apply(call: Call, arrays: list[Elements]) -> Elements | None:
        if any(isinstance(element, float) for array in arrays for element in array.flat):
            return None
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        if any(size > _MOST for size in shape):
            return None
        wide = [np.broadcast_to(array, shape).flat for array in arrays]
        return _array([_bounded(function(call.symbols, *group)) for group in zip(*wide, strict=True)], shape)

    return apply


def _bounded(element: Element) -> Element:
    return None if isinstance(element, int) and abs(element) > _LARGEST else element


def _both_literal(first: Element, second: Element) -> bool:
    return isinstance(first, int) and isinstance(second, int)


def _derived(symbols: Symbols, name: str, is_signed: bool, *operands: Size | None) -> Element:
    """A symbol for what is computed from sizes that no rows decide."""
    if any(operand is None or has_rows(operand) for operand in operands):
        return None
    return symbols.derived(name, *operands, is_signed=is_signed)


def _add(symbols: Symbols, first: Any, second: Any) -> Element:
    if _both_literal(first, second):
        return int(first) + int(second)
    if first == 0 or second == 0:
        return second if first == 0 else first  # type: ignore[no-any-return]
    is_signed = None in (first, second) or not (symbols.is_never_negative(first) and symbols.is_never_negative(second))
    return _derived(symbols, "add", is_signed, first, second)


def _subtract(symbols: Symbols, first: Any, second: Any) -> Element:
    if _both_literal(first, second):
        return int(first) - int(second)
    if second == 0 and first is not None:
        return first  # type: ignore[no-any-return]
    if first == second and first is not None:
        return 0
    return _derived(symbols, "subtract", True, first, second)


def _multiply(_symbols: Symbols, first: Any, second: Any) -> Element:
    return None if first is None or second is None else times(first, second)


def _quotient(symbols: Symbols, first: Any, second: Any) -> Element:
    if first is None or second is None or second == 0:
        return None
    if _both_literal(first, second):
        quotient = abs(first) // abs(second)
        return quotient if (first < 0) == (second < 0) else -quotient  # type: ignore[no-any-return]
    exact = divide(first, second)
    if exact is not None:
        return exact
    is_signed = not (symbols.is_never_negative(first) and symbols.is_never_negative(second))
    return _derived(symbols, "divide", is_signed, first, second)


def _remainder(symbols: Symbols, first: Any, second: Any) -> Element:
    if _both_literal(first, second) and first >= 0 and second > 0:
        return int(first) % int(second)
    return _derived(symbols, "modulo", True, first, second)


def _extreme(name: str, pick: Callable[[int, int], int]) -> Callable[..., Element]:
    def apply(symbols: Symbols, *operands: Any) -> Element:
        if all(isinstance(operand, int) for operand in operands):
            result = operands[0]
            for operand in operands[1:]:
                result = pick(result, operand)
            return int(result)
        if len(set(operands)) == 1:
            return operands[0]  # type: ignore[no-any-return]
        return _derived(symbols, name, True, *operands)

    return apply


def _equal(symbols: Symbols, first: Any, second: Any) -> Element:
    if first is None or second is None:
        return None
    if _both_literal(first, second) or first == second:
        return bool(first == second)
    literal, other = (first, second) if isinstance(first, int) else (second, first)
    if isinstance(literal, int) and literal < 0 and symbols.is_never_negative(other):
        return False
    return None


def _compare(function: Callable[[Any, Any], bool]) -> Callable[..., Element]:
    def apply(symbols: Symbols, first: Any, second: Any) -> Element:
        if _both_literal(first, second):
            return bool(function(first, second))
        # The number of rows and sizes of axes are 0 or more.
        for one, other in ((first, second), (second, first)):
            if isinstance(one, int) and one < 0 and other is not None and symbols.is_never_negative(other):
                return bool(function(-1, 0) if one is first else function(0, -1))
        return None

    return apply


def _where(_symbols: Symbols, condition: Any, first: Any, second: Any) -> Element:
    if first == second and first is not None:
        return first  # type: ignore[no-any-return]
    if not isinstance(condition, int):
        return None
    return first if condition else second  # type: ignore[no-any-return]


def _logical(function: Callable[[bool, bool], bool]) -> Callable[..., Element]:
    def apply(_symbols: Symbols, first: Any, second: Any) -> Element:
        return bool(function(bool(first), bool(second))) if _both_literal(first, second) else None

    return apply


def _negative(symbols: Symbols, value: Any) -> Element:
    return -value if isinstance(value, int) else _derived(symbols, "negative", True, value)


def _absolute(symbols: Symbols, value: Any) -> Element:
    if isinstance(value, int):
        return abs(value)
    return value if value is not None and symbols.is_never_negative(value) else None


def _not(_symbols: Symbols, value: Any) -> Element:
    return not value if isinstance(value, int) else None


def _cast(call: Call, arrays: list[Elements]) -> Elements | None:
    if call.integer("to", 0) in _INTEGER_TYPES:
        return None if any(isinstance(element, float) for element in arrays[0].flat) else arrays[0]
    if call.integer("to", 0) == 9 and all(isinstance(element, int) for element in arrays[0].flat):
        return _array([bool(element) for element in arrays[0].flat], arrays[0].shape)
    return None


def _gather(call: Call, arrays: list[Elements]) -> Elements | None:
    data, indices = arrays
    axis = call.integer("axis", 0)
    if not all(isinstance(index, int) for index in indices.flat):
        return None
    return np.asarray(np.take(data, indices.astype(np.int64), axis=axis), object)


def _concat(call: Call, arrays: list[Elements]) -> Elements | None:
    return np.concatenate(arrays, axis=call.integer("axis", 0))


def _slice(call: Call, arrays: list[Elements]) -> Elements | None:
    if call.version < 10:
        starts, ends = call.integers("starts") or [], call.integers("ends") or []
        axes, steps = call.integers("axes"), None
    else:
        starts, ends = (call.literals(index) or [] for index in (1, 2))
        axes, steps = call.literals(3), call.literals(4)
    if not starts or len(starts) != len(ends) or (len(arrays) > 3 and axes is None):
        return None
    if len(arrays) > 4 and steps is None:
        return None
    cut = [slice(None)] * arrays[0].ndim
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        size = arrays[0].shape[axis]
        # Before the first element, where one walks back, is no place that Python's slices can name.
        cut[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return arrays[0][tuple(cut)]


def _axes_of(call: Call, arrays: list[Elements]) -> list[int] | None:
    if len(arrays) > 1:
        return call.literals(1)
    return call.integers("axes")


def _squeeze(call: Call, arrays: list[Elements]) -> Elements | None:
    axes = _axes_of(call, arrays)
    return arrays[0].squeeze(None if axes is None else tuple(axes))


def _unsqueeze(call: Call, arrays: list[Elements]) -> Elements | None:
    axes = _axes_of(call, arrays)
    return None if axes is None else np.expand_dims(arrays[0], tuple(axes))


def _reshape(call: Call, arrays: list[Elements]) -> Elements | None:
    target = call.literals(1) if len(arrays) > 1 else call.integers("shape")
    if target is None or (0 in target):
        return None
    return arrays[0].reshape(target)


def _transpose(call: Call, arrays: list[Elements]) -> Elements | None:
    return arrays[0].transpose(call.integers("perm") or None)


def _reduce_product(call: Call, arrays: list[Elements]) -> Elements | None:
    axes = _axes_of(call, arrays)
    array = arrays[0]
    if array.ndim != 1 or (axes is not None and axes not in ([0], [-1])):
        return None
    if any(element is None or isinstance(element, float) for element in array.flat):
        return None
    return _array([times_all(list(array.flat))], (1,) if call.integer("keepdims", 1) else ())


def _expand(call: Call, arrays: list[Elements]) -> Elements | None:
    target = call.literals(1)
    if target is None or any(not 0 < size <= _MOST for size in target):
        return None
    shape = np.broadcast_shapes(arrays[0].shape, tuple(target))
    return np.broadcast_to(arrays[0], shape) if all(size <= _MOST for size in shape) else None


def _range(call: Call, _arrays: list[Elements]) -> Elements | None:
    parts = [literals[0] for index in range(3) if (literals := call.literals(index))]
    if len(parts) != 3 or parts[2] == 0:
        return None
    found = range(parts[0], parts[1], parts[2])
    return _array(found, (len(found),)) if len(found) <= _MOST else None


def _filled(call: Call, arrays: list[Elements]) -> Elements | None:
    shape = call.literals(0)
    attribute = call.attributes.get("value")
    if (
        shape is None
        or arrays[0].ndim != 1
        or any(not 0 <= size <= _MOST for size in shape)
        or math.prod(shape) > _MOST
    ):
        return None
    if attribute is None:
        return None
    values = None if attribute.tensor is None else read_tensor(attribute.tensor).values
    if values is None or values.size != 1 or values.dtype.kind not in "iub":
        return None
    return _array([values.item()] * math.prod(shape), tuple(shape))


def _identity(_call: Call, arrays: list[Elements]) -> Elements | None:
    return arrays[0]


FOLDS: dict[str, Fold] = {
    "Abs": _each(_absolute),
    "Add": _each(_add),
    "And": _each(_logical(operator.and_)),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _each(_quotient),
    "Equal": _each(_equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _each(_compare(operator.gt)),
    "GreaterOrEqual": _each(_compare(operator.ge)),
    "Identity": _identity,
    "Less": _each(_compare(operator.lt)),
    "LessOrEqual": _each(_compare(operator.le)),
    "Max": _each(_extreme("max", max)),
    "Min": _each(_extreme("min", min)),
    "Mod": _each(_remainder),
    "Mul": _each(_multiply),
    "Neg": _each(_negative),
    "Not": _each(_not),
    "Or": _each(_logical(operator.or_)),
    "Range": _range,
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(_subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _each(_where),
}
