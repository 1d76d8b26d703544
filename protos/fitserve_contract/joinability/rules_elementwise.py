"""Rules of operators that work element by element, or along one axis whose length stays."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Randomness, Rule, Rules, axis_of, broadcast, refuse_rows
from fitserve_contract.joinability.element_types import DOUBLE
from fitserve_contract.joinability.sizes import Size
from fitserve_contract.joinability.values import Kind, Value, like

_UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitCast",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "RegexFullMatch",
]
BROADCASTING = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]


def unary(call: Call) -> Sequence[Value]:
    """Rule of operators of one input, element by element."""
    value = call.tensor(0)
    call.require_constants(1)
    return [like(value, value.shape, value.row)]


def circular(call: Call) -> Sequence[Value]:
    """Rule of Sin and Cos.

    ONNX Runtime computes neighbouring doubles together, and by another law for all of them where one is large,
    infinite or no number: the last bits of a row depend on its neighbours.
    """
    value = call.tensor(0)
    if value.kind is Kind.ROWS and value.type == DOUBLE:
        raise call.refusal("of doubles rounds by what the neighbours are")
    if value.kind is Kind.ROWS and value.type == 0:
        raise call.refusal("of what may be doubles, which rounds by what the neighbours are")
    return unary(call)


def normalized_strings(call: Call) -> Sequence[Value]:
    """Rule of StringNormalizer: string by string where no stopwords drop any."""
    if len(call.shape(0)) != 1 or "stopwords" in call.attributes:
        raise call.refusal("drops strings, or takes two axes for one row of them")
    return unary(call)


def first_decides(call: Call) -> Sequence[Value]:
    """Rule of operators whose other inputs are scalars or types."""
    value = call.tensor(0)
    for index, other in enumerate(call.inputs[1:], 1):
        if other is not None and other.kind is not Kind.CONSTANT and call.node.operator != "CastLike":
            raise call.refusal(f"with rows in input {index}")
    return [like(value, value.shape, value.row)]


def broadcasting(call: Call) -> Sequence[Value]:
    """Rule of operators of several inputs that are broadcast, element by element."""
    return [broadcast(call, [value for value in call.inputs if value is not None])]


def dropout(call: Call) -> Sequence[Value]:
    """Rule of Dropout, which is none where it does not train."""
    if call.version >= 12 and call.given(2) is not None and call.literals(2) != [0]:
        raise Randomness("Dropout in training mode draws random numbers")
    value = call.tensor(0)
    call.require_constants(1)
    return [like(value, value.shape, value.row)] * 2


def softmax(call: Call) -> Sequence[Value]:
    """Rule of Softmax, LogSoftmax and Hardmax: below operator set 13, over all axes from `axis` on."""
    value, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", -1 if call.version >= 13 else 1), len(shape))
    last = axis if call.version >= 13 else len(shape) - 1
    for over in range(axis, last + 1):
        refuse_rows(call, value, over)
    return [value_like(value, shape)]


def quantized_softmax(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's QLinearSoftmax, which names the operator set of the Softmax that it was."""
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    version = call.integer("opset", 1)
    axis = axis_of(call, call.integer("axis", -1), len(shape))
    for over in range(axis, axis + 1 if version >= 13 else len(shape)):
        refuse_rows(call, value, over)
    return [value_like(value, shape)]


def along_axis(default: int) -> Rule:
    """Returns the rule of operators that work along the axis `axis` and keep the shape."""

    def rule(call: Call) -> Sequence[Value]:
        value, shape = call.tensor(0), call.shape(0)
        call.require_constants(1)
        refuse_rows(call, value, axis_of(call, call.integer("axis", default), len(shape)))
        return [value_like(value, shape)]

    return rule


def value_like(value: Value, shape: Sequence[Size]) -> Value:
    """A tensor of the same rows with other sizes of the other axes."""
    return like(value, shape, value.row)


def layer_normalization(call: Call) -> Sequence[Value]:
    """Rule of LayerNormalization and RMSNormalization: over all axes from `axis` on."""
    value, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", -1), len(shape))
    for over in range(axis, len(shape)):
        refuse_rows(call, value, over)
    call.require_constants(1)
    result = _shaped_as_first(call, [other for other in call.inputs[1:] if other is not None])
    statistics = value_like(value, [*shape[:axis], *[1] * (len(shape) - axis)])
    return [result, statistics, statistics]


def _shaped_as_first(call: Call, others: Sequence[Value]) -> Value:
    """The first input, with which others are broadcast: kernels give the result its shape whatever theirs are."""
    value, shape = call.tensor(0), call.shape(0)
    if value.row is not None:
        broadcast(call, [value, *others])
        if any((other.rank or 0) > len(shape) for other in others):
            raise call.refusal("with an input of more axes than the first")
    elif any(other.row is not None for other in others):
        raise call.refusal("of a constant with rows in another input")
    return value_like(value, shape)


def skip_layer_normalization(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's SkipLayerNormalization family: the sum of two, normalized over the last axis."""
    shape = call.shape(0)
    call.require_constants(2)
    refuse_rows(call, call.tensor(0), len(shape) - 1)
    total = _shaped_as_first(call, [call.tensor(1)])
    statistics = value_like(total, [*shape[:-1], 1])
    return [total, statistics, statistics, total]


def _over_axes(call: Call, axes: Sequence[int]) -> Sequence[Value]:
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    for axis in axes:
        if axis < len(shape):
            refuse_rows(call, value, axis)
    return [value_like(value, shape)]


def per_channel(call: Call) -> Sequence[Value]:
    """Rule of InstanceNormalization, GroupNormalization: over all axes but the first, scales along the second."""
    return _over_axes(call, range(1, len(call.shape(0))))


def across_channels(call: Call) -> Sequence[Value]:
    """Rule of LRN: along the second axis."""
    return _over_axes(call, [1])


def batch_normalization(call: Call) -> Sequence[Value]:
    """Rule of BatchNormalization with given statistics, along the second axis."""
    has_statistics = sum(bool(name) for name in call.node.outputs) > 1
    if call.integer("training_mode", 0) or (call.version < 14 and has_statistics):
        raise call.refusal("in training mode")
    return _over_axes(call, [1] if call.integer("spatial", 1) else range(1, len(call.shape(0))))


def mean_variance_normalization(call: Call) -> Sequence[Value]:
    """Rule of MeanVarianceNormalization."""
    rank = len(call.shape(0))
    axes = call.integers("axes")
    if axes is not None and not axes:
        raise call.refusal("over no axes")
    return _over_axes(call, [axis_of(call, axis, rank) for axis in axes or [0, 2, 3]])


def quantize(call: Call) -> Sequence[Value]:
    """Rule of QuantizeLinear and DequantizeLinear: scale and zero point of all, along an axis, or of blocks."""
    value, shape = call.tensor(0), call.shape(0)
    rank = len(shape)
    scale = call.tensor(1)
    for other in call.inputs[1:3]:
        if other is None or other.shape == ():
            if other is not None and other.kind is not Kind.CONSTANT:
                raise call.refusal("with a scale of rows for all")
            continue
        if other.shape is None:
            raise call.refusal("with a scale of unknown shape")
        axis = axis_of(call, call.integer("axis", 1), rank) if rank > 1 or other.shape != (1,) else 0
        _check_scale(call, value, other, axis)
    if value.kind is Kind.CONSTANT and scale.kind is Kind.ROWS:
        raise call.refusal("of a constant by scales of rows")
    return [value_like(value, shape)]


def _check_scale(call: Call, value: Value, scale: Value, axis: int) -> None:
    """A scale of one element is for all. One along `axis` is a vector; one of blocks has the rank of the input."""
    on_rows = value.row is not None and value.row.axis == axis
    if scale.kind is Kind.CONSTANT:
        is_single = scale.shape == (1,)
        if value.row is not None and not is_single and (on_rows or scale.rank != 1):
            if scale.rank == value.rank and not on_rows and (scale.shape or ())[value.row.axis] == 1:
                return
            raise call.refusal(f"by a constant along axis {value.row.axis}, the rows")
        return
    if scale.rank == 1 and on_rows and scale.row is not None and value.row is not None:
        same = (scale.row.before, scale.row.after) == (value.row.before, value.row.after)
        if same:
            return
    if scale.rank == value.rank and scale.row == value.row and call.integer("block_size", 0) and not on_rows:
        return
    raise call.refusal("by scales of other rows")


def trilu(call: Call) -> Sequence[Value]:
    """Rule of Trilu: by the places along the last two axes."""
    rank = len(call.shape(0))
    return _over_axes(call, [rank - 2, rank - 1])


def bias_activation(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's activations with a bias."""
    return [_shaped_as_first(call, [value for value in call.inputs[1:] if value is not None])]


def quantized_elementwise(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's QLinearAdd and QLinearMul: each operand with a scale and a zero point."""
    for index in (1, 2, 4, 5, 6, 7):
        if (value := call.given(index)) is not None and value.kind is not Kind.CONSTANT:
            raise call.refusal(f"with rows in input {index}")
    return [broadcast(call, [call.tensor(0), call.tensor(3)])]


RULES: Rules = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(BROADCASTING, broadcasting),
    **dict.fromkeys(("Cos", "Sin"), circular),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_normalization),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), per_channel),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    "BatchNormalization": batch_normalization,
    "CastLike": first_decides,
    "StringNormalizer": normalized_strings,
    "Clip": first_decides,
    "Dropout": dropout,
    "LRN": across_channels,
    "LpNormalization": along_axis(-1),
    "MeanVarianceNormalization": mean_variance_normalization,
    "Trilu": trilu,
}

MICROSOFT_RULES: Rules = {
    **dict.fromkeys(("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasSplitGelu"), bias_activation),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_layer_normalization),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), quantized_elementwise),
    "QLinearSoftmax": quantized_softmax,
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu"), unary),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
}
