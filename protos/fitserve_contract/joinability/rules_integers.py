"""Arithmetic on sizes as the runtime does it: what may leave the range of its type is no longer taken for exact.

An operand is a literal, a product of symbols that is exact, or None. A result that may wrap around becomes a symbol of
its own, which stands for whatever the runtime makes of it, or None where the number of rows comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fitserve_contract.joinability.calls import Call
from fitserve_contract.joinability.element_types import INT32, INTEGER_RANGES
from fitserve_contract.joinability.sizes import OversizeError, Product, Range, Size, Symbols, divide, has_rows, times

Element = int | float | Product | None

_INT32: Range = INTEGER_RANGES[INT32]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The arithmetic of one node.

    Args:
        symbols: Maker of symbols.
        operation: Operator, with whatever decides between two of its laws.
        type: Of its result.
        span: Least and largest integer of that type.
    """

    symbols: Symbols
    operation: str
    type: int
    span: Range

    @staticmethod
    def of(call: Call, number: int = 0) -> Arithmetic | None:
        """Returns the arithmetic of a node in its last input's type, or in the given one; None for no integers."""
        value = call.inputs[-1]
        number = number or (0 if value is None else value.type)
        span = INTEGER_RANGES.get(number)
        if span is None:
            return None
        operation = f"{call.node.operator}.{call.integer('fmod', 0)}"
        return Arithmetic(call.symbols, operation, number, span)

    def kept(self, element: Size) -> Element:
        """The exact element, if its type holds it whatever the symbols are."""
        if self.symbols.is_exact(element, self.span):
            return element
        return None if isinstance(element, int) else self.derived(self.span, element)

    def derived(self, span: Range, *operands: Size | None) -> Element:
        """A symbol for what the runtime computes, in `span` where that does not leave the range of the type."""
        if any(operand is None or has_rows(operand) for operand in operands):
            return None
        is_within = self.span[0] <= span[0] and span[1] <= self.span[1]
        return self.symbols.derived(self.operation, self.type, *operands, span=span if is_within else self.span)

    def ranges(self, *operands: Size) -> list[Range]:
        """The range of each operand."""
        return [self.symbols.range_of(operand) for operand in operands]


def add(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
    """Adds."""
    if first is None or second is None:
        return None
    if first == 0 or second == 0:
        return second if first == 0 else first  # type: ignore[no-any-return]
    if isinstance(first, int) and isinstance(second, int):
        return arithmetic.kept(first + second)
    one, other = arithmetic.ranges(first, second)
    return arithmetic.derived((one[0] + other[0], one[1] + other[1]), first, second)


def subtract(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
    """Subtracts."""
    if first is None or second is None:
        return None
    if second == 0:
        return first  # type: ignore[no-any-return]
    if first == second:
        return 0
    if isinstance(first, int) and isinstance(second, int):
        return arithmetic.kept(first - second)
    one, other = arithmetic.ranges(first, second)
    return arithmetic.derived((one[0] - other[1], one[1] - other[0]), first, second)


def multiply(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
    """Multiplies."""
    if first is None or second is None:
        return None
    try:
        return arithmetic.kept(times(first, second))
    except OversizeError:
        return None


def quotient(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
    """Divides towards zero; the runtime ends, or fails, where it divides by zero."""
    if first is None or second is None or second == 0:
        return None
    if isinstance(first, int) and isinstance(second, int):
        found = abs(first) // abs(second)
        return arithmetic.kept(found if (first < 0) == (second < 0) else -found)
    exact = divide(first, second)
    if exact is not None:
        return arithmetic.kept(exact)
    one, other = arithmetic.ranges(first, second)
    is_plain = one[0] >= 0 and other[0] >= 0
    span = (one[0] // max(other[1], 1), one[1] // max(other[0], 1)) if is_plain else arithmetic.span
    return arithmetic.derived(span, first, second)


def remainder(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
    """Divides and returns what is left; kernels differ on negative operands."""
    if first is None or second is None or second == 0:
        return None
    one, other = arithmetic.ranges(first, second)
    # One of the two laws goes by way of 64-bit floats.
    is_plain = one[0] >= 0 and other[0] >= 0 and max(one[1], other[1]) <= 1 << 53
    if isinstance(first, int) and isinstance(second, int) and is_plain:
        return first % second
    return arithmetic.derived((0, other[1]) if is_plain else arithmetic.span, first, second)


def extreme(pick: Callable[..., int]) -> Callable[..., Element]:
    """Returns the rule of Max or Min.

    Kernels of ONNX Runtime 1.31 compare the lower halves alone of some 64-bit integers, depending on their place.
    """

    def apply(arithmetic: Arithmetic, *operands: Any) -> Element:
        if None in operands:
            return None
        if len(set(operands)) == 1:
            return operands[0]  # type: ignore[no-any-return]
        ranges = arithmetic.ranges(*operands)
        if any(low < _INT32[0] or high > _INT32[1] for low, high in ranges):
            is_shared = not any(map(has_rows, operands))
            return arithmetic.symbols.element(arithmetic.span) if is_shared else None
        if all(isinstance(operand, int) for operand in operands):
            return int(pick(operands))
        return arithmetic.derived((pick(low for low, _ in ranges), pick(high for _, high in ranges)), *operands)

    return apply


def negative(arithmetic: Arithmetic, value: Any) -> Element:
    """Changes the sign."""
    if value is None or isinstance(value, int):
        return None if value is None else arithmetic.kept(-value)
    low, high = arithmetic.symbols.range_of(value)
    return arithmetic.derived((-high, -low), value)


def absolute(arithmetic: Arithmetic, value: Any) -> Element:
    """Drops the sign."""
    if isinstance(value, int):
        return arithmetic.kept(abs(value))
    return value if value is not None and arithmetic.symbols.least(value) >= 0 else None


def cast(arithmetic: Arithmetic, value: Any) -> Element:
    """Keeps what the new type holds."""
    return None if value is None else arithmetic.kept(int(value) if isinstance(value, int) else value)


def truth(arithmetic: Arithmetic, value: Any) -> Element:
    """Tells whether a number is not 0."""
    if value is None or isinstance(value, int):
        return None if value is None else bool(value)
    return True if arithmetic.symbols.least(value) > 0 else None


def equal(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
    """Compares: sizes whose ranges do not meet differ."""
    if first is None or second is None:
        return None
    if first == second:
        return True
    one, other = arithmetic.ranges(first, second)
    return False if one[1] < other[0] or other[1] < one[0] else None


def compare(function: Callable[[int, int], bool]) -> Callable[..., Element]:
    """Returns the rule of a comparison."""

    def apply(arithmetic: Arithmetic, first: Any, second: Any) -> Element:
        if first is None or second is None:
            return None
        if first == second:
            return function(0, 0)
        one, other = arithmetic.ranges(first, second)
        ends = {function(one[0], other[1]), function(one[1], other[0])}
        return ends.pop() if len(ends) == 1 else None

    return apply


def where(_arithmetic: Arithmetic, condition: Any, first: Any, second: Any) -> Element:
    """Chooses."""
    if first == second and first is not None:
        return first  # type: ignore[no-any-return]
    if not isinstance(condition, int):
        return None
    return first if condition else second  # type: ignore[no-any-return]


def logical(function: Callable[[bool, bool], bool]) -> Callable[..., Element]:
    """Returns the rule of And or Or."""

    def apply(_arithmetic: Arithmetic, first: Any, second: Any) -> Element:
        is_known = isinstance(first, int) and isinstance(second, int)
        return bool(function(bool(first), bool(second))) if is_known else None

    return apply


def inverted(_arithmetic: Arithmetic, value: Any) -> Element:
    """Negates."""
    return not value if isinstance(value, int) else None
