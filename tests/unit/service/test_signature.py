"""Requests against signatures: each misfit is named, with what was expected and found."""

from __future__ import annotations

import numpy as np
import pytest

from fitserve_contract.axis_ranges import AxisRange
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_service.errors import Code, Reason, ServiceError
from fitserve_service.signature import Signature, Tensor, axis_conflict, with_ranges

X = TensorSpec("x", "FP32", ("B", 2))
IDS = TensorSpec("ids", "INT64", ("B", "S"))
MASK = TensorSpec("mask", "INT64", ("B", "S"))
ANY = TensorSpec("any", "FP32", None)
SCALAR = TensorSpec("scale", "FP64", ())
OPTIONAL = TensorSpec("offset", "FP32", (1,), is_optional=True)
Y = TensorSpec("y", "FP32", ("B", 2))


def tensor(datatype: str, *shape: int) -> Tensor:
    return Tensor(datatype, np.zeros(shape, NUMPY_DTYPES[datatype]))


def refusal(signature: Signature, inputs: dict[str, Tensor]) -> str:
    with pytest.raises(ServiceError) as caught:
        signature.check(inputs)
    assert (caught.value.reason, caught.value.code) == (Reason.INVALID_INPUT, Code.INVALID_ARGUMENT)
    return caught.value.message


def test_the_examples_are_counted() -> None:
    signature = Signature((IDS, MASK), (Y,), True)

    assert signature.check({"ids": tensor("INT64", 3, 7), "mask": tensor("INT64", 3, 7)}) == 3
    assert signature.check({"ids": tensor("INT64", 0, 7), "mask": tensor("INT64", 0, 7)}) == 0


def test_without_a_batch_axis_a_request_is_one_example() -> None:
    assert Signature((X,), (Y,), False).check({"x": tensor("FP32", 9, 2)}) == 1
    assert Signature((SCALAR,), (Y,), False).check({"scale": tensor("FP64")}) == 1
    assert Signature((), (Y,), False).check({}) == 1


def test_an_optional_input_may_be_left_out_and_must_fit_when_it_is_there() -> None:
    signature = Signature((X, OPTIONAL), (Y,), True)

    assert signature.check({"x": tensor("FP32", 2, 2)}) == 2
    assert signature.check({"x": tensor("FP32", 2, 2), "offset": tensor("FP32", 1)}) == 2
    found = refusal(signature, {"x": tensor("FP32", 2, 2), "offset": tensor("FP32", 3)})
    assert found == "input 'offset': expected shape (1,), got (3,)"


@pytest.mark.parametrize(
    ("specs", "inputs", "text"),
    [
        ((X,), {}, "input 'x': expected FP32 (B, 2), got no such tensor"),
        ((ANY,), {}, "input 'any': expected FP32 of any shape, got no such tensor"),
        ((X,), {"x": tensor("FP64", 1, 2)}, "input 'x': expected datatype FP32, got FP64"),
        ((X,), {"x": tensor("FP32", 1, 3)}, "input 'x': expected shape (B, 2), got (1, 3)"),
        ((X,), {"x": tensor("FP32", 2)}, "input 'x': expected shape (B, 2), got (2,)"),
        ((SCALAR,), {"scale": tensor("FP64", 2)}, "input 'scale': expected shape (), got (2,)"),
        ((SCALAR,), {"scale": tensor("FP64", 0)}, "input 'scale': expected shape (), got (0,)"),
        (
            (X,),
            {"x": tensor("FP32", 1, 2), "z": tensor("FP32", 1)},
            "input 'z': expected one of x, got an unknown name",
        ),
        ((), {"z": tensor("FP32", 1)}, "input 'z': expected one of no inputs at all, got an unknown name"),
    ],
)
def test_a_misfit_is_named(specs: tuple[TensorSpec, ...], inputs: dict[str, Tensor], text: str) -> None:
    assert refusal(Signature(specs, (Y,), False), inputs) == text


def test_axes_of_one_name_may_differ() -> None:
    """ONNX Runtime does not compare them; old exporters write one symbol for all axes that they do not know."""
    image = TensorSpec("image", "FP32", ("N", 3, "?", "?"))

    assert Signature((image,), (Y,), True).check({"image": tensor("FP32", 1, 3, 48, 192)}) == 1
    inputs = {"ids": tensor("INT64", 2, 7), "mask": tensor("INT64", 2, 8)}
    assert Signature((IDS, MASK), (Y,), True).check(inputs) == 2
    assert Signature((IDS, MASK), (Y,), False).check(inputs | {"ids": tensor("INT64", 5, 7)}) == 1


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scalar_may_have_axes_as_long_as_it_is_one_element(shape: tuple[int, ...]) -> None:
    assert Signature((SCALAR,), (Y,), False).check({"scale": tensor("FP64", *shape)}) == 1


def test_axes_of_one_name_that_differ_are_named_for_a_run_that_failed() -> None:
    text = axis_conflict((IDS, MASK), {"ids": tensor("INT64", 2, 7), "mask": tensor("INT64", 2, 8)})
    assert text == "input 'mask': expected 7 for axis S, as in input 'ids', got shape (2, 8)"
    square = TensorSpec("square", "FP32", ("K", "K"))
    text = axis_conflict((ANY, square), {"any": tensor("FP32", 3), "square": tensor("FP32", 2, 3)})
    assert text == "input 'square': expected 2 for axis K, as before, got shape (2, 3)"


@pytest.mark.parametrize("name", ["?", "", "-1", "None", "unknown", None])
def test_axes_without_a_name_are_in_no_conflict(name: str | None) -> None:
    spec = TensorSpec("x", "FP32", (name, name))

    assert axis_conflict((spec, X), {"x": tensor("FP32", 2, 3)}) == ""


def test_inputs_that_bring_different_numbers_of_examples_are_refused_though_their_axes_have_other_names() -> None:
    signature = Signature((X, TensorSpec("z", "FP32", ("N", 2))), (Y,), True)

    text = refusal(signature, {"x": tensor("FP32", 2, 2), "z": tensor("FP32", 3, 2)})
    assert text == "input 'z': expected 2 examples on the first axis as in input 'x', got 3"


def test_a_scalar_to_an_open_rank_that_counts_examples_is_refused() -> None:
    text = refusal(Signature((ANY,), (Y,), True), {"any": tensor("FP32")})

    assert text == "input 'any': expected a first axis that counts examples, got a scalar"


def test_an_open_rank_takes_any_shape() -> None:
    signature = Signature((ANY,), (Y,), False)

    for shape in ((), (0,), (2, 3, 4)):
        assert signature.check({"any": tensor("FP32", *shape)}) == 1


def test_a_very_long_name_is_cut_in_the_message() -> None:
    assert len(refusal(Signature((X,), (Y,), True), {"x": tensor("FP32", 1, 2), "n" * 9999: tensor("FP32")})) < 300


def test_outputs_asked_for() -> None:
    signature = Signature((X,), (Y, TensorSpec("z", "FP32", ("B",))), True)

    assert signature.check_outputs([]) == ("y", "z")
    assert signature.check_outputs(["z"]) == ("z",)
    assert signature.check_outputs(["z", "y"]) == ("z", "y")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["q"], "output 'q': expected one of y"),
        (["y", "y"], "output 'y': expected it once, got it twice"),
    ],
)
def test_outputs_that_are_not_there_or_asked_for_twice(names: list[str], text: str) -> None:
    with pytest.raises(ServiceError, match=text) as caught:
        Signature((X,), (Y,), True).check_outputs(names)
    assert caught.value.reason is Reason.INVALID_OUTPUT


RANGED = TensorSpec("x", "FP32", ("B", "n"), ranges=(AxisRange(1, 8, 300, 4),))


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (4, "axis 1 ('n'): expected at least 8, got 4"),
        (304, "axis 1 ('n'): expected at most 300, got 304"),
        (10, "axis 1 ('n'): expected a multiple of 4, got 10"),
    ],
)
def test_size_outside_its_range_is_named_with_axis_and_bound(size: int, problem: str) -> None:
    signature = Signature((RANGED,), (Y,), True)
    assert refusal(signature, {"x": tensor("FP32", 2, size)}) == f"input 'x': {problem}"
    assert signature.check({"x": tensor("FP32", 2, 300)}) == 2


def test_axis_that_follows_another_inputs_is_held_to_it() -> None:
    mask = TensorSpec("mask", "INT64", ("B", "S"), ranges=(AxisRange(1, 0, same_as=("ids", 1), offset=-1),))
    signature = Signature((mask, IDS), (Y,), True)
    assert signature.check({"ids": tensor("INT64", 3, 7), "mask": tensor("INT64", 3, 6)}) == 3
    text = refusal(signature, {"ids": tensor("INT64", 3, 7), "mask": tensor("INT64", 3, 7)})
    assert text == "input 'mask': axis 1: expected 6, as axis 1 of input 'ids' -1, got 7"


def test_ranges_of_axes_that_the_model_lacks_are_refused() -> None:
    assert with_ranges((X, IDS), (RANGED,))[0].ranges == RANGED.ranges
    strange = TensorSpec("x", "FP32", ("B", 2), ranges=(AxisRange(1, same_as=("ids", 5)),))
    with pytest.raises(ValueError, match="expected an axis of the model, got axis 5 of 'ids'"):
        with_ranges((X, IDS), (strange,))
