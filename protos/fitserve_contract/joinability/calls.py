"""One node as the rules see it: operator, attributes, what is known of its inputs, and the ways to refuse it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fitserve_contract.joinability.sizes import Size, Symbols
from fitserve_contract.joinability.values import FLOAT, INT64, Elements, Kind, RowAxis, Value, constant, rows
from fitserve_contract.onnx_graph import Attribute, Node
from fitserve_contract.onnx_tensors import TensorConstant, read_tensor
from fitserve_contract.onnx_wire import Budget


class Coupling(Exception):
    """The node mixes rows, or cannot be told not to; the reason starts with its operator."""


class Randomness(Coupling):
    """The node may draw random numbers, whatever its inputs are."""


@dataclass(slots=True)
class Call:
    """A node and its inputs.

    Args:
        node: The node, its references to a function's attributes resolved.
        version: Version of its operator set.
        inputs: Each input; None where it is left out.
        symbols: Maker of symbols.
        attributes: Attribute name to attribute.
    """

    node: Node
    version: int
    inputs: list[Value | None]
    symbols: Symbols
    attributes: dict[str, Attribute]

    def given(self, index: int) -> Value | None:
        """Returns an input; None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int) -> Value:
        """Returns an input that the operator cannot do without."""
        value = self.given(index)
        if value is None:
            raise self.refusal(f"without input {index}")
        return value

    def refusal(self, what: str) -> Coupling:
        """Returns the exception that says: this node mixes rows."""
        return Coupling(f"{self.node.operator} {what}")

    def require_constants(self, first: int, last: int | None = None) -> None:
        """Refuses where one of the inputs `first` to `last`, the end where that is None, depends on the rows."""
        for index, value in enumerate(self.inputs[first : None if last is None else last + 1], first):
            if value is not None and value.kind is not Kind.CONSTANT:
                raise self.refusal(f"with rows in input {index}")

    def integer(self, name: str, default: int) -> int:
        """Returns an integer attribute."""
        attribute = self.attributes.get(name)
        return default if attribute is None or attribute.integer is None else attribute.integer

    def integers(self, name: str) -> list[int] | None:
        """Returns an attribute of integers; None where it is left out."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_long:
            raise self.refusal(f"with a long '{name}'")
        return attribute.integers or []

    def names(self, *attributes: str) -> int:
        """Returns how many entries the first of the attributes that has any holds; 0 where that is not known."""
        for name in attributes:
            attribute = self.attributes.get(name)
            if attribute is not None and (count := attribute.count(self.symbols.budget)):
                return count
        return 0

    def text(self, name: str, default: str) -> str:
        """Returns an attribute of text."""
        attribute = self.attributes.get(name)
        return default if attribute is None or attribute.text is None else attribute.text

    def elements(self, index: int) -> Elements | None:
        """Returns what is known of the elements of an input; None where nothing is."""
        value = self.given(index)
        return None if value is None else value.elements

    def literals(self, index: int) -> list[int] | None:
        """Returns the elements of an input of integers, in C order; None where one is not known."""
        elements = self.elements(index)
        if elements is None or not all(isinstance(element, int) for element in elements.flat):
            return None
        return [int(element) for element in elements.flat]

    def numbers(self, index: int, most: int) -> list[Size | None] | None:
        """Returns the elements of a vector of integers: symbols where it is constant but not known.

        Args:
            index: The input.
            most: Elements that it may have at most where they are not known.

        Returns:
            None where not even symbols can be made.
        """
        value = self.tensor(index)
        if value.elements is not None:
            return list(value.elements.flat)
        count = value.shape[0] if value.shape is not None and len(value.shape) == 1 else None
        if value.kind is not Kind.CONSTANT or not isinstance(count, int) or not 0 <= count <= most:
            return None
        return [self.symbols.element() for _ in range(count)]

    def shape(self, index: int) -> tuple[Size, ...]:
        """Returns the shape of an input; refuses where its rank is not known."""
        shape = self.tensor(index).shape
        if shape is None:
            raise self.refusal(f"with an unknown shape of input {index}")
        return shape


Rule = Callable[[Call], Sequence[Value]]
Rules = dict[str, Rule]


def axis_of(call: Call, axis: int, rank: int) -> int:
    """Returns the axis counted from the front; refuses one that does not exist."""
    if not -rank <= axis < rank:
        raise call.refusal(f"over axis {axis} of {rank}")
    return axis % rank


def refuse_rows(call: Call, value: Value, axis: int) -> None:
    """Refuses where the rows lie on that axis."""
    if value.row is not None and value.row.axis == axis:
        raise call.refusal(f"over axis {axis}")


def broadcast(call: Call, values: Sequence[Value], rank: int = 0) -> Value:
    """Broadcasts as numpy does, from the right; refuses where rows meet anything but the same rows.

    Args:
        call: The node.
        values: Of kind CONSTANT or ROWS.
        rank: Least rank of the result.
    """
    if any(value.shape is None for value in values):
        if any(value.kind is Kind.ROWS for value in values):
            raise call.refusal("with a constant of unknown rank")
        return constant(None)
    shapes = [value.shape or () for value in values]
    rank = max([rank, *map(len, shapes)])
    row = row_of(call, values, rank)
    sizes: list[Size] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            if row is None or axis != row.axis:
                sizes[axis] = call.symbols.broadcast(sizes[axis], size)
            elif size == 1:
                continue
            elif sizes[axis] == 1:
                sizes[axis] = size
            elif size != sizes[axis]:
                raise call.refusal(f"with a constant along axis {axis}, the rows")
    return constant(sizes) if row is None else rows(sizes, row)


def row_of(call: Call, values: Sequence[Value], rank: int) -> RowAxis | None:
    """Returns where the rows lie when shapes are aligned from the right at that rank; refuses where that differs."""
    found: RowAxis | None = None
    for value in values:
        if value.row is None or value.shape is None:
            continue
        row = RowAxis(value.row.axis + rank - len(value.shape), value.row.before, value.row.after)
        if found is not None and row != found:
            raise call.refusal("of rows along different axes")
        found = row
    for value in values if found is not None else ():
        axis = found.axis - rank + len(value.shape or ()) if found is not None else 0
        if value.kind is Kind.CONSTANT and axis >= 0 and (value.shape or ())[axis] != 1:
            raise call.refusal(f"with a constant along axis {axis}, the rows")
    return found


_MOST_REALS = 64
"""Reals of a tensor that are looked at: scales of axes, never weights."""


def constant_of(tensor: TensorConstant, budget: Budget) -> Value:
    """Returns what is known of a tensor in the file."""
    values, elements = tensor.values, None
    if values is not None and (values.dtype.kind != "f" or values.size <= _MOST_REALS):
        budget.spend(2 * values.size)
        elements = np.empty(values.shape, object)
        elements.ravel()[:] = values.ravel().tolist()
    return Value(Kind.CONSTANT, tensor.dims, None, elements, type=tensor.data_type, ending=tensor.text or b"")


def attribute_constant(attributes: dict[str, Attribute], budget: Budget) -> Value:
    """Returns what a Constant node holds."""
    if len(attributes) != 1:
        return constant(None)
    (name, attribute), *_ = attributes.items()
    if name == "value" and attribute.tensor is not None:
        return constant_of(read_tensor(attribute.tensor, budget), budget)
    literal: Any = {
        "value_int": attribute.integer,
        "value_float": attribute.real,
        "value_ints": attribute.integers,
        "value_floats": attribute.reals,
    }.get(name)
    if literal is not None and not attribute.is_long:
        budget.spend(2 * np.size(literal))
        elements = np.empty(np.shape(literal), object)
        elements[...] = literal
        return Value(Kind.CONSTANT, elements.shape, None, elements, type=INT64 if "int" in name else FLOAT)
    return constant(() if name == "value_string" else None)
