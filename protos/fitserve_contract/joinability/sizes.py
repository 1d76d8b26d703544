"""Sizes of axes as products: an integer times symbols, one of which is the number of rows.

A symbol stands for the number that the runtime has, whatever that is: an open axis of an input, or what a kernel
derives from such axes, wrapped around where its type ends. Symbols are equal only where they are the same one; that
two of them, or one and an integer, are equal by chance is never used. A product stands for the exact number, and so is
made only of what cannot leave the 64 bits that the runtime computes with.

What is known of the inputs of a run in which requests are joined, and used here:

- it has at least one row and at most MOST_ROWS, no input has an empty axis, and all are in memory, so that none has
  more than MOST_ELEMENTS elements;
- an input has at most MOST_ROW_ELEMENTS in each row: a message has fewer bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from fitserve_contract.onnx_wire import Budget

ROWS: Final = "N"
"""The symbol of the number of rows."""

MOST_ROWS: Final = 1 << 24
"""Rows of a joined run at most."""
MOST_ROW_ELEMENTS: Final = (1 << 31) - 1
MOST_ELEMENTS: Final = 1 << 44

Range = tuple[int, int]
"""Least and largest value."""

INT64: Final[Range] = (-(1 << 63), (1 << 63) - 1)
_ANY_SIZE: Final[Range] = (0, INT64[1])
_MOST_SYMBOLS = 16
_LARGEST = 1 << 62
_MOST_CHOICES = 6
_SYMBOL_STEPS = 16


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
    """Makes symbols. The same derivation gets the same symbol, so that equal sizes stay recognisable.

    Args:
        budget: What each new symbol is paid from.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._known: dict[object, Product] = {}
        self._choices: dict[str, frozenset[Size]] = {}
        self._ranges: dict[str, Range] = {ROWS: (1, MOST_ROWS)}
        self._inputs: list[tuple[Counter[str], int]] = []
        self._limits: dict[str, str] = {}

    def of_input(self, sizes: tuple[Size, ...] | list[Size]) -> None:
        """Takes the symbols of an input's axes for open axes of one tensor in memory."""
        counts = Counter(symbol for size in sizes if isinstance(size, Product) for symbol in size.symbols)
        of_row = Counter({symbol: count for symbol, count in counts.items() if symbol != ROWS})
        self._inputs += [(counts, MOST_ELEMENTS), (of_row, MOST_ROW_ELEMENTS)]
        for symbol in counts:
            self._ranges.setdefault(symbol, (1, MOST_ROW_ELEMENTS))

    def derived(self, *key: object, span: Range = _ANY_SIZE) -> Product:
        """Returns the symbol of what is derived that way.

        Args:
            key: Operation and operands, none of which depends on the rows.
            span: What it is in; any size where that is left out.
        """
        self.budget.spend(1)
        found = self._known.get(key)
        if found is None:
            self.budget.spend(_SYMBOL_STEPS)
            name = f"s{len(self._known)}"
            found = self._known[key] = Product(1, (name,))
            self._ranges[name] = span
        return found

    def unknown(self, span: Range) -> Product:
        """Returns a symbol that is equal to no other."""
        return self.derived("unknown", len(self._known), span=span)

    def limit(self, made: Product, size: Size) -> None:
        """Takes a symbol for never larger than a size, which is used where that is a symbol, too."""
        if isinstance(size, Product) and size.coefficient == len(size.symbols) == 1:
            symbol = size.symbols[0]
            self._limits[made.symbols[0]] = self._limits.get(symbol, symbol)

    def fresh(self, least: int = 0) -> Product:
        """Returns a symbol for a size of at least that, equal to no other."""
        return self.unknown((least, INT64[1]))

    def element(self, span: Range = INT64) -> Product:
        """Returns a symbol for a number that is the same for all rows, equal to no other."""
        return self.unknown(span)

    def range_of(self, size: Size) -> Range:
        """Returns the least and the largest value that a size may have."""
        if isinstance(size, int):
            return size, size
        if size.coefficient == 1 and len(size.symbols) == 1:
            return self._ranges[size.symbols[0]]
        spans = [self._ranges[symbol] for symbol in size.symbols]
        low, high = 1, 1
        for span in spans:
            ends = [end * other for end in (low, high) for other in span]
            low, high = min(ends), max(ends)
        if all(span[0] >= 0 for span in spans):
            high = min(high, self._most_together(size.symbols))
        ends = [low * size.coefficient, high * size.coefficient]
        return min(ends), max(ends)

    def _most_together(self, symbols: tuple[str, ...]) -> int:
        """Bounds a product of sizes by the elements of one input, times the rest."""
        most, counts = INT64[1] * INT64[1], Counter(self._limits.get(symbol, symbol) for symbol in symbols)
        for axes, elements in self._inputs:
            if counts & axes:
                bound = elements
                for symbol in (counts - axes).elements():
                    bound *= self._ranges[symbol][1]
                most = min(most, bound)
        return most

    def is_exact(self, size: Size, span: Range = INT64) -> bool:
        """The product fits into a type of that range, so that the runtime computes it as it is."""
        low, high = self.range_of(size)
        return span[0] <= low and high <= span[1]

    def least(self, size: Size) -> int:
        """Returns the least value that a size may have."""
        return self.range_of(size)[0]

    def may_be_empty(self, size: Size) -> bool:
        """The size may be 0."""
        return self.least(size) < 1

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
        spans = [self.range_of(choice) for choice in choices]
        span = (min(low for low, _ in spans), max(high for _, high in spans))
        if len(choices) > _MOST_CHOICES:
            return self.fresh(max(span[0], 0))
        chosen = self.derived("broadcast", choices, span=span)
        self._choices[chosen.symbols[0]] = choices
        limits = {self._limits.get(choice.symbols[0]) for choice in choices if isinstance(choice, Product)}
        if len(limits) == 1 and (limit := limits.pop()) is not None:
            self._limits[chosen.symbols[0]] = limit
        return chosen

    def _chosen(self, size: Product) -> frozenset[Size]:
        return self._choices.get(size.symbols[0], frozenset([size])) if len(size.symbols) == 1 else frozenset([size])
