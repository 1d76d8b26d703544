"""How a version is called: code to copy, which runs as it stands against a server on this machine.

Names of inputs come from a model that anybody may have made: they are written so that neither Python nor a shell can
take them for anything but a string.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Final

from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES
from fitserve_contract.manifest import Manifest, TensorSpec

SERVER: Final = "localhost:8001"
"""Where the code looks for the server: its default port."""

_FREE_AXIS_SIZE: Final = 8
_UNSAFE_IN_SHELL: Final = re.compile(r"[^A-Za-z0-9_ .:/-]")


def client_code(manifest: Manifest) -> str:
    """Writes a prediction with fitserve's own client, Python."""
    inputs = "\n".join(f"    {_quoted(spec.name)}: {_zeros(spec)}," for spec in _required(manifest))
    return f"""\
import numpy as np
from fitserve_client import Client

inputs = {{
{inputs}
}}
with Client({_quoted(SERVER)}) as client:
    prediction = client.predict({_quoted(manifest.model)}, inputs)
print("version", prediction.version)
for name, array in prediction.outputs.items():
    print(name, array.shape)
"""


def triton_code(manifest: Manifest) -> str:
    """Writes an inference with NVIDIA's tritonclient, Python."""
    inputs = "\n".join(
        f"    ({_quoted(spec.name)}, {_quoted(spec.datatype)}, {_zeros(spec, 'bfloat16')}),"
        for spec in _required(manifest)
    )
    outputs = ", ".join(_quoted(spec.name) for spec in manifest.outputs)
    has_bf16 = any(spec.datatype == BF16 for spec in manifest.inputs)
    extra = "import ml_dtypes  # gives numpy bfloat16\n" if has_bf16 else ""
    return f"""\
{extra}import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

inputs = []
for name, datatype, array in [
{inputs}
]:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    inputs.append(tensor)
with InferenceServerClient({_quoted(SERVER)}) as client:
    answer = client.infer({_quoted(manifest.model)}, inputs)
for name in [{outputs}]:
    print(name, answer.as_numpy(name).shape)
"""


def grpcurl_code(manifest: Manifest) -> str:
    """Writes a prediction with grpcurl, for a POSIX shell."""
    inputs = ",\n".join(_json_tensor(spec) for spec in _required(manifest))
    return f"""\
grpcurl -plaintext -d @ {SERVER} fitserve.inference.v1.InferenceService/Predict <<EOF
{{"model": {{"name": {_json_string(manifest.model)}}}, "inputs": [
{inputs}
]}}
EOF
"""


def _required(manifest: Manifest) -> Sequence[TensorSpec]:
    return [spec for spec in manifest.inputs if not spec.is_optional]


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    """Gives the spec's shape for one example."""
    axes = (1,) if spec.shape is None else spec.shape
    return tuple(
        axis if isinstance(axis, int) else (1 if position == 0 else _FREE_AXIS_SIZE)
        for position, axis in enumerate(axes)
    )


def _zeros(spec: TensorSpec, bf16: str = "float32") -> str:
    """Writes an array of zeros; numpy has no bfloat16, and the clients differ in what they take in its place."""
    if spec.datatype == BYTES:
        return f'np.full({_shape(spec)}, b"", object)'
    dtype = bf16 if spec.datatype == BF16 else NUMPY_DTYPES[spec.datatype].name
    return f"np.zeros({_shape(spec)}, {_quoted(dtype)})"


def _quoted(value: str) -> str:
    """Writes a Python string literal, in double quotes where it is plain."""
    return ascii(value) if _UNSAFE_IN_SHELL.search(value) else f'"{value}"'


def _json_tensor(spec: TensorSpec) -> str:
    element_bytes = 4 if spec.datatype == BYTES else NUMPY_DTYPES[spec.datatype].itemsize
    zeros = f"$(head -c {math.prod(_shape(spec)) * element_bytes} /dev/zero | base64 | tr -d '\\n')"
    shape = json.dumps(list(_shape(spec)))
    return (
        f'  {{"name": {_json_string(spec.name)}, "datatype": "{spec.datatype}", "shape": {shape},\n'
        f'   "content": "{zeros}"}}'
    )


def _json_string(value: str) -> str:
    """Writes a JSON string in which a shell finds nothing to expand: all but plain characters as \\uXXXX."""

    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))

    return f'"{_UNSAFE_IN_SHELL.sub(escaped, value)}"'
