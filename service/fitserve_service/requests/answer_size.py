"""Bounds answers: before the run where their shape tells their size, else before they are written.

What holds: an output of fixed shape, or whose free axes are axes of inputs by name with one size in the request, is
refused before the run, in integers that do not wrap. Any other output (a rank or an axis that the model's values
decide, `?`, a name with two sizes) is allocated by ONNX Runtime during the run, whatever its size, and refused before
it is written: the caller gets TOO_LARGE, and no copy of it is made. Nothing here bounds the memory of such a run: where
the allocator fails it is an error of the request, but the system may end the process before. Texts count their lengths
before the run, and their bytes after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fitserve_contract.datatypes import BYTES, NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_types import axis_name
from fitserve_contract.tensor_bytes import LENGTH_BYTES, shape_text
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.signature import Signature, Tensor


def check_expected(signature: Signature, inputs: Mapping[str, Tensor], output_names: Sequence[str]) -> None:
    """Checks the outputs whose shape is fixed, or follows from axes of the inputs by name.

    Args:
        signature: The version's.
        inputs: The request's, fitting the signature.
        output_names: Outputs wanted.

    Raises:
        ServiceError: TOO_LARGE.
    """
    if not signature.max_answer_bytes:
        return
    sizes = _axis_sizes(signature.inputs, inputs)
    shapes = {spec.name: _shape(spec, sizes) for spec in signature.outputs if spec.name in output_names}
    known = [(spec, shape) for spec in signature.outputs if (shape := shapes.get(spec.name)) is not None]
    _check(signature, ((spec.name, spec.datatype, shape, None) for spec, shape in known))


def check_answer(signature: Signature, outputs: Mapping[str, Tensor]) -> None:
    """Checks an answer before it is written.

    Raises:
        ServiceError: TOO_LARGE.
    """
    if signature.max_answer_bytes:
        _check(signature, ((name, *_measured(tensor)) for name, tensor in outputs.items()))


def _measured(tensor: Tensor) -> tuple[str, tuple[int, ...], int]:
    datatype, array = tensor
    if datatype != BYTES:
        return datatype, array.shape, array.nbytes
    return datatype, array.shape, array.size * LENGTH_BYTES + sum(map(len, array.flat))


def _check(signature: Signature, outputs: Iterable[tuple[str, str, tuple[int, ...], int | None]]) -> None:
    total, most = 0, signature.max_answer_bytes
    for name, datatype, shape, size_bytes in outputs:
        if size_bytes is None:
            size_bytes = LENGTH_BYTES if datatype == BYTES else NUMPY_DTYPES[datatype].itemsize
            for size in shape:
                size_bytes *= size
        total += size_bytes
        if total > most:
            found = f"output '{name}' of shape {shape_text(shape)} makes it {total}"
            text = f"answer: expected at most {most} bytes (the server's --max-answer-bytes), {found}"
            cure = "ask for fewer rows or outputs, or raise that setting"
            raise ServiceError(Reason.TOO_LARGE, f"{text}; {cure}", output=name[:128])


def _axis_sizes(specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Gives the sizes of the named axes; an axis with two sizes is none: nothing follows from it."""
    found: dict[str, set[int]] = {}
    for spec in specs:
        tensor = inputs.get(spec.name)
        if tensor is None or spec.shape is None:
            continue
        for size, axis in zip(tensor.array.shape, spec.shape, strict=False):
            if (name := axis_name(axis)) is not None:
                found.setdefault(name, set()).add(size)
    return {name: min(sizes) for name, sizes in found.items() if len(sizes) == 1}


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    if spec.shape is None:
        return None
    shape = [axis if isinstance(axis, int) else sizes.get(axis_name(axis) or "", -1) for axis in spec.shape]
    return None if any(size < 0 for size in shape) else tuple(shape)
