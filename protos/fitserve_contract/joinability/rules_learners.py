"""Rules of ai.onnx.ml: rows are the first of two axes; one axis alone is one example to most of these kernels."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rule, Rules
from fitserve_contract.joinability.rules_elementwise import unary, value_like
from fitserve_contract.joinability.sizes import Size
from fitserve_contract.joinability.values import Kind, RowAxis, Value, constant, like, rows


def _table(call: Call, index: int = 0) -> tuple[Value, tuple[Size, ...]]:
    value, shape = call.tensor(index), call.shape(index)
    if value.row is not None and (value.row != RowAxis(0) or len(shape) != 2):
        raise call.refusal("of rows that are not the first of two axes")
    return value, shape


def learner(call: Call) -> Sequence[Value]:
    """Rule of classifiers and regressors: (N, F) to (N) labels and (N, C) scores, or to (N, targets)."""
    value, shape = _table(call)
    call.require_constants(1)
    if value.row is None:
        return [constant(None)] * len(call.node.outputs)
    scores = rows([shape[0], call.symbols.fresh()], RowAxis(0))
    return [rows([shape[0]], RowAxis(0)), scores] if "Classifier" in call.node.operator else [scores]


def by_feature(call: Call) -> Sequence[Value]:
    """Rule of operators with parameters for each feature: (N, F) to (N, F)."""
    value, shape = _table(call)
    return [value_like(value, shape)]


def feature_vectorizer(call: Call) -> Sequence[Value]:
    """Rule of FeatureVectorizer: features of all inputs side by side."""
    tables = [_table(call, index) for index in range(len(call.inputs))]
    if len({value.kind for value, _ in tables}) > 1:
        raise call.refusal("of rows and constants")
    if tables[0][0].row is None:
        return [constant(None)]
    widths = [shape[1] for _, shape in tables]
    is_known = all(isinstance(width, int) for width in widths)
    total: Size = sum(width for width in widths if isinstance(width, int)) if is_known else call.symbols.fresh()
    return [rows([tables[0][1][0], total], RowAxis(0))]


def feature_extractor(call: Call) -> Sequence[Value]:
    """Rule of ArrayFeatureExtractor: constant places of the last axis."""
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    if value.row is not None and (value.row.axis == len(shape) - 1 or len(shape) < 2):
        raise call.refusal("over the rows")
    places = call.tensor(1).shape
    width: Size = places[-1] if places else call.symbols.fresh()
    return [value_like(value, [*shape[:-1], width])]


def one_hot_encoder(call: Call) -> Sequence[Value]:
    """Rule of OneHotEncoder: a new last axis."""
    value, shape = call.tensor(0), call.shape(0)
    return [like(value, [*shape, call.symbols.fresh()], value.row)]


def to_sequence(call: Call) -> Sequence[Value]:
    """Rule of ZipMap: what it makes is no tensor, and nothing here reads it."""
    raise call.refusal("makes maps")


def counted_words(call: Call) -> Sequence[Value]:
    """Rule of TfIdfVectorizer: (N, words) to (N, terms)."""
    value, shape = _table(call)
    return [value_like(value, [shape[0], call.symbols.fresh()]) if len(shape) == 2 else constant(None)]


def static(rule: Rule) -> Rule:
    """Returns the rule for operators of one input."""

    def wrapped(call: Call) -> Sequence[Value]:
        if any(value is not None and value.kind is not Kind.CONSTANT for value in call.inputs[1:]):
            raise call.refusal("with rows in a second input")
        return rule(call)

    return wrapped


RULES: Rules = {
    **dict.fromkeys(
        (
            "LinearClassifier",
            "LinearRegressor",
            "SVMClassifier",
            "SVMRegressor",
            "TreeEnsemble",
            "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
        ),
        learner,
    ),
    **dict.fromkeys(("Imputer", "Normalizer", "Scaler"), static(by_feature)),
    **dict.fromkeys(("Binarizer", "CategoryMapper", "LabelEncoder"), unary),
    "ArrayFeatureExtractor": feature_extractor,
    "FeatureVectorizer": feature_vectorizer,
    "OneHotEncoder": static(one_hot_encoder),
    "ZipMap": to_sequence,
}

STANDARD_RULES: Rules = {"TfIdfVectorizer": static(counted_words)}
