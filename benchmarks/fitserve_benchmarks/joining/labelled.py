"""A model with a label: may rows of different callers share its runs, and why.

The label is an opinion about the mathematics. `experiment.py` holds each label against ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import onnx
import onnx.parser

IR_VERSION: Final = 10
OPSET: Final = 18

DRAWS: Final = "draws at random"
"""The reason of models whose equal requests have different answers."""

DEFAULT_SIZE: Final = 7
"""Of a free axis that is not the rows' and that `sizes` does not name."""


@dataclass(frozen=True, slots=True)
class LabelledModel:
    """A model that code makes.

    Args:
        name: Unique in the corpus; a model name of the repository.
        is_independent: Each row of every output depends on the same row of every input alone.
        reason: Why, in a few words.
        build: Returns the serialized ModelProto. The same bytes at every call, but for the exporters' own names.
        ranges: Input name to the lowest and highest integer that callers send (both included); by default 0 and 1.
        sizes: Name of a free axis to its size in the experiments.
        is_random: Equal requests have different answers.
    """

    name: str
    is_independent: bool
    reason: str
    build: Callable[[], bytes]
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    is_random: bool = False


def from_text(body: str, *, opset: int = OPSET, domains: Iterable[str] = ()) -> bytes:
    """Serializes a graph in the syntax of onnx.parser, with functions behind it if any.

    Args:
        body: `g (float[N,4] x) => (float[N,4] y) { … }`.
        opset: Of the default domain.
        domains: Further operator domains, imported at version 1; ai.onnx.ml at 3.
    """
    imports = [f'"" : {opset}', *(f'"{name}" : {3 if name == "ai.onnx.ml" else 1}' for name in domains)]
    model = onnx.parser.parse_model(f"<ir_version: {IR_VERSION}, opset_import: [{', '.join(imports)}]> {body}")
    return bytes(model.SerializeToString(deterministic=True))
