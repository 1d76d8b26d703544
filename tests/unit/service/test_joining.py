"""Many requests into one batch and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tensor_bytes import Array
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.joining import bucket_size, join, joining_key, split
from fitserve_service.runs import Prepared
from fitserve_service.signature import Signature, Tensor

FLOATS = TensorSpec("x", "FP32", ("B", None))
WORDS = TensorSpec("words", "BYTES", ("B",))
OFFSET = TensorSpec("offset", "FP32", (1,), is_optional=True)


def floats(*shape: int) -> Tensor:
    return Tensor("FP32", np.zeros(shape, np.float32))


def words(count: int) -> st.SearchStrategy[Array]:
    return st.lists(st.binary(max_size=4), min_size=count, max_size=count).map(_objects)


def _objects(values: list[bytes]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@st.composite
def requests(draw: st.DrawFn) -> list[dict[str, Tensor]]:
    """Requests of one key: floats of any bits, and words."""
    width = draw(st.integers(0, 3))
    parts = []
    for rows in draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)):
        values = draw(hnp.arrays(np.uint32, (rows, width))).view(np.float32)
        parts.append({"x": Tensor("FP32", values), "words": Tensor("BYTES", draw(words(rows)))})
    return parts


@settings(deadline=None)
@given(requests(), st.integers(0, 5))
def test_splitting_what_was_joined_gives_it_back_bit_for_bit(parts: list[dict[str, Tensor]], padded: int) -> None:
    counts = [len(part["words"].array) for part in parts]
    joined = join(parts, padded)

    assert all(len(tensor.array) == sum(counts) + padded for tensor in joined.values())
    for part, back in zip(parts, split(joined, counts), strict=True):
        assert back["x"].datatype == "FP32"
        assert back["x"].array.tobytes() == part["x"].array.tobytes()
        assert back["words"].array.tolist() == part["words"].array.tolist()


def test_padding_repeats_the_last_row_so_that_its_values_are_fit_for_the_model() -> None:
    joined = join([{"x": Tensor("INT64", np.array([[1], [2]]))}], padded_rows=2)

    assert joined["x"].array.tolist() == [[1], [2], [2], [2]]


@pytest.mark.parametrize(
    ("rows", "buckets", "expected"), [(1, (), 1), (3, (4, 8), 4), (4, (4, 8), 4), (5, (4, 8), 8), (9, (4, 8), 9)]
)
def test_bucket_size(rows: int, buckets: tuple[int, ...], expected: int) -> None:
    assert bucket_size(rows, buckets) == expected


def test_requests_join_only_when_their_rows_have_one_shape_and_want_the_same() -> None:
    signature = Signature((FLOATS,), (FLOATS,), True)

    def key(tensor: Tensor, names: tuple[str, ...] = ("y",)) -> object:
        return joining_key(signature, {"x": tensor}, names, len(tensor.array))

    assert key(floats(1, 2)) == key(floats(5, 2))
    assert key(floats(1, 2)) != key(floats(1, 3))
    assert key(floats(1, 2)) != key(floats(1, 2), ("y", "z"))


def test_alone_run_requests_without_rows_without_a_batch_axis_or_with_an_optional_input() -> None:
    batched = Signature((FLOATS, OFFSET), (FLOATS,), True)
    whole = Signature((FLOATS,), (FLOATS,), False)

    assert joining_key(batched, {"x": floats(0, 2)}, ("y",), 0) is None
    assert joining_key(batched, {"x": floats(1, 2), "offset": floats(1)}, ("y",), 1) is None
    assert joining_key(whole, {"x": floats(1, 2)}, ("y",), 1) is None
    assert joining_key(batched, {"x": floats(1, 0)}, ("y",), 1) is None
    assert joining_key(batched, {"x": floats(1, 2)}, ("y",), 1) is not None


def test_alone_run_requests_in_which_axes_of_one_name_differ() -> None:
    pair = Signature((TensorSpec("a", "FP32", ("B", "S")), TensorSpec("b", "FP32", ("B", "S"))), (FLOATS,), True)

    assert joining_key(pair, {"a": floats(1, 2), "b": floats(1, 2)}, ("y",), 1) is not None
    assert joining_key(pair, {"a": floats(1, 2), "b": floats(1, 1)}, ("y",), 1) is None


@pytest.mark.parametrize("has_batch_axis", [True, False])
def test_a_row_limit_bounds_requests_joined_or_not(has_batch_axis: bool) -> None:
    signature = Signature((FLOATS,), (FLOATS,), has_batch_axis, row_limit=2)
    fits, large = ({FLOATS.name: Tensor("FP32", np.zeros((rows, 2), np.float32))} for rows in (2, 3))
    assert Prepared.check(signature, fits, ()).kind.example_count == (2 if has_batch_axis else 1)
    with pytest.raises(ServiceError, match=r"expected at most 2 examples in a request \(max_batch_size") as refused:
        Prepared.check(signature, large, ())
    assert refused.value.reason is Reason.BATCH_TOO_LARGE
