"""The sizes of answers: known before the run where the shape tells, else found before they are written."""

from __future__ import annotations

import numpy as np
import pytest

from fitserve_contract.manifest import TensorSpec
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.requests.answer_size import check_answer, check_expected
from fitserve_service.signature import Signature, Tensor

Shape = tuple[int | str | None, ...] | None


def signature(inputs: dict[str, Shape], output: Shape, datatype: str = "FP32", most: int = 1000) -> Signature:
    specs = tuple(TensorSpec(name, "FP32", shape) for name, shape in inputs.items())
    outputs = (TensorSpec("y", datatype, output), TensorSpec("z", "FP32", (1,)))
    return Signature(specs, outputs, False, max_answer_bytes=most)


def given(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: Tensor("FP32", np.zeros(shape, "f4")) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("inputs", "output", "datatype"),
    [
        ({"x": ("B", 2)}, (251,), "FP32"),
        ({"x": ("B", 2)}, ("B", 26), "FP32"),
        ({"x": ("B", "T")}, ("B", "T", 13), "FP32"),
        ({"x": ("B", 2)}, ("B", 13), "INT64"),
        ({"x": ("B", 2)}, ("B", 26), "BYTES"),
    ],
)
def test_an_answer_whose_shape_tells_its_size_is_refused_before_the_run(
    inputs: dict[str, Shape], output: Shape, datatype: str
) -> None:
    with pytest.raises(
        ServiceError, match=r"at most 1000 bytes \(the server's --max-answer-bytes\), output 'y' of shape"
    ):
        check_expected(signature(inputs, output, datatype), given(x=(10, 2)), ("y",))
    check_expected(signature(inputs, output, datatype, most=1040), given(x=(10, 2)), ("y",))
    check_expected(signature(inputs, output, datatype), given(x=(10, 2)), ("z",))


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        ({"x": ("B", 2)}, ("C", 1000)),
        ({"x": ("B", 2)}, ("?", 1000)),
        ({"x": (None, 2)}, (None, 1000)),
        ({"x": ("B", 2)}, None),
        ({"x": ("B", "B")}, ("B", 1000)),
    ],
)
def test_nothing_is_refused_where_the_shape_does_not_tell(inputs: dict[str, Shape], output: Shape) -> None:
    check_expected(signature(inputs, output), given(x=(10, 2)), ("y", "z"))


def test_the_product_of_a_shape_does_not_wrap() -> None:
    with pytest.raises(ServiceError, match="makes it 73786976294838206464"):
        check_expected(signature({"x": ("B", 2)}, (2**32, 2**32)), given(x=(1, 2)), ("y",))


def test_a_finished_answer_is_held_against_the_bound() -> None:
    bound = signature({"x": ("B", 2)}, None)
    check_answer(bound, {"y": Tensor("FP32", np.zeros(250, "f4"))})
    with pytest.raises(ServiceError) as refused:
        check_answer(bound, {"y": Tensor("FP32", np.zeros(200, "f4")), "z": Tensor("FP32", np.zeros(51, "f4"))})
    assert refused.value.reason is Reason.TOO_LARGE
    assert "output 'z' of shape (51,) makes it 1004" in refused.value.message


def test_texts_count_with_their_lengths() -> None:
    array = np.array([b"a" * 496, b"b" * 496], object)
    check_answer(signature({}, None), {"y": Tensor("BYTES", array)})
    with pytest.raises(ServiceError, match="makes it 1000"):
        check_answer(signature({}, None, most=999), {"y": Tensor("BYTES", array)})


def test_zero_is_no_bound() -> None:
    check_expected(signature({"x": ("B", 2)}, (10_000,), most=0), given(x=(1, 2)), ("y",))
    check_answer(signature({}, None, most=0), {"y": Tensor("FP32", np.zeros(10_000, "f4"))})
