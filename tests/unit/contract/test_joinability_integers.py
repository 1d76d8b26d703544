"""Arithmetic on sizes against numpy's of the same type: an element that is taken for exact is what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joinability_world import ints, model, node
from onnx import TensorProto, helper, numpy_helper

from fitserve_contract.joinability import rules_integers as integers
from fitserve_contract.joinability.element_types import INTEGER_RANGES
from fitserve_contract.joinability.proof import prove_rows
from fitserve_contract.joinability.rules_integers import Arithmetic, Element
from fitserve_contract.joinability.sizes import (
    MOST_ELEMENTS,
    MOST_ROW_ELEMENTS,
    MOST_ROWS,
    ROW_COUNT,
    ROWS,
    Product,
    Symbols,
    times,
)
from fitserve_contract.onnx_wire import Budget

DTYPES = {6: np.int32, 7: np.int64, 12: np.uint32, 2: np.uint8}
OPERATIONS: dict[str, tuple[Callable[..., Element], Callable[..., object]]] = {
    "Add": (integers.add, np.add),
    "Sub": (integers.subtract, np.subtract),
    "Mul": (integers.multiply, np.multiply),
    "Max": (integers.extreme(max), np.maximum),
    "Min": (integers.extreme(min), np.minimum),
    "Equal": (integers.equal, np.equal),
    "Less": (integers.compare(lambda one, other: one < other), np.less),
}
AXIS = Product(1, ("s",))
rows_and_sizes = st.tuples(
    st.sampled_from([1, 2, 3, 16, MOST_ROWS]), st.sampled_from([1, 2, 7, MOST_ROW_ELEMENTS])
).filter(lambda counts: math.prod(counts) <= MOST_ELEMENTS)
operands = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-4, 4),
    st.builds(
        lambda factor, size: times(factor, size),
        st.sampled_from([1, 2, 3, 2**20, 2**31, 2**59, -1]),
        st.sampled_from([ROW_COUNT, AXIS, times(AXIS, ROW_COUNT)]),
    ),
)


def valued(element: Element, counts: tuple[int, int]) -> int | None:
    """The number that an element is, where it is made of the two sizes."""
    if not isinstance(element, Product):
        return None if element is None else int(element)
    if not set(element.symbols) <= {ROWS, "s"}:
        return None
    rows, size = counts
    return element.coefficient * math.prod(rows if name == ROWS else size for name in element.symbols)


@pytest.mark.parametrize("number", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
@given(first=operands, second=operands, counts=rows_and_sizes)
def test_what_is_taken_for_exact_is_what_numpy_makes(
    name: str, number: int, first: Element, second: Element, counts: tuple[int, int]
) -> None:
    symbols, dtype = Symbols(Budget(10_000)), DTYPES[number]
    symbols.of_input([ROW_COUNT, AXIS])
    arithmetic = Arithmetic(symbols, name, number, INTEGER_RANGES[number])
    operation, runtime = OPERATIONS[name]
    given = [arithmetic.kept(element) for element in (first, second)]  # type: ignore[arg-type]
    numbers = [valued(element, counts) for element in given]
    found = valued(operation(arithmetic, *given), counts)
    if found is not None and None not in numbers:
        with np.errstate(all="ignore"):
            made = runtime(*(np.array([value], dtype) for value in numbers))
        assert found == made.tolist()[0]  # type: ignore[attr-defined]


@given(factor=st.integers(1, 2**62), counts=rows_and_sizes)
def test_ranges_hold_every_value(factor: int, counts: tuple[int, int]) -> None:
    symbols = Symbols(Budget(1000))
    symbols.of_input([ROW_COUNT, AXIS])
    low, high = symbols.range_of(times(factor, times(ROW_COUNT, AXIS)))

    if counts[0] * counts[1] <= 1 << 44:
        assert low <= factor * counts[0] * counts[1] <= high


GATHERED = {"c": np.zeros((1, 1, 512), np.int64), "i": np.zeros((1,) * 30, np.int64)}


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Gather", "c i", "a"), node("Gather", "a i")], GATHERED),
        ([node("Expand", "c s")], {"c": ints(1), "s": ints(*[512] * 40)}),
        ([node("Unsqueeze", "x s")], {"s": ints(*range(2, 4000))}),
        ([node("SplitToSequence", "x k", "s", axis=1), node("SequenceAt", "s k")], {"k": np.int64(1)}),
    ],
    ids=["many axes", "many axes to expand to", "more axes than there are", "more parts than fit"],
)  # fmt: skip
def test_what_is_too_large_is_not_made(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    assert prove_rows(model(nodes, {"x": ("N", 2**40)}, constants)).problem


def hostile_symbols(count: int) -> bytes:
    grown = [node("Add", f"t{place} c", f"t{place + 1}") for place in range(count)]
    start = [node("Cast", "unknown", "e", to=TensorProto.INT64), node("Concat", "e one", "t0", axis=0)]
    constants = {"unknown": np.zeros(511, np.float32), "one": ints(1), "c": np.arange(1, 513)}
    return model([*start, *grown, node("Identity", "x")], constants=constants)


def hostile_ranks(count: int) -> bytes:
    grown = [node("Add", f"y{place} x", f"y{place + 1}") for place in range(count)]
    return model([node("Identity", "x", "y0"), *grown], {"x": ("N", *(f"d{axis}" for axis in range(62)))})


@pytest.mark.parametrize("content", [hostile_symbols(2000), hostile_ranks(20_000)], ids=["symbols", "ranks"])
def test_what_every_node_makes_again_is_paid_for(content: bytes) -> None:
    assert "more than 2,000,000 steps" in prove_rows(content).problem


def test_constants_of_a_body_are_read_once_however_often_it_runs() -> None:
    graph = helper.make_graph(
        [node("Identity", "x", "t")],
        "g",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.arange(4096), f"i{place}") for place in range(100)],
    )
    opsets = [helper.make_opsetid("", 20)]
    branch = node("If", "c", "b", then_branch=graph, else_branch=graph)
    function = helper.make_function("own", "F", ["x", "c"], ["b"], [branch], opsets)
    calls = [node("F", f"{f'y{place - 1}' if place else 'x'} c", f"y{place}", "own") for place in range(500)]
    content = model([*calls, node("Identity", "y499")], constants={"c": np.bool_(True)}, functions=[function])

    assert prove_rows(content).is_proved
