"""Datatypes and their dtypes."""

import numpy as np
import pytest

from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES, datatype_of


def test_every_datatype_of_the_protocol_is_known() -> None:
    integers = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
    assert set(NUMPY_DTYPES) == integers | {"BOOL", "FP16", "BF16", "FP32", "FP64", "BYTES"}


@pytest.mark.parametrize("datatype", [name for name in NUMPY_DTYPES if name not in (BF16, BYTES)])
def test_dtype_gives_its_datatype_back_in_either_byte_order(datatype: str) -> None:
    assert datatype_of(NUMPY_DTYPES[datatype]) == datatype
    assert datatype_of(NUMPY_DTYPES[datatype].newbyteorder(">")) == datatype


@pytest.mark.parametrize("dtype", [object, "S3", "U5"])
def test_objects_and_strings_are_bytes(dtype: object) -> None:
    assert datatype_of(np.dtype(dtype)) == BYTES  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "float128", "V8"])
def test_elements_without_a_datatype_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        datatype_of(np.dtype(dtype))


@pytest.mark.parametrize(("datatype", "size"), [("BOOL", 1), ("FP16", 2), ("BF16", 2), ("FP32", 4), ("INT64", 8)])
def test_element_sizes(datatype: str, size: int) -> None:
    assert NUMPY_DTYPES[datatype].itemsize == size
