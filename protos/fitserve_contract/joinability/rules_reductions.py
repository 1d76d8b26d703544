"""Rules of operators that reduce, sort or search along axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fitserve_contract.joinability.calls import Call, Rule, Rules, axis_of, refuse_rows
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.sizes import Size
from fitserve_contract.joinability.values import RowAxis, Value, constant, like

_AXES_AS_INPUT = {"ReduceSum": 13}
"""All others take their axes as an input from operator set 18 on."""


def reduce(call: Call) -> Sequence[Value]:
    """Rule of Reduce*: over the given axes, over all where none are given."""
    value, shape = call.tensor(0), call.shape(0)
    axes = _reduced_axes(call, len(shape))
    if axes is None:
        return [like(value, shape, value.row)]
    for axis in axes:
        refuse_rows(call, value, axis)
    if any(map(call.symbols.may_be_empty, shape)):
        # ONNX Runtime does not reduce what has no elements, and leaves the axes as they are.
        raise call.refusal("of a tensor that may have no elements")
    return [_without(call, value, axes)]


def _reduced_axes(call: Call, rank: int) -> list[int] | None:
    """None where nothing is reduced."""
    if call.version < _AXES_AS_INPUT.get(call.node.operator, 18):
        axes = call.integers("axes") or []
    elif call.given(1) is None:
        axes = []
    else:
        literals = call.literals(1)
        if literals is None:
            raise call.refusal("over axes that are not known")
        axes = literals
    if not axes:
        return None if call.integer("noop_with_empty_axes", 0) and call.version >= 13 else list(range(rank))
    return [axis_of(call, axis, rank) for axis in axes]


def _without(call: Call, value: Value, axes: Sequence[int]) -> Value:
    shape = value.shape or ()
    if call.integer("keepdims", 1):
        return value_like(value, [1 if axis in axes else size for axis, size in enumerate(shape)])
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    row = None if value.row is None else RowAxis(kept.index(value.row.axis), value.row.before, value.row.after)
    return like(value, [shape[axis] for axis in kept], row)


def arg_extreme(call: Call) -> Sequence[Value]:
    """Rule of ArgMax and ArgMin."""
    value, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    refuse_rows(call, value, axis)
    return [replace(_without(call, value, [axis]), below=shape[axis])]


def top_k(call: Call) -> Sequence[Value]:
    """Rule of TopK."""
    value, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", -1), len(shape))
    refuse_rows(call, value, axis)
    call.require_constants(1)
    counts = [call.integer("k", 0)] if call.version < 10 else call.literals(1)
    count: Size = counts[0] if counts and counts[0] >= 0 else call.symbols.fresh()
    return [value_like(value, [*shape[:axis], count, *shape[axis + 1 :]])] * 2


def cumulative(call: Call) -> Sequence[Value]:
    """Rule of CumSum and CumProd."""
    value, shape = call.tensor(0), call.shape(0)
    axes = call.literals(1)
    if axes is None or len(axes) != 1:
        raise call.refusal("along an axis that is not known")
    refuse_rows(call, value, axis_of(call, axes[0], len(shape)))
    return [value_like(value, shape)]


def one_hot(call: Call) -> Sequence[Value]:
    """Rule of OneHot: a new axis."""
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    axis = axis_of(call, call.integer("axis", -1), len(shape) + 1)
    depth = call.literals(1)
    sizes = [*shape[:axis], depth[0] if depth and depth[0] >= 0 else call.symbols.fresh(), *shape[axis:]]
    row = value.row
    if row is not None and axis <= row.axis:
        row = RowAxis(row.axis + 1, row.before, row.after)
    return [like(value, sizes, row)]


def loss(call: Call) -> Sequence[Value]:
    """Rule of losses of scores (N, C, ...) against labels (N, ...): one for each label where none are added up."""
    scores, labels, shape = call.tensor(0), call.tensor(1), call.shape(0)
    call.require_constants(2)
    if call.text("reduction", "mean") != "none":
        raise call.refusal("adds up over axis 0")
    row = scores.row
    if row != labels.row or (row is not None and row.axis != 0) or len(shape) != len(call.shape(1)) + 1:
        raise call.refusal("of other rows")
    return [like(scores, [shape[0], *shape[2:]], row), value_like(scores, shape)]


def couples(what: str) -> Rule:
    """Returns the rule of operators that mix rows wherever they are."""

    def rule(call: Call) -> Sequence[Value]:
        raise call.refusal(what)

    return rule


def of_constants(call: Call) -> Sequence[Value]:
    """Rule of windows and filters, whose inputs are sizes."""
    call.require_constants(0)
    return [constant(None)]


RULES: Rules = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), of_constants),
    **dict.fromkeys(
        [
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ],
        reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_extreme),
    **dict.fromkeys(("CumSum", "CumProd"), cumulative),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), loss),
    "NonMaxSuppression": couples("picks boxes of all rows"),
    "NonZero": couples("lists the places of all rows"),
    "OneHot": one_hot,
    "TopK": top_k,
    "Unique": couples("compares all rows"),
    "DynamicQuantizeLinear": couples("scales by the largest value of all rows"),
    "DynamicQuantizeMatMul": couples("scales by the largest value of all rows"),
    "DynamicQuantizeLSTM": couples("scales by the largest value of all rows"),
    "EyeLike": couples("reads the places of the rows"),
}
