"""Sizes of axes as products: an integer times symbols, one of which is the number of rows.

A symbol stands for a size that no request's rows decide: an open axis of an input, or whatever a kernel derives from
such axes. Symbols are equal only where they are the same one; that two of them, or one and an integer, are equal by
chance is never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ROWS: Final = "N"
"""The symbol of the number of rows."""

_MOST_SYMBOLS = 16
_LARGEST = 1 << 62
_MOST_CHOICES = 6
_EMPTIABLE = frozenset(["compress", "element", "max", "min", "modulo", "pad", "part", "range", "slice", "subtract"])
"""Derivations that may yield 0 where no axis of an input is 0."""


class OversizeError(Exception):
    """A size has more factors, or is larger, than any tensor that fits into memory."""


@dataclass(frozen=True, slots=True)
class Product:
    """A size with symbols: coefficient times all of them, sorted, at least one."""

    coefficient: int
    symbols: tuple[str, ...]


Size = int | Product

ROW_COUNT: Final = Product(1, (ROWS,))


def has_rows(size: Size) -> bool:
    """The size depends on the number of rows."""
    return isinstance(size, Product) and ROWS in size.symbols


def times(first: Size, second: Size) -> Size:
    """Multiplies.

    Raises:
        OversizeError: the product is too large.
    """
    if isinstance(first, int) and isinstance(second, int):
        return _product(first * second, ())
    one, other = _parts(first), _parts(second)
    return _product(one[0] * other[0], tuple(sorted(one[1] + other[1])))


def times_all(sizes: tuple[Size, ...] | list[Size]) -> Size:
    """Multiplies all; 1 where there are none. Raises as `times`."""
    product: Size = 1
    for size in sizes:
        product = times(product, size)
    return product


def divide(dividend: Size, divisor: Size) -> Size | None:
    """Divides exactly, whatever the symbols stand for; None where that cannot be told."""
    if dividend == divisor:
        return 1
    if divisor == 1:
        return dividend
    (coefficient, symbols), (divisor_coefficient, divisors) = _parts(dividend), _parts(divisor)
    if divisor_coefficient == 0 or coefficient % divisor_coefficient:
        return None
    rest = list(symbols)
    for symbol in divisors:
        if symbol not in rest:
            return None
        rest.remove(symbol)
    return _product(coefficient // divisor_coefficient, tuple(rest))


def _parts(size: Size) -> tuple[int, tuple[str, ...]]:
    return (size, ()) if isinstance(size, int) else (size.coefficient, size.symbols)


def _product(coefficient: int, symbols: tuple[str, ...]) -> Size:
    if abs(coefficient) > _LARGEST or len(symbols) > _MOST_SYMBOLS:
        raise OversizeError
    return Product(coefficient, symbols) if symbols and coefficient else coefficient


class Symbols:
    """Makes symbols. The same derivation gets the same symbol, so that equal sizes stay recognisable."""

    def __init__(self) -> None:
        self._known: dict[object, Product] = {}
        self._choices: dict[str, frozenset[Size]] = {}
        self._signed: set[str] = set()
        self._emptiable: set[str] = set()

    def derived(self, *key: object, is_signed: bool = False) -> Product:
        """Returns the symbol of what is derived that way.

        Args:
            key: Operation and operands, none of which depends on the rows.
            is_signed: It may be negative.
        """
        found = self._known.get(key)
        if found is None:
            name = f"s{len(self._known)}"
            found = self._known[key] = Product(1, (name,))
            if is_signed:
                self._signed.add(name)
            if key[0] in _EMPTIABLE:
                self._emptiable.add(name)
        return found

    def fresh(self) -> Product:
        """Returns a symbol that is equal to no other."""
        return self.derived("fresh", len(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def is_never_negative(self, size: Size) -> bool:
        """The size is known to be 0 or more."""
        coefficient, symbols = _parts(size)
        return coefficient >= 0 and not any(symbol in self._signed for symbol in symbols)

    def may_be_empty(self, size: Size) -> bool:
        """The size may be 0 though no axis of an input is."""
        coefficient, symbols = _parts(size)
        return coefficient == 0 or any(symbol in self._emptiable for symbol in symbols)

    def broadcast(self, first: Size, second: Size) -> Size:
        """Returns the size of an axis that two broadcast to: equal, or one of them 1.

        Neither may depend on the rows, unless they are the same or one is the integer 1.
        """
        if first == second or second == 1:
            return first
        if first == 1 or isinstance(second, int):
            return second
        if isinstance(first, int):
            return first
        choices = self._chosen(first) | self._chosen(second)
        if len(choices) > _MOST_CHOICES:
            return self.fresh()
        chosen = self.derived("broadcast", choices)
        self._choices[chosen.symbols[0]] = choices
        if any(self.may_be_empty(choice) for choice in choices):
            self._emptiable.add(chosen.symbols[0])
        return chosen

    def _chosen(self, size: Product) -> frozenset[Size]:
        return self._choices.get(size.symbols[0], frozenset([size])) if len(size.symbols) == 1 else frozenset([size])
