"""What torch.export assumed of the sizes of free axes while it traced: guards, and which axes are one.

A traced graph holds only where its guards do: a branch on `x.shape[1] > 300` leaves one side of itself in the graph.
ONNX has no place for that, so the exporter keeps it, proves it and has the server enforce it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeAlias

import torch

from fitserve_exporters.candidate.candidate import Arrays, Candidate
from fitserve_exporters.errors import ExportError

Place: TypeAlias = tuple[str, int]
"""An input and one of its axes."""

_Known: TypeAlias = dict[str, list[tuple[Any, int]]]
"""Name of a size to the expressions that torch has for its axes, each with its offset."""


@dataclass(frozen=True, slots=True)
class FreeSize:
    """One size that callers choose: an axis, and those that follow it.

    Args:
        name: Of the axis, as the caller named it.
        traced: Its size while it was traced.
        members: Axes, each with what is added to the size to have its own; the first is the axis itself, with 0.
    """

    name: str
    traced: int
    members: tuple[tuple[Place, int], ...]

    @property
    def place(self) -> Place:
        """The axis itself."""
        return self.members[0][0]


@dataclass(frozen=True, slots=True)
class Assumptions:
    """All of it.

    Args:
        sizes: The sizes that callers choose beside the batch.
        shapes: Of the inputs while they were traced, in order.
        guards: Expressions over `L['tensors'][input].size()[axis]`.
    """

    sizes: tuple[FreeSize, ...]
    shapes: Mapping[str, tuple[int, ...]]
    guards: tuple[CodeType, ...]

    def shapes_at(self, chosen: Mapping[str, int], batch: int | None = None) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each input where the sizes of these names are chosen, and the others as traced."""
        shapes = {name: [shape[0] if batch is None else batch, *shape[1:]] for name, shape in self.shapes.items()}
        for size in self.sizes:
            for (name, axis), offset in size.members:
                shapes[name][axis] = chosen.get(size.name, size.traced) + offset
        return {name: tuple(shape) for name, shape in shapes.items()}

    def hold(self, chosen: Mapping[str, int], batch: int | None = None) -> bool:
        """Tells whether every guard holds for some sizes, and for so many examples."""
        shapes = self.shapes_at(chosen, batch)
        sizes = {"L": {"tensors": [_Sized(shape) for shape in shapes.values()]}, "max": max, "min": min}
        try:
            return all(eval(guard, {"__builtins__": {}}, sizes) for guard in self.guards)
        except (
            Exception
        ):  # a division by a size that is 0, or a function that torch alone knows: it is not known to hold
            return False


@dataclass(frozen=True, slots=True)
class _Sized:
    """Stands for a tensor in a guard."""

    shape: tuple[int, ...]

    def size(self) -> tuple[int, ...]:
        """Returns its shape."""
        return self.shape


def read_assumptions(program: torch.export.ExportedProgram, candidate: Candidate, traced: Arrays) -> Assumptions:
    """Reads them from a traced program.

    Args:
        program: Its inputs are the candidate's, in order.
        candidate: What was traced.
        traced: The inputs that it was traced with.

    Raises:
        ExportError: an axis that was to be free became a constant, or axes follow each other in a way that no
            signature can say.
    """
    shapes = _symbolic_shapes(program)
    sizes: list[FreeSize] = []
    symbols: _Known = {}
    for spec, shape in zip(candidate.module_inputs, shapes, strict=True):
        for axis, title in enumerate(spec.shape[1:], start=1):
            if isinstance(title, str):
                _add(sizes, symbols, (spec.name, axis), (title, shape[axis], traced[spec.name].shape[axis]))
    guards = tuple(compile(code, "<guard>", "eval") for code in dict.fromkeys(_guards(program, shapes)))
    return Assumptions(tuple(sizes), {name: array.shape for name, array in traced.items()}, guards)


def constant_axis(place: Place, title: str, size: int) -> ExportError:
    """Words the refusal of an axis that was to be free and is a constant of the module."""
    if place[1] == 0:
        return ExportError(
            f"export: expected a module that takes any number of examples, but it makes the first axis of '{place[0]}' "
            f"the constant {size}; compute with x.shape[0] instead of a number, and on all examples at once instead of "
            "in a loop over them"
        )
    return ExportError(
        f"free_axes['{place[0]}'][{place[1]}] ('{title}'): expected a free axis, but the module makes it the constant "
        f"{size}; leave it out of free_axes, or compute with x.shape[{place[1]}] instead of a number"
    )


def _guards(program: torch.export.ExportedProgram, shapes: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yields torch's guards as expressions, and the ranges of its symbols.

    Raises:
        ExportError: this torch does not say what it assumed.
    """
    found = getattr(program, "_guards_code", None)
    if found is None:
        raise ExportError(
            f"torch: expected a version whose exported programs keep their guards, got {torch.__version__}"
        )
    yield from found
    for place, shape in enumerate(shapes):
        for axis, size in enumerate(shape[1:], start=1):
            known = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            if known is not None and known.upper.is_Integer:
                yield f"L['tensors'][{place}].size()[{axis}] <= {int(known.upper)}"
            if known is not None and known.lower.is_Integer:
                yield f"L['tensors'][{place}].size()[{axis}] >= {int(known.lower)}"


def _symbolic_shapes(program: torch.export.ExportedProgram) -> list[Sequence[Any]]:
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [values[name].shape for name in names]


def _add(sizes: list[FreeSize], symbols: _Known, place: Place, axis: tuple[str, Any, int]) -> None:
    """Adds a free axis: to the size that it follows, by its symbol or its name, or as a size of its own."""
    title, symbolic, traced = axis
    if isinstance(symbolic, int):
        raise constant_axis(place, title, symbolic)
    expression = symbolic.node.expr
    for index, size in enumerate(sizes):
        offset = _offset(expression, symbols[size.name])
        if offset is None and size.name == title:
            offset = 0  # the caller's word: axes of one name are of one size
        if offset is not None:
            sizes[index] = FreeSize(size.name, size.traced, (*size.members, (place, offset)))
            symbols[size.name].append((expression, offset))
            return
        if any(expression.free_symbols & known.free_symbols for known, _ in symbols[size.name]):
            raise ExportError(
                f"free_axes: axis {place[1]} of '{place[0]}' ('{title}') is {expression} where axis {size.place[1]} of "
                f"'{size.place[0]}' is {symbols[size.name][0][0]}; only sizes that are equal, or a constant apart, can "
                "be checked: leave one of them out of free_axes"
            )
    symbols[title] = [(expression, 0)]
    sizes.append(FreeSize(title, traced, ((place, 0),)))


def _offset(expression: Any, known: Sequence[tuple[Any, int]]) -> int | None:
    """Computes what is to be added to a size to have another; None where they are not a constant apart."""
    for other, offset in known:
        apart = expression - other
        if apart.is_number:
            return int(apart) + offset
    return None
