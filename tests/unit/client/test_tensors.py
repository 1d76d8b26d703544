"""Casts that lose nothing but float precision, and tensors as messages."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fitserve.types.v1 import tensor_pb2
from fitserve_client.errors import InternalError, InvalidArgumentError
from fitserve_client.tensors import LABELS, Subject, array_of, as_array, cast, natural_datatype, tensor_message
from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES

X = Subject.input("x")
NUMBERS = [name for name in NUMPY_DTYPES if name not in (BF16, BYTES)]
INTEGERS = [name for name in NUMBERS if NUMPY_DTYPES[name].kind in "iub"]


@given(st.data(), st.sampled_from(NUMBERS))
def test_an_array_of_the_datatype_goes_out_and_comes_back_unchanged(data, datatype):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[datatype], hnp.array_shapes(min_dims=0, min_side=0, max_dims=3)))
    back = array_of(tensor_message("x", datatype, cast(X, datatype, array)))
    assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())


@given(
    hnp.arrays(object, hnp.array_shapes(min_dims=0, min_side=0), elements=st.binary(max_size=5) | st.text(max_size=5))
)
def test_bytes_and_text_go_out_as_bytes(array):
    back = array_of(tensor_message("x", BYTES, cast(X, BYTES, array)))
    flat = [value.encode() if isinstance(value, str) else value for value in array.reshape(-1).tolist()]
    assert back.shape == array.shape
    assert back.reshape(-1).tolist() == flat


@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(NUMBERS))
def test_integers_arrive_as_the_same_numbers_or_not_at_all(data, found, datatype):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[found], st.integers(0, 5)))
    values = [int(value) for value in array.tolist()]
    try:
        result = cast(X, datatype, array)
    except InvalidArgumentError:
        assert any(not _holds(datatype, value) for value in values)
    else:
        assert result.dtype == NUMPY_DTYPES[datatype]
        assert [int(value) for value in result.tolist()] == values


def _holds(datatype: str, value: int) -> bool:
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "b":
        return value in (0, 1)
    if dtype.kind in "iu":
        return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    with np.errstate(over="ignore"):
        as_float = float(np.float64(value).astype(dtype))
    return np.isfinite(as_float) and int(as_float) == value and int(np.float64(value)) == value


@given(hnp.arrays(np.float64, st.integers(1, 5)), st.sampled_from(["FP16", "FP32", "FP64", BF16]))
def test_floats_are_rounded_but_never_become_infinite(array, datatype):
    try:
        result = cast(X, datatype, array)
    except InvalidArgumentError:
        with np.errstate(over="ignore"):
            dtype = ml_dtypes.bfloat16 if datatype == BF16 else NUMPY_DTYPES[datatype]
            assert (np.isfinite(array) & ~np.isfinite(array.astype(np.float32).astype(dtype))).any()
    else:
        back = array_of(tensor_message("x", datatype, result)).astype(np.float64)
        assert (np.isfinite(back) == np.isfinite(array)).all()
        assert (np.isnan(back) == np.isnan(array)).all()


@given(hnp.arrays(np.float32, 6, elements=st.floats(width=32, allow_nan=False)))
def test_bf16_rounds_as_ml_dtypes_does(array):
    with np.errstate(over="ignore"):
        expected = array.astype(ml_dtypes.bfloat16)
    if (np.isfinite(array) & ~np.isfinite(expected.astype(np.float32))).any():
        with pytest.raises(InvalidArgumentError, match="values that BF16 holds"):
            cast(X, BF16, array)
        return
    assert (cast(X, BF16, array) == expected.view(np.uint16)).all()
    assert (cast(X, BF16, expected) == expected.view(np.uint16)).all()


@given(st.lists(st.integers(0, 0x7F7F - 1), min_size=1))
def test_bf16_ties_go_to_even(upper_halves):
    halfway = ((np.array(upper_halves, np.uint32) << 16) | 0x8000).view(np.float32)
    expected = halfway.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (cast(X, BF16, halfway) == expected).all()
    assert (expected % 2 == 0).all()


def test_bf16_comes_back_as_float32():
    message = tensor_message("x", BF16, cast(X, BF16, [1.5, -0.0, np.nan, np.inf]))
    back = array_of(message)
    assert back.dtype == np.float32
    assert back.tobytes()[:8] == np.array([1.5, -0.0], np.float32).tobytes()
    assert np.isnan(back[2])
    assert back[3] == np.inf


@pytest.mark.parametrize("value", [[1.0, 2.0], np.array([0.5], np.float32)])
@pytest.mark.parametrize("datatype", INTEGERS)
def test_floats_never_become_integers(value, datatype):
    with pytest.raises(InvalidArgumentError, match=rf"input 'x': expected {datatype}, got float") as raised:
        cast(X, datatype, value)
    assert (raised.value.reason, raised.value.metadata) == ("INVALID_INPUT", {"input": "x"})


@pytest.mark.parametrize(
    ("datatype", "value", "text"),
    [
        ("INT8", [0, 300], r"expected INT8 values -128..127, got 300"),
        ("UINT8", [-1], r"expected UINT8 values 0..255, got -1"),
        ("BOOL", [0, 2], r"expected BOOL values 0..1, got 2"),
        ("FP32", [2**24 + 1], r"expected values that FP32 holds, got 16777217 in int64"),
        ("FP64", np.array([2**63 + 1], np.uint64), r"expected values that FP64 holds, got 9223372036854775809"),
        ("FP16", [1e6], r"expected values that FP16 holds, got 1000000.0 in float64"),
        ("FP32", ["text"], r"expected FP32, got <U4"),
        ("FP32", [1j], r"expected FP32, got complex128"),
        ("BYTES", [1], r"BYTES element: expected bytes or str, got int"),
        ("FP32", [[1.0], [2.0, 3.0]], r"expected an array or nested lists of equal lengths, got"),
    ],
)
def test_a_cast_that_would_lose_something_says_what(datatype, value, text):
    with pytest.raises(InvalidArgumentError, match=text):
        cast(X, datatype, value)


def test_labels_have_their_own_reason():
    with pytest.raises(InvalidArgumentError, match=r"^labels: expected INT64") as raised:
        cast(LABELS, "INT64", [0.5])
    assert raised.value.reason == "INVALID_LABELS"


def test_lists_and_numbers_are_arrays():
    assert cast(X, "INT32", [[1, 2], [3, 4]]).dtype == np.int32
    assert cast(X, "FP32", 7).shape == ()
    assert cast(X, "FP32", np.float64(0.1)) == np.float32(0.1)
    assert cast(X, "INT64", []).dtype == np.int64
    assert natural_datatype(X, as_array(X, [1.0])) == "FP64"


def test_an_array_without_a_datatype_is_refused():
    with pytest.raises(InvalidArgumentError, match="complex"):
        natural_datatype(X, np.zeros(1, complex))


def test_big_endian_arrays_arrive_as_the_same_numbers():
    array = np.array([1, 2, 3], ">i4")
    assert array_of(tensor_message("x", "INT32", cast(X, "INT32", array))).tolist() == [1, 2, 3]


def test_answers_are_the_callers_own():
    array = array_of(tensor_message("x", "FP32", np.ones(3, np.float32)))
    array += 1
    assert array.tolist() == [2, 2, 2]


def test_bytes_that_do_not_fit_the_shape_are_the_servers_fault():
    with pytest.raises(InternalError, match=r"answer: tensor 'y': expected 8 bytes"):
        array_of(tensor_pb2.Tensor(name="y", datatype="FP32", shape=[2], content=b"123"))
