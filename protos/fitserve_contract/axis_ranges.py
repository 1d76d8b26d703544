"""The sizes of free axes that an exported version was proved at: what a graph cannot say, and the server enforces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AxisRange:
    """The sizes that one free axis of an input may have.

    Args:
        axis: Which axis of the input.
        minimum: Smallest size.
        maximum: Largest size; None where there is no bound.
        multiple_of: Sizes are `remainder` above a multiple of this.
        remainder: See `multiple_of`.
        same_as: Input and axis whose size this one has, after `offset` is added; None where it is on its own.
        offset: See `same_as`.
    """

    axis: int
    minimum: int = 0
    maximum: int | None = None
    multiple_of: int = 1
    remainder: int = 0
    same_as: tuple[str, int] | None = None
    offset: int = 0

    def problem(self, size: int) -> str:
        """Names the bound that a size breaks, what was expected and found; empty where it fits."""
        if size < self.minimum:
            return f"expected at least {self.minimum}, got {size}"
        if self.maximum is not None and size > self.maximum:
            return f"expected at most {self.maximum}, got {size}"
        if size % self.multiple_of != self.remainder:
            more = f" and {self.remainder} more" if self.remainder else ""
            return f"expected a multiple of {self.multiple_of}{more}, got {size}"
        return ""

    def text(self, name: str) -> str:
        """Writes the range for people: `at least 2, at most 300, a multiple of 8`; empty where all sizes do.

        Args:
            name: Of the axis.
        """
        parts = [f"{name} at least {self.minimum}"] if self.minimum > 1 or self.maximum is not None else []
        if self.maximum is not None:
            parts.append(f"at most {self.maximum}")
        if self.multiple_of > 1:
            more = f" and {self.remainder} more" if self.remainder else ""
            parts.append(f"{'' if parts else name + ' '}a multiple of {self.multiple_of}{more}")
        if self.same_as is not None:
            offset = f" {'+' if self.offset > 0 else '-'} {abs(self.offset)}" if self.offset else ""
            parts.append(f"{'' if parts else name + ' '}as axis {self.same_as[1]} of '{self.same_as[0]}'{offset}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the range as the manifest writes it."""
        found: dict[str, Any] = {"axis": self.axis, "minimum": self.minimum, "maximum": self.maximum}
        if self.multiple_of != 1:
            found |= {"multiple_of": self.multiple_of, "remainder": self.remainder}
        if self.same_as is not None:
            found |= {"same_as": {"input": self.same_as[0], "axis": self.same_as[1], "offset": self.offset}}
        return found

    @staticmethod
    def from_json(value: Any, where: str) -> AxisRange:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: names `where` and what is wrong there.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
        maximum, same = value.get("maximum"), value.get("same_as")
        axis, minimum = _count(value, "axis", where), _count(value, "minimum", where)
        multiple_of = _count(value, "multiple_of", where, 1)
        remainder = _count(value, "remainder", where, 0)
        if multiple_of < 1 or remainder >= multiple_of:
            raise ValueError(f"{where}.multiple_of: expected more than the remainder {remainder}, got {multiple_of}")
        return AxisRange(
            axis,
            minimum,
            None if maximum is None else _count(value, "maximum", where),
            multiple_of,
            remainder,
            *_same_as(same, f"{where}.same_as"),
        )


def _same_as(value: Any, where: str) -> tuple[tuple[str, int] | None, int]:
    if value is None:
        return None, 0
    if not isinstance(value, Mapping) or not isinstance(value.get("input"), str):
        raise ValueError(f"{where}: expected an object with an input, got {str(value)[:80]}")
    offset = value.get("offset", 0)
    if type(offset) is not int:
        raise ValueError(f"{where}.offset: expected an integer, got {str(offset)[:32]}")
    return (value["input"], _count(value, "axis", where)), offset


def _count(value: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    found = value.get(key, default)
    if type(found) is not int or found < 0:
        raise ValueError(f"{where}.{key}: expected an integer of at least 0, got {str(found)[:32]}")
    return found
