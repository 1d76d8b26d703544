"""An ONNX file of any origin as one self-contained model whose free axes are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from fitserve_contract.files import UnsafeFileError, open_beneath, read_beneath
from fitserve_contract.manifest import TensorSpec
from fitserve_exporters.candidate.candidate import Arrays
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.assumptions import Assumptions, FreeSize, Place
from fitserve_exporters.graph.onnx_export import MAX_ONE_FILE_BYTES, check_onnx
from fitserve_exporters.graph.signature import tensor_spec
from fitserve_exporters.lint.external import is_external
from fitserve_exporters.lint.graphs import all_tensors, graph_inputs
from fitserve_exporters.texts import first_line

_LEAST_IR: Final = 4
"""Before it, every initializer had to be an input too."""

_ZIPMAP: Final = (
    "expected a tensor, got a sequence of maps (ZipMap); convert the model again without it: skl2onnx "
    "to_onnx(model, x, options={id(model): {'zipmap': False}}), onnxmltools convert_lightgbm(model, zipmap=False)"
)


def read_onnx(file: bytes | str | os.PathLike[str]) -> onnx.ModelProto:
    """Reads a model, with its external data inside.

    Args:
        file: Its path or its bytes.

    Raises:
        ExportError: there is no such file, it is no valid ONNX, too large, or its external data is not beside it.
    """
    check_onnx()
    content, folder = (file, None) if isinstance(file, bytes | bytearray) else _read(file)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(content))
    except DecodeError:
        raise ExportError(f"file: expected an ONNX model, got {len(content)} bytes that are none") from None
    if not model.graph.output:
        raise ExportError("file: expected an ONNX model with at least one output, got none: it may be another format")
    for tensor in all_tensors(model):
        if is_external(tensor):
            _take_in(tensor, folder)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        cure = (
            "; declare the shape of each input and output, as onnx.shape_inference.infer_shapes(model) does"
            if "'shape'" in str(error)
            else ""
        )
        raise ExportError(f"file: expected valid ONNX, got: {first_line(error)}{cure}") from error
    return model


def keep_outputs(model: onnx.ModelProto, names: Sequence[str] | None) -> None:
    """Removes all outputs but these, in place; all stay where it is None.

    Raises:
        ExportError: one is not there, or one that stays is no tensor of numbers.
    """
    there = {value.name: value for value in model.graph.output}
    if unknown := sorted(set(names or ()) - set(there)):
        raise ExportError(f"outputs: expected some of {', '.join(there)}, got {', '.join(unknown)}")
    kept = [there[name] for name in (there if names is None else names)]
    for value in kept:
        _check_elements("output", value)
    chosen = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del model.graph.output[:]
    model.graph.output.extend(chosen)


def input_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Returns the inputs that callers send, each a tensor of numbers with a batch.

    Raises:
        ExportError: one is something else, or its first axis is fixed.
    """
    values = graph_inputs(model)
    for value in values:
        _check_elements("input", value)
        shape = tensor_spec(value).shape
        if not shape:
            raise ExportError(
                f"input '{value.name}': expected a declared shape with the batch as its first axis, got "
                f"{'none' if shape is None else 'a scalar'}; declare it where the file is made"
            )
        if isinstance(shape[0], int):
            raise ExportError(
                f"input '{value.name}': expected a free first axis, the batch, got shape {shape}; convert the model "
                "again with a free batch: FloatTensorType([None, n]) in skl2onnx, dynamic_shapes in torch"
            )
    return values


def name_axes(model: onnx.ModelProto, specs: Mapping[str, tuple[int | str, ...]]) -> bytes:
    """Writes shapes of the inputs into a model, in place, and returns its bytes.

    Args:
        model: Inputs that are only weights stop being inputs; sizes of inner values are forgotten.
        specs: Input name to its shape; the first axis of the first names the batch.
    """
    inputs = graph_inputs(model)
    for value in inputs:
        for axis, size in zip(value.type.tensor_type.shape.dim, specs[value.name], strict=True):
            axis.Clear()
            if isinstance(size, int):
                axis.dim_value = size
            else:
                axis.dim_param = size
    batch = next(iter(specs.values()))[0]
    for value in model.graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = str(batch)
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    del model.graph.value_info[:]
    model.ir_version = max(model.ir_version, _LEAST_IR)
    if model.ByteSize() > MAX_ONE_FILE_BYTES:
        raise ExportError(f"file: expected a model of at most {MAX_ONE_FILE_BYTES} bytes, got {model.ByteSize()}")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def sizes_of(specs: Mapping[str, tuple[int | str, ...]], examples: Arrays) -> Assumptions:
    """Returns the free sizes beside the batch, axes of one name being one size; a file states no guards.

    Raises:
        ExportError: axes of one name have other sizes in the examples.
    """
    members: dict[str, list[Place]] = {}
    for name, shape in specs.items():
        for axis, title in enumerate(shape[1:], start=1):
            if isinstance(title, str):
                members.setdefault(title, []).append((name, axis))
    sizes = []
    for title, places in members.items():
        found = {examples[name].shape[axis] for name, axis in places}
        if len(found) > 1:
            raise ExportError(f"examples: expected one size of axis '{title}' in all inputs, got {sorted(found)}")
        sizes.append(FreeSize(title, found.pop(), tuple((place, 0) for place in places)))
    return Assumptions(tuple(sizes), {name: array.shape for name, array in examples.items()}, ())


def output_specs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Describes the outputs that were kept."""
    return tuple(tensor_spec(value) for value in model.graph.output)


def _check_elements(what: str, value: Any) -> None:
    if value.type.WhichOneof("value") == "sequence_type":
        raise ExportError(f"{what} '{value.name}': {_ZIPMAP}; or leave it out with outputs=[...]")
    elements = value.type.tensor_type.elem_type
    if elements == onnx.TensorProto.STRING:
        if what == "input":
            return
        cure = "leave it out with outputs=[...]: scores and class_names say the same"
        raise ExportError(f"{what} '{value.name}': expected numbers, got strings, which no certificate holds; {cure}")
    if elements in (onnx.TensorProto.BFLOAT16, onnx.TensorProto.UNDEFINED):
        raise ExportError(f"{what} '{value.name}': expected elements that numpy has, got bfloat16 or none declared")
    tensor_spec(value)


def _read(file: Any) -> tuple[bytes, Path]:
    if not isinstance(file, str | os.PathLike) or not os.fspath(file):
        raise ExportError(f"file: expected the path or the bytes of an ONNX model, got {type(file).__name__}")
    path = Path(os.fsdecode(file))
    try:
        target = path.resolve(strict=True)  # the caller's own link may lead anywhere; those of external data may not
        return read_beneath(target.parent, target.name, max_bytes=MAX_ONE_FILE_BYTES), path.parent
    except UnsafeFileError as error:
        raise ExportError(f"file '{path}': {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExportError(f"file '{path}': expected an ONNX model, got {reason}") from error


def _take_in(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Reads the content of a tensor from the file beside the model, and nowhere else."""
    where = f"file: tensor '{tensor.name}'"
    if folder is None:
        raise ExportError(f"{where}: its content lies in another file; give the path of the model instead of bytes")
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = place.get("location", ""), place.get("offset", "0"), place.get("length", "")
    if not offset.isdecimal() or not (length or "0").isdecimal():
        raise ExportError(f"{where}: expected an offset and a length of at least 0, got {offset[:24]}, {length[:24]}")
    try:
        with open_beneath(folder, location) as descriptor:
            available = os.fstat(descriptor).st_size - int(offset)
            wanted = int(length) if length else available
            if not 0 <= wanted <= min(available, MAX_ONE_FILE_BYTES):
                raise ExportError(f"{where}: expected {wanted} bytes in '{location}', got {max(available, 0)}")
            tensor.raw_data = b"".join(_pieces(descriptor, int(offset), wanted))
    except UnsafeFileError as error:
        raise ExportError(f"{where}: external data: {error}") from error
    except OSError as error:
        raise ExportError(
            f"{where}: expected its content in '{location}' beside the model: {error.strerror}"
        ) from error
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def _pieces(descriptor: int, offset: int, length: int) -> Iterator[bytes]:
    while length:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            return
        yield piece
        offset, length = offset + len(piece), length - len(piece)
