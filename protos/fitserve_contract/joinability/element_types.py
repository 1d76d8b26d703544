"""Types of elements: what their integers reach to, and which one a node's outputs have.

Source: onnx/onnx.proto (TensorProto.DataType), the operators' type constraints in onnx/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fitserve_contract.joinability.calls import Call
from fitserve_contract.joinability.sizes import Range
from fitserve_contract.joinability.values import FLOAT, INT64, Value, typed

INT32: Final = 6
BOOL: Final = 9
DOUBLE: Final = 11

INTEGER_RANGES: Final[dict[int, Range]] = {
    2: (0, 2**8 - 1),
    3: (-(2**7), 2**7 - 1),
    4: (0, 2**16 - 1),
    5: (-(2**15), 2**15 - 1),
    INT32: (-(2**31), 2**31 - 1),
    INT64: (-(2**63), 2**63 - 1),
    BOOL: (0, 1),
    12: (0, 2**32 - 1),
    13: (0, 2**64 - 1),
}
"""Type to its least and largest integer."""

_OF_FIRST: Final = frozenset(
    """
    NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss
    Abs Acos Acosh Add Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Ceil Celu Clip Compress Concat Conv ConvTranspose Cos Cosh CumProd CumSum DFT DepthToSpace
    Det Div Dropout Einsum Elu Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg PRelu Pad Pow RMSNormalization RNN Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round STFT Scatter ScatterElements ScatterND
    Selu Shrink Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Slice Softmax Softplus Softsign SpaceToDepth Split
    Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample
    """.split()  # noqa: SIM905
)
_FIXED: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"), (BOOL,)),
    **dict.fromkeys(("Less", "LessOrEqual", "Not", "Or", "RegexFullMatch", "Xor"), (BOOL,)),
    **dict.fromkeys(("ArgMax", "ArgMin", "Shape", "Size"), (INT64,)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), (INT32,)),
    "TfIdfVectorizer": (FLOAT,),
}
_LEARNERS: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("FeatureVectorizer", "LinearRegressor", "Normalizer", "OneHotEncoder"), (FLOAT,)),
    **dict.fromkeys(("SVMRegressor", "Scaler", "TreeEnsembleRegressor"), (FLOAT,)),
    **dict.fromkeys(("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"), (0, FLOAT)),
}
_MICROSOFT_OF_FIRST: Final = frozenset(
    """
    BiasGelu FastGelu FusedConv FusedGemm FusedMatMul Gelu LayerNormalization MultiHeadAttention NhwcConv QuickGelu
    RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization
    TransposeMatMul
    """.split()  # noqa: SIM905
)
_TYPE_FROM_INPUT: Final = {"CastLike": 1, "OneHot": 2, "Where": 1, "DequantizeLinear": 1}
_SECOND_IS_OTHER: Final = frozenset(("Dropout", "LayerNormalization", "MaxPool", "TopK"))


def result_type(call: Call, place: int) -> int:
    """Returns the type of an output's elements; 0 where it is not known."""
    node = call.node
    if node.domain:
        fixed = _LEARNERS.get(node.operator, ()) if node.domain == "ai.onnx.ml" else ()
        is_first = node.domain == "com.microsoft" and node.operator in _MICROSOFT_OF_FIRST and place == 0
        return _of_input(call, 0) if is_first else fixed[place] if place < len(fixed) else 0
    if node.operator in ("BitCast", "Cast"):
        return call.integer("to", 0)
    if node.operator in _TYPE_FROM_INPUT:
        return _of_input(call, _TYPE_FROM_INPUT[node.operator])
    if node.operator in _OF_FIRST:
        return 0 if place and node.operator in _SECOND_IS_OTHER else _of_input(call, 0)
    fixed = _FIXED.get(node.operator, ())
    return fixed[place] if place < len(fixed) else 0


def _of_input(call: Call, index: int) -> int:
    value = call.given(index)
    return 0 if value is None else value.type


def with_types(call: Call, made: Sequence[Value]) -> list[Value]:
    """The outputs of a rule with their types; what comes out of a sequence has its own."""
    if call.node.operator == "SequenceAt":
        return list(made)
    return [typed(value, result_type(call, place)) for place, value in enumerate(made)]
