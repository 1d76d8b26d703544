"""Types as ONNX Runtime spells them: what is served, and what is said of the rest."""

import pytest

from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.onnx_types import datatype_of_type, is_optional_type, unserved_text


def test_every_datatype_has_its_type() -> None:
    names = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16")
    types = [f"tensor({name})" for name in (*names, "float", "double", "string")]

    assert [datatype_of_type(name) for name in types] == list(NUMPY_DTYPES)
    assert [datatype_of_type(f"optional({name})") for name in types] == list(NUMPY_DTYPES)
    assert is_optional_type("optional(tensor(float))")
    assert not is_optional_type("tensor(float)")


@pytest.mark.parametrize(
    ("onnx_type", "what", "kind", "remedy"),
    [
        ("seq(map(int64,tensor(float)))", "output", "a sequence of maps (seq(", "options={'zipmap': False}"),
        ("map(string,tensor(float))", "output", "a map (map(", "options={'zipmap': False}"),
        ("map(int64,tensor(float))", "input", "a map (map(", "keys and values"),
        (
            "seq(tensor(float))",
            "output",
            "a sequence (seq(",
            "convert it to a tensor in the graph (ConcatFromSequence)",
        ),
        ("seq(tensor(float))", "input", "a sequence (seq(", "convert it from a tensor in the graph (SplitToSequence)"),
        ("optional(seq(tensor(int64)))", "output", "an optional value: a sequence (optional(", "ConcatFromSequence"),
        ("sparse_tensor(float)", "output", "a sparse tensor (sparse", "a dense tensor"),
        ("tensor(float8e4m3fn)", "input", "a tensor of float8e4m3fn (", "add a Cast node from FP32 or FP16"),
        ("tensor(float8e5m2)", "output", "a tensor of float8e5m2 (", "add a Cast node to FP32 or FP16"),
        ("tensor(uint4)", "output", "a tensor of uint4 (", "add a Cast node to INT8 or UINT8"),
        ("tensor(complex64)", "output", "a tensor of complex64 (", "torch.view_as_real"),
        ("opaque(a,b)", "output", "a value that is no tensor (opaque(", "a dense tensor"),
    ],
)
def test_other_types_are_named_with_the_way_out(onnx_type: str, what: str, kind: str, remedy: str) -> None:
    text = unserved_text(onnx_type, what)

    assert datatype_of_type(onnx_type) is None
    assert text.startswith(f"expected a tensor of a served datatype, got {kind}")
    assert f"({onnx_type}); " in text
    assert remedy in text
