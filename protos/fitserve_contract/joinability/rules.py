"""All rules: domain and operator to rule, and which inputs of an operator may depend on the number of rows."""

from __future__ import annotations

from typing import Final

from fitserve_contract.joinability import (
    rules_elementwise,
    rules_indexing,
    rules_layout,
    rules_learners,
    rules_products,
    rules_recurrent,
    rules_reductions,
    rules_sequences,
    rules_texts,
    rules_windows,
)
from fitserve_contract.joinability.calls import Rules

RULES: Final[dict[str, Rules]] = {
    "": {
        **rules_elementwise.RULES,
        **rules_indexing.RULES,
        **rules_layout.RULES,
        **rules_products.RULES,
        **rules_learners.STANDARD_RULES,
        **rules_recurrent.RULES,
        **rules_reductions.RULES,
        **rules_sequences.RULES,
        **rules_texts.RULES,
        **rules_windows.RULES,
    },
    "ai.onnx.ml": rules_learners.RULES,
    "com.microsoft": {
        **rules_elementwise.MICROSOFT_RULES,
        **rules_products.MICROSOFT_RULES,
        **rules_recurrent.MICROSOFT_RULES,
        **rules_windows.MICROSOFT_RULES,
    },
}

NEWEST_VERSION: Final = 26
"""Operator set version of ai.onnx up to which the rules are known to hold."""

CHANGED_IN_7: Final = frozenset(
    [
        "Add",
        "And",
        "BatchNormalization",
        "Div",
        "Dropout",
        "Equal",
        "GRU",
        "Gemm",
        "Greater",
        "LSTM",
        "Less",
        "Max",
        "Mean",
        "Min",
        "Mul",
        "Or",
        "PRelu",
        "Pad",
        "Pow",
        "RNN",
        "Sub",
        "Sum",
        "Tile",
        "Upsample",
        "Xor",
    ]
)
"""Operators that broadcast, or take their attributes, by other laws before operator set 7."""

RANDOM: Final = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
"""Operators that draw numbers, whatever their inputs are."""

COUNTED_INPUTS: Final[dict[str, frozenset[int]]] = {
    "ConstantOfShape": frozenset([0]),
    "Expand": frozenset([1]),
    "Pad": frozenset([1]),
    "Range": frozenset([0, 1, 2]),
    "Reshape": frozenset([1]),
    "Resize": frozenset([2, 3]),
    "Slice": frozenset([1, 2, 4]),
    "Split": frozenset([1]),
    "SequenceAt": frozenset([1]),
    "SequenceConstruct": frozenset(range(1024)),
    "Tile": frozenset([1]),
}
"""Inputs that may be computed from the number of rows, because their rules look at each element."""

SEQUENCE_OPERATORS: Final = frozenset(("ConcatFromSequence", "SequenceAt"))
"""Operators whose first input is a sequence."""

POSITION_INPUTS: Final[dict[str, frozenset[int]]] = {
    **dict.fromkeys(("Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"), frozenset([0])),
    "Gather": frozenset([1]),
    "GatherND": frozenset([1]),
    "ScatterND": frozenset([1]),
}
"""Inputs that may hold the places of the rows, because their rules keep them or pick row i for row i."""
