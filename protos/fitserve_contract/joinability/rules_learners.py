"""Rules of ai.onnx.ml: rows are the first of two axes; one axis alone is one example to most of these kernels."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rule, Rules
from fitserve_contract.joinability.rules_elementwise import unary, value_like
from fitserve_contract.joinability.sizes import Size, times_all
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
    scores = rows([shape[0], _width(call)], RowAxis(0))
    return [rows([shape[0]], RowAxis(0)), scores] if "Classifier" in call.node.operator else [scores]


def _width(call: Call) -> Size:
    """Columns of the scores: those of a linear classifier are as many as its intercepts, not as its labels.

    Those of support vector machines depend on more than the classes.
    """
    operator = call.node.operator
    if operator in ("TreeEnsembleRegressor", "TreeEnsemble"):
        return call.integer("n_targets", 0) or call.symbols.fresh()
    if operator == "LinearRegressor":
        return call.integer("targets", 1)
    names = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
    given = [name for name in names if name in call.attributes]
    labels = call.names(*given) if len(given) == 1 else 0
    is_known = operator == "TreeEnsembleClassifier" or (
        operator == "LinearClassifier" and call.names("intercepts") == labels)  # fmt: skip
    return labels if labels > 1 and is_known else call.symbols.fresh()


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
    widths, declared = [shape[1] for _, shape in tables], call.integers("inputdimensions") or []
    # The attribute decides how many columns of each input are taken.
    total: Size = sum(declared) if declared == widths else call.symbols.fresh()
    return [rows([tables[0][1][0], total], RowAxis(0))]


def feature_extractor(call: Call) -> Sequence[Value]:
    """Rule of ArrayFeatureExtractor: constant places of the last axis."""
    value, shape = call.tensor(0), call.shape(0)
    chosen = call.tensor(1)
    if chosen.row is not None and value.kind is Kind.CONSTANT and len(shape) == 1 and chosen.shape is not None:
        # One row of as many columns as there are indices, in their order.
        row = chosen.row
        before = times_all([*chosen.shape[: row.axis], row.before])
        return [rows([1, 1], RowAxis(1, before, times_all([row.after, *chosen.shape[row.axis + 1 :]])))]
    call.require_constants(1)
    if value.row is not None and (value.row.axis == len(shape) - 1 or len(shape) < 2):
        raise call.refusal("over the rows")
    places = call.tensor(1).shape
    width = call.symbols.fresh() if places is None else times_all(places)
    return [value_like(value, [*(shape[:-1] or (1,)), width])]


def one_hot_encoder(call: Call) -> Sequence[Value]:
    """Rule of OneHotEncoder: a new last axis."""
    value, shape = call.tensor(0), call.shape(0)
    categories = call.names("cats_int64s", "cats_strings")
    return [like(value, [*shape, categories or call.symbols.fresh()], value.row)]


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
