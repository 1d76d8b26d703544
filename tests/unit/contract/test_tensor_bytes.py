"""Tensors as bytes: round trips, and nothing that does not fit."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fitserve_contract.datatypes import BYTES, NUMPY_DTYPES
from fitserve_contract.tensor_bytes import Array, bytes_element, decode, element_count, encode, shape_text

NUMBERS = [name for name in NUMPY_DTYPES if name != BYTES]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[str, Array]:
    """Any bit pattern of any datatype: NaN payloads, -0.0 and infinities are among them."""
    datatype = draw(st.sampled_from(NUMBERS))
    dtype, shape = NUMPY_DTYPES[datatype], draw(SHAPES)
    count = int(np.prod(shape, dtype=int))
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return datatype, np.frombuffer(raw, dtype).reshape(shape)


@given(numbers())
def test_numbers_survive_bit_by_bit(case: tuple[str, Array]) -> None:
    datatype, array = case
    content = encode(array, datatype)
    back = decode("x", datatype, array.shape, content)
    assert back.dtype == NUMPY_DTYPES[datatype]
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes() == content


@given(st.binary(max_size=40))
def test_bool_bytes_other_than_0_are_true(content: bytes) -> None:
    back = decode("x", "BOOL", [len(content)], content)
    assert back.tolist() == [byte != 0 for byte in content]
    assert set(back.tobytes()) <= {0, 1}


@given(numbers())
def test_layout_of_the_source_does_not_matter(case: tuple[str, Array]) -> None:
    datatype, array = case
    fortran = np.asfortranarray(array)
    swapped = array.astype(array.dtype.newbyteorder(">"))
    assert encode(fortran, datatype) == encode(swapped, datatype) == encode(array, datatype)


@given(hnp.arrays(object, SHAPES, elements=st.binary(max_size=20), fill=st.nothing()))
def test_bytes_survive(array: Array) -> None:
    back = decode("x", BYTES, array.shape, encode(array, BYTES))
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


@given(numbers(), st.integers(-9, 9).filter(bool))
def test_content_of_another_length_is_refused(case: tuple[str, Array], change: int) -> None:
    datatype, array = case
    content = encode(array, datatype)
    changed = content + b"\0" * change if change > 0 else content[:change]
    if len(changed) != len(content):
        with pytest.raises(ValueError, match="tensor 'image': expected"):
            decode("image", datatype, array.shape, changed)


@given(st.binary(max_size=60), st.integers(0, 5))
def test_arbitrary_content_is_decoded_whole_or_refused(content: bytes, count: int) -> None:
    try:
        elements = decode("x", BYTES, (count,), content)
    except ValueError:
        return
    assert encode(elements, BYTES) == content


def test_strings_are_written_as_utf8() -> None:
    assert encode(np.array(["é"], object), BYTES) == struct.pack("<I", 2) + "é".encode()
    assert bytes_element(b"x") == b"x"
    with pytest.raises(ValueError, match="expected bytes or str, got int"):
        bytes_element(3)


def test_decoded_numbers_are_read_only_and_share_the_content() -> None:
    content = b"\0\0\x80\x3f"
    array = decode("x", "FP32", (1,), content)
    assert array.tolist() == [1.0]
    assert not array.flags.writeable
    assert not array.flags.owndata


@pytest.mark.parametrize("shape", [(2**32, 2**32), (2**63, 2), (2**40 + 1,), (2**62, 4, 0)])
def test_products_that_would_wrap_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected at most"):
        element_count("x", shape)


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (0, -1)])
def test_negative_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        decode("x", "FP32", shape, b"")


def test_too_many_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 32 axes, got 33"):
        element_count("x", (1,) * 33)


@given(st.lists(st.integers(0, 6), max_size=6))
def test_count_is_the_product(shape: list[int]) -> None:
    expected = 1
    for size in shape:
        expected *= size
    assert element_count("x", shape) == expected


def test_unknown_datatype_is_named_and_cut() -> None:
    with pytest.raises(ValueError, match="got 'FP31'"):
        decode("x", "FP31", (1,), b"")
    with pytest.raises(ValueError, match="got 'z") as caught:
        decode("x", "z" * 10_000, (1,), b"")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("shape", "text"), [((), "()"), ((3,), "(3,)"), (("B", 1, None, -1), "(B, 1, ?, ?)")])
def test_shapes_for_people(shape: tuple[int | str | None, ...], text: str) -> None:
    assert shape_text(shape) == text
