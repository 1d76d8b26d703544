"""What is examined: labelled models, the onnx package's own tests, and files of a folder.

Shapes: R rows of an example.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from fitserve_benchmarks.joining.experiment import Array
from fitserve_benchmarks.joining.labelled import LabelledModel

LABELLED: Final = "labelled"
ONNX_TESTS: Final = "onnx tests"
FILES: Final = "files"

INDEPENDENT: Final = "independent"
COUPLED: Final = "coupled"

ROWS: Final = "N"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to examine.

    Args:
        name: Unique in its origin.
        origin: LABELLED, ONNX_TESTS or FILES.
        content: Serialized ModelProto.
        label: INDEPENDENT, COUPLED, or empty where nobody said.
        reason: Of the label.
        ranges: Input name to the lowest and highest integer.
        sizes: Name of a free axis to its size.
        example: Input name to (R, ...) of values that the model takes; empty: drawn.
    """

    name: str
    origin: str
    content: bytes
    label: str = ""
    reason: str = ""
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    example: Mapping[str, Array] = field(default_factory=dict)


def labelled_subject(model: LabelledModel) -> Subject:
    """Builds a labelled model."""
    label = INDEPENDENT if model.is_independent else COUPLED
    return Subject(model.name, LABELLED, model.build(), label, model.reason, model.ranges, model.sizes)


def onnx_tests() -> Iterator[Subject]:
    """Yields the models of onnx's backend tests, their first axis freed where all inputs and outputs share it.

    The operators' own tests are made by onnx's code; the others are files of the package.
    """
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the package's own examples divide by
        cases = collect_testcases(None)
    for case in cases:
        if case.model is not None and case.data_sets:
            yield from freed(case.name, case.model, list(case.data_sets[0][0]))
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data").glob("*/*/model.onnx")):
        feeds = sorted((path.parent / "test_data_set_0").glob("input_*.pb"))
        yield from freed(path.parent.name, onnx.load(path), [_tensor(feed) for feed in feeds])


def files(folders: Iterable[Path], largest: int = 2**27) -> Iterator[Subject]:
    """Yields the .onnx files below folders, as they are; the name is the path from the folder."""
    for folder in folders:
        for path in sorted(folder.rglob("*.onnx")):
            if path.stat().st_size <= largest:
                yield Subject(str(path.relative_to(folder)), FILES, path.read_bytes())


def freed(name: str, model: onnx.ModelProto, inputs: list[Any]) -> Iterator[Subject]:
    """Yields a model with a free first axis; nothing where inputs and outputs do not share a first axis.

    Args:
        name: Of the subject.
        model: Changed in place.
        inputs: Arrays in the order of the graph's inputs.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    asked = [value for value in model.graph.input if value.name not in weights]
    sizes = {_first_size(value) for value in [*asked, *model.graph.output]}
    example = dict(zip([value.name for value in asked], inputs, strict=False))
    are_arrays = all(isinstance(array, np.ndarray) and array.ndim for array in example.values())
    if len(sizes) != 1 or None in sizes or not are_arrays or len(example) != len(asked) or not asked:
        return
    for value in [*asked, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = ROWS
    del model.graph.value_info[:]
    yield Subject(name, ONNX_TESTS, model.SerializeToString(), example=example)


def _first_size(value: onnx.ValueInfoProto) -> int | str | None:
    """Returns the first axis' size or name; None where there is none."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.shape.dim:
        return None
    axis = value.type.tensor_type.shape.dim[0]
    return axis.dim_param or axis.dim_value or None


def _tensor(path: Path) -> Any:
    try:
        return numpy_helper.to_array(onnx.load_tensor(path))
    except Exception:  # a sequence or an optional is no TensorProto: whatever protobuf makes of it
        return None
