"""The files that let anybody check a version again: the probe with torch's own answers, and held-out examples.

Both are safetensors: numbers only, no code. B is the number of examples of the file. An input of texts, `bytes` objects
here, is two tensors there: the bytes of all of them in C order, and INT64 (B, ...) the length of each.
A replay holds max|answer - fp64| of each output against `verification.tolerance.per_output` of the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fitserve_contract.files import read_beneath
from fitserve_contract.tensor_bytes import Array

PROBE_FILE: Final = "probe.safetensors"
HELD_OUT_FILE: Final = "held_out.safetensors"

MAX_CERTIFICATE_BYTES: Final = 256 << 20
"""Largest probe or held-out file that is read."""

_INPUT: Final = "input/"
_TEXTS: Final = "input_texts/"
_TEXT_LENGTHS: Final = "input_text_lengths/"
_FP32: Final = "torch_fp32/"
_FP64: Final = "torch_fp64/"
_LABELS: Final = "labels"
_INDICES: Final = "indices"


class CertificateError(ValueError):
    """A probe or held-out file that cannot be understood; the message names the file, expected and found."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs, and what eager torch answered to them on the exporting machine.

    Args:
        inputs: Input name to (B, ...).
        fp32: Output name to (B, ...), computed in the model's own precision.
        fp64: Output name to (B, ...), computed with weights and inputs in float64.
    """

    inputs: Mapping[str, Array]
    fp32: Mapping[str, Array]
    fp64: Mapping[str, Array]

    def to_bytes(self) -> bytes:
        """Writes the probe as safetensors; the same probe gives the same bytes."""
        return _write({_INPUT: self.inputs, _FP32: self.fp32, _FP64: self.fp64}, {})

    @staticmethod
    def from_bytes(content: bytes) -> Probe:
        """Reads what `to_bytes` wrote.

        Raises:
            CertificateError: it is no safetensors file, or lacks inputs or outputs.
        """
        tensors = _tensors(PROBE_FILE, content)
        probe = Probe(_inputs(PROBE_FILE, tensors), _under(tensors, _FP32), _under(tensors, _FP64))
        if not probe.inputs or not probe.fp32 or probe.fp32.keys() != probe.fp64.keys():
            text = f"{PROBE_FILE}: expected inputs and outputs in fp32 and float64, got {sorted(tensors)}"
            raise CertificateError(text)
        _check_lengths(PROBE_FILE, tensors)
        return probe


@dataclass(frozen=True, slots=True)
class HeldOutExamples:
    """Labelled examples that training never saw.

    Args:
        inputs: Input name to (B, ...).
        labels: As the version's task says, (B, ...).
        indices: INT64 (B): where each example lies in the set that it was sampled from.
    """

    inputs: Mapping[str, Array]
    labels: Array
    indices: Array

    def to_bytes(self) -> bytes:
        """Writes the examples as safetensors; the same examples give the same bytes."""
        return _write({_INPUT: self.inputs}, {_LABELS: self.labels, _INDICES: self.indices})

    @staticmethod
    def from_bytes(content: bytes) -> HeldOutExamples:
        """Reads what `to_bytes` wrote.

        Raises:
            CertificateError: it is no safetensors file, or lacks inputs or labels.
        """
        tensors = _tensors(HELD_OUT_FILE, content)
        inputs = _inputs(HELD_OUT_FILE, tensors)
        if not inputs or _LABELS not in tensors or _INDICES not in tensors:
            raise CertificateError(f"{HELD_OUT_FILE}: expected inputs, labels and indices, got {sorted(tensors)}")
        _check_lengths(HELD_OUT_FILE, tensors)
        if tensors[_INDICES].ndim != 1 or tensors[_INDICES].dtype.kind != "i":
            shown = f"{tensors[_INDICES].dtype} {tensors[_INDICES].shape}"
            raise CertificateError(f"{HELD_OUT_FILE}: expected one integer index per example, got {shown}")
        return HeldOutExamples(inputs, tensors[_LABELS], tensors[_INDICES])


def read_probe(folder: Path) -> Probe | None:
    """Reads the probe of the version in a folder; None where it has none.

    Raises:
        CertificateError: it is no safetensors file, or lacks inputs or outputs.
        UnsafeFileError: it is no regular file of this folder, or too large.
    """
    content = _read(folder, PROBE_FILE)
    return None if content is None else Probe.from_bytes(content)


def read_held_out(folder: Path) -> HeldOutExamples | None:
    """Reads the held-out examples of the version in a folder; None where it has none.

    Raises:
        CertificateError: it is no safetensors file, or lacks inputs or labels.
        UnsafeFileError: it is no regular file of this folder, or too large.
    """
    content = _read(folder, HELD_OUT_FILE)
    return None if content is None else HeldOutExamples.from_bytes(content)


def _write(groups: Mapping[str, Mapping[str, Array]], single: Mapping[str, Array]) -> bytes:
    tensors = {prefix + name: array for prefix, group in groups.items() for name, array in group.items()} | dict(single)
    for key in [key for key, array in tensors.items() if key.startswith(_INPUT) and array.dtype.kind == "O"]:
        name, texts = key.removeprefix(_INPUT), tensors.pop(key)
        tensors[_TEXTS + name] = np.frombuffer(b"".join(texts.reshape(-1)), np.uint8)
        lengths = np.array([len(text) for text in texts.reshape(-1)], np.int64)
        tensors[_TEXT_LENGTHS + name] = lengths.reshape(texts.shape)
    return bytes(save({name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}))


def _read(folder: Path, name: str) -> bytes | None:
    try:
        return read_beneath(folder, name, max_bytes=MAX_CERTIFICATE_BYTES)
    except FileNotFoundError:
        return None


def _tensors(name: str, content: bytes) -> dict[str, Array]:
    try:
        return dict(load(content))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CertificateError(f"{name}: expected safetensors, got {str(error)[:120]}") from None


def _inputs(file: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Takes the inputs out of a file's tensors, those of texts put together again."""
    texts, lengths = _under(tensors, _TEXTS), _under(tensors, _TEXT_LENGTHS)
    if texts.keys() != lengths.keys():
        raise CertificateError(f"{file}: expected the lengths of each input of texts, got {sorted(tensors)}")
    made = {name: _split_texts(file, name, texts[name], lengths[name]) for name in texts}
    return {**_under(tensors, _INPUT), **made}


def _split_texts(file: str, name: str, content: Array, lengths: Array) -> Array:
    sizes = lengths.reshape(-1).tolist()
    is_whole = content.dtype == np.uint8 and content.ndim == 1 and lengths.dtype == np.int64
    if not is_whole or min(sizes, default=0) < 0 or sum(sizes) != len(content):
        raise CertificateError(f"{file}: input {name[:64]!r}: expected the bytes of {len(sizes)} texts, got others")
    ends = list(accumulate(sizes, initial=0))
    joined = content.tobytes()
    elements = np.empty(len(sizes), object)
    elements[:] = [joined[begin:end] for begin, end in pairwise(ends)]
    return elements.reshape(lengths.shape)


def _under(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _check_lengths(file: str, tensors: Mapping[str, Array]) -> None:
    lengths = {array.shape[:1] for key, array in tensors.items() if not key.startswith(_TEXTS)}
    if len(lengths) != 1 or () in lengths:
        shapes = {name: array.shape for name, array in tensors.items()}
        raise CertificateError(f"{file}: expected one number of examples in all tensors, got {shapes}")
