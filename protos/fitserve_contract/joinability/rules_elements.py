"""What becomes of small tensors of sizes: shapes that a graph computes to reshape, expand or slice by.

Each rule works on arrays of elements (int, bool, float or Product; None where not even a symbol is known) and returns
None where it cannot tell; the operator's ordinary rule decides then. Numbers are computed in `rules_integers`, within
the range of their type.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from fitserve_contract.joinability import rules_integers as integers
from fitserve_contract.joinability.calls import Call
from fitserve_contract.joinability.element_types import BOOL, INTEGER_RANGES
from fitserve_contract.joinability.rules_integers import Arithmetic, Element
from fitserve_contract.joinability.sizes import OversizeError, times_all
from fitserve_contract.joinability.values import Elements, Kind, Value, of_elements, typed
from fitserve_contract.onnx_tensors import read_tensor

_MOST = 512
_MOST_RANK = 8
_ELEMENT_STEPS = 4
_MOST_EXACT = 1 << 53

Fold = Callable[[Call, list[Elements]], Elements | None]


def fold(call: Call) -> Value | None:
    """Computes the only output of a node from the known elements of all its inputs; None where that cannot be done."""
    rule = FOLDS.get(call.node.operator)
    if rule is None or len(call.node.outputs) != 1 or not call.inputs:
        return None
    arrays = _arrays(call)
    if arrays is None:
        return None
    try:
        result = rule(call, arrays)
    except (ValueError, ArithmeticError, LookupError, TypeError, OversizeError):
        return None
    if result is None or result.size > _MOST or result.ndim > _MOST_RANK:
        return None
    call.symbols.budget.spend(_ELEMENT_STEPS * result.size)
    number = result_type(call)
    is_count = any(value is not None and value.kind is not Kind.CONSTANT for value in call.inputs)
    value = of_elements(result, number)
    # Elements that are not known stay a matter of the number of rows only where it came in.
    return typed(Value(Kind.CONSTANT, value.shape), number) if value.kind is Kind.COUNT and not is_count else value


def _arrays(call: Call) -> list[Elements] | None:
    """The elements of all inputs; None where they are not known, or too many."""
    found, total = list[Elements](), 0
    for value in call.inputs:
        elements = None if value is None else value.elements
        if elements is None and value is not None and call.node.operator == "Concat":
            elements = _unknown(call, value)
        if elements is None or elements.ndim > _MOST_RANK:
            return None
        total += elements.size
        if total > 2 * _MOST:
            return None
        found.append(elements)
    call.symbols.budget.spend(_ELEMENT_STEPS * total)
    return found


def result_type(call: Call) -> int:
    """Returns the type of what a fold makes."""
    name = call.node.operator
    if name in _OF_BOOL:
        return BOOL
    if name == "Cast":
        return call.integer("to", 0)
    if name == "ConstantOfShape":
        attribute = call.attributes.get("value")
        tensor = None if attribute is None else attribute.tensor
        return 0 if tensor is None else read_tensor(tensor, call.symbols.budget).data_type
    value = call.given(1 if name == "Where" else 0)
    return 0 if value is None else value.type


def _unknown(call: Call, value: Value) -> Elements | None:
    """Symbols for the elements of a small constant that is not known, so that its neighbours stay known."""
    shape, span = value.shape, INTEGER_RANGES.get(value.type)
    if value.kind is not Kind.CONSTANT or shape is None or len(shape) != 1 or not isinstance(shape[0], int):
        return None
    if span is None or not 0 <= shape[0] <= _MOST:
        return None
    return _array([call.symbols.element(span) for _ in range(shape[0])], (shape[0],))


def _array(elements: Iterable[Element], shape: tuple[int, ...]) -> Elements:
    array = np.empty(shape, object)
    for place, element in enumerate(elements):
        array.flat[place] = element
    return array


def _wide(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that all broadcast to; None where that is too large."""
    if max(map(len, shapes)) > _MOST_RANK:
        return None
    shape = np.broadcast_shapes(*shapes)
    return shape if math.prod(shape) <= _MOST else None


def _each(function: Callable[..., Element]) -> Fold:
    """The fold of an operator that broadcasts."""

    def apply(call: Call, arrays: list[Elements]) -> Elements | None:
        arithmetic = Arithmetic.of(call)
        if arithmetic is None or any(isinstance(element, float) for array in arrays for element in array.flat):
            return None
        shape = _wide([array.shape for array in arrays])
        if shape is None:
            return None
        wide = [np.broadcast_to(array, shape).flat for array in arrays]
        return _array([function(arithmetic, *group) for group in zip(*wide, strict=True)], shape)

    return apply


def _cast(call: Call, arrays: list[Elements]) -> Elements | None:
    arithmetic = Arithmetic.of(call, call.integer("to", 0))
    if arithmetic is None or any(isinstance(element, float) for element in arrays[0].flat):
        return None
    is_bool = call.integer("to", 0) == BOOL
    cast = integers.truth if is_bool else integers.cast
    return _array([cast(arithmetic, element) for element in arrays[0].flat], arrays[0].shape)


def _gather(call: Call, arrays: list[Elements]) -> Elements | None:
    data, indices = arrays
    axis = call.integer("axis", 0)
    if not all(isinstance(index, int) for index in indices.flat) or data.ndim + indices.ndim > _MOST_RANK + 1:
        return None
    if data.size // max(data.shape[axis], 1) * indices.size > _MOST:
        return None
    return np.asarray(np.take(data, indices.astype(np.int64), axis=axis), object)


def _concat(call: Call, arrays: list[Elements]) -> Elements | None:
    return np.concatenate(arrays, axis=call.integer("axis", 0 if call.version >= 4 else 1))


_OPEN_ENDS: Final = (2**31 - 1, 2**63 - 1)
"""What ONNX Runtime takes for another end where it walks backwards."""


def slice_places(size: int, start: int, end: int, step: int) -> range | None:
    """Returns the places that Slice takes of an axis, both ends clamped as the operator says; None if it is unknown."""
    if step == 0 or (step < 0 and (size == 0 or end in _OPEN_ENDS)):
        return None
    start, end = (place + size if place < 0 else place for place in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _slice(call: Call, arrays: list[Elements]) -> Elements | None:
    if call.version < 10:
        starts, ends = call.integers("starts") or [], call.integers("ends") or []
        axes, steps = call.integers("axes"), None
    else:
        starts, ends = (call.literals(index) or [] for index in (1, 2))
        axes, steps = call.literals(3), call.literals(4)
    if not starts or (len(arrays) > 3 and axes is None) or (len(arrays) > 4 and steps is None):
        return None
    data = arrays[0]
    axes = list(range(len(starts))) if axes is None else [axis % data.ndim for axis in axes]
    if len(set(axes)) != len(axes):
        return None
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        places = slice_places(data.shape[axis], start, end, step)
        if places is None:
            return None
        data = data.take(np.array(places, np.int64), axis=axis)
    return data


def _axes_of(call: Call, arrays: list[Elements]) -> list[int] | None:
    """Axes as an input or attribute; None where none are given."""
    return (call.literals(1) if len(arrays) > 1 else call.integers("axes")) or None


def _squeeze(call: Call, arrays: list[Elements]) -> Elements | None:
    axes = _axes_of(call, arrays)
    return arrays[0].squeeze(None if axes is None else tuple(axes))


def _unsqueeze(call: Call, arrays: list[Elements]) -> Elements | None:
    axes = _axes_of(call, arrays)
    is_small = axes is not None and len(axes) + arrays[0].ndim <= _MOST_RANK
    return np.expand_dims(arrays[0], tuple(axes)) if axes is not None and is_small else None


def _reshape(call: Call, arrays: list[Elements]) -> Elements | None:
    target = call.literals(1) if len(arrays) > 1 else call.integers("shape")
    if target is None or 0 in target or len(target) > _MOST_RANK:
        return None
    return arrays[0].reshape(target)


def _transpose(call: Call, arrays: list[Elements]) -> Elements | None:
    return arrays[0].transpose(call.integers("perm") or None)


def _reduce_product(call: Call, arrays: list[Elements]) -> Elements | None:
    axes, array, arithmetic = _axes_of(call, arrays), arrays[0], Arithmetic.of(call)
    if axes is None and call.integer("noop_with_empty_axes", 0):
        return array
    if array.ndim != 1 or axes not in (None, [0], [-1]) or arithmetic is None:
        return None
    if not array.size or any(element is None or isinstance(element, float) for element in array.flat):
        return None
    product = times_all(list(array.flat))
    # ONNX Runtime multiplies as 64-bit floats; what comes before the last factor is no larger where none is 0.
    is_exact = min(map(call.symbols.least, array.flat)) > 0 and call.symbols.range_of(product)[1] <= _MOST_EXACT
    return _array([arithmetic.kept(product)], (1,) if call.integer("keepdims", 1) else ()) if is_exact else None


def _expand(call: Call, arrays: list[Elements]) -> Elements | None:
    target = call.literals(1)
    if target is None or any(not 0 < size <= _MOST for size in target):
        return None
    shape = _wide([arrays[0].shape, tuple(target)])
    return None if shape is None else np.broadcast_to(arrays[0], shape)


def _range(call: Call, _arrays: list[Elements]) -> Elements | None:
    parts = [literals[0] for index in range(3) if (literals := call.literals(index))]
    if len(parts) != 3 or parts[2] == 0:
        return None
    found = range(parts[0], parts[1], parts[2])
    return _array(found, (len(found),)) if len(found) <= _MOST else None


def _filled(call: Call, arrays: list[Elements]) -> Elements | None:
    shape, attribute = call.literals(0), call.attributes.get("value")
    if attribute is None or attribute.tensor is None or shape is None or arrays[0].ndim != 1:
        return None
    if len(shape) > _MOST_RANK or any(not 0 <= size <= _MOST for size in shape) or math.prod(shape) > _MOST:
        return None
    values = read_tensor(attribute.tensor, call.symbols.budget).values
    if values is None or values.size != 1 or values.dtype.kind not in "iub":
        return None
    return _array([values.item()] * math.prod(shape), tuple(shape))


def _identity(_call: Call, arrays: list[Elements]) -> Elements | None:
    return arrays[0]


FOLDS: Final[dict[str, Fold]] = {
    "Abs": _each(integers.absolute),
    "Add": _each(integers.add),
    "And": _each(integers.logical(operator.and_)),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _each(integers.quotient),
    "Equal": _each(integers.equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _each(integers.compare(operator.gt)),
    "GreaterOrEqual": _each(integers.compare(operator.ge)),
    "Identity": _identity,
    "Less": _each(integers.compare(operator.lt)),
    "LessOrEqual": _each(integers.compare(operator.le)),
    "Max": _each(integers.extreme(max)),
    "Min": _each(integers.extreme(min)),
    "Mod": _each(integers.remainder),
    "Mul": _each(integers.multiply),
    "Neg": _each(integers.negative),
    "Not": _each(integers.inverted),
    "Or": _each(integers.logical(operator.or_)),
    "Range": _range,
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(integers.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _each(integers.where),
}
_OF_BOOL: Final = frozenset(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"))
