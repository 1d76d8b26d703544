"""Graphs of classic models, as skl2onnx and onnxmltools write them, and small graphs of single ideas.

All are independent. In the syntax of onnx.parser; N is the rows' axis.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fitserve_benchmarks.joining.labelled import LabelledModel, from_text

_ML: Final = ("ai.onnx.ml",)

_NODES: Final = (
    "nodes_falsenodeids=[2, 0, 0], nodes_featureids=[1, 0, 0], nodes_hitrates=[1.0, 1.0, 1.0], "
    "nodes_missing_value_tracks_true=[0, 0, 0], "
    'nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_nodeids=[0, 1, 2], nodes_treeids=[0, 0, 0], '
    "nodes_truenodeids=[1, 0, 0], nodes_values=[0.5, 0.0, 0.0]"
)
_CLASSIFIER: Final = (
    f"TreeEnsembleClassifier<{_NODES}, class_ids=[0, 1, 0, 1], class_nodeids=[1, 1, 2, 2], class_treeids=[0, 0, 0, 0], "
    'class_weights=[0.9, 0.1, 0.2, 0.8], classlabels_int64s=[0, 1], post_transform="NONE">'
)
_REGRESSOR: Final = (
    f"TreeEnsembleRegressor<{_NODES}, n_targets=1, target_ids=[0, 0], target_nodeids=[1, 2], target_treeids=[0, 0], "
    'target_weights=[1.5, -2.5], post_transform="NONE">'
)

_CLASSIC: Final = (
    (
        "trees-classifier",
        "a random forest with class probabilities",
        f"(float[N,4] x) => (int64[N] label, float[N,2] p) {{ label, p = ai.onnx.ml.{_CLASSIFIER}(x) }}",
    ),
    (
        "trees-regressor",
        "gradient-boosted trees",
        f"(float[N,4] x) => (float[N,1] y) {{ y = ai.onnx.ml.{_REGRESSOR}(x) }}",
    ),
    (
        "linear-classifier",
        "logistic regression",
        "(float[N,4] x) => (int64[N] label, float[N,2] p) { label, s = ai.onnx.ml.LinearClassifier<"
        "coefficients=[1.0, 0.0, -1.0, 2.0, -1.0, 0.0, 1.0, -2.0], intercepts=[0.1, -0.1], multi_class=1, "
        'classlabels_ints=[0, 1], post_transform="LOGISTIC">(x) p = ai.onnx.ml.Normalizer<norm="L1">(s) }',
    ),
    (
        "linear-regressor",
        "a linear regression",
        "(float[N,3] x) => (float[N,1] y) { y = ai.onnx.ml.LinearRegressor<coefficients=[1.0, 2.0, 3.0], "
        "intercepts=[0.5], targets=1>(x) }",
    ),
    (
        "support-vectors",
        "a support vector regression",
        '(float[N,2] x) => (float[N,1] y) { y = ai.onnx.ml.SVMRegressor<kernel_type="RBF", '
        "kernel_params=[0.5, 0.0, 3.0], n_supports=2, support_vectors=[1.0, 0.0, 0.0, 1.0], coefficients=[1.0, -1.0], "
        "rho=[0.25]>(x) }",
    ),
    (
        "scaled-and-normed",
        "a pipeline of imputer, scaler and normalizer",
        "(float[N,3] x) => (float[N,3] y) { i = ai.onnx.ml.Imputer<imputed_value_floats=[0.0, 1.0, 2.0], "
        "replaced_value_float=-999.0>(x) s = ai.onnx.ml.Scaler<offset=[1.0, 2.0, 3.0], scale=[0.5, 0.5, 2.0]>(i) "
        'y = ai.onnx.ml.Normalizer<norm="L2">(s) }',
    ),
    (
        "category-and-numbers",
        "one-hot strings beside binarized numbers, joined by columns",
        "(string[N,1] kind, float[N,2] x) => (float[N,1] y) { "
        'h = ai.onnx.ml.OneHotEncoder<cats_strings=["a", "b", "c"], zeros=1>(kind) '
        "s = Constant<value = int64[2] {-1, 3}>() r = Reshape(h, s) b = ai.onnx.ml.Binarizer<threshold=0.5>(x) "
        "f = Concat<axis=1>(r, b) y = ai.onnx.ml.LinearRegressor<coefficients=[1.0, 2.0, 3.0, 4.0, 5.0], "
        "intercepts=[0.0], targets=1>(f) }",
    ),
    (
        "label-encoder",
        "strings to numbers and trees behind them",
        "(string[N,4] words) => (float[N,1] y) { "
        'i = ai.onnx.ml.LabelEncoder<keys_strings=["a", "b"], values_floats=[0.25, 0.75], default_float=0.0>(words) '
        f"y = ai.onnx.ml.{_REGRESSOR}(i) }}",
    ),
    (
        "chosen-columns",
        "array features, joined by a feature vectorizer",
        "(float[N,4] x) => (float[N,3] y) { i = Constant<value = int64[2] {3, 0}>() "
        "a = ai.onnx.ml.ArrayFeatureExtractor(x, i) j = Constant<value = int64[1] {1}>() "
        "b = ai.onnx.ml.ArrayFeatureExtractor(x, j) y = ai.onnx.ml.FeatureVectorizer<inputdimensions=[2, 1]>(a, b) }",
    ),
    (
        "class-names",
        "an arg max over columns, turned into names",
        "(float[N,3] x) => (string[N] y) { i = ArgMax<axis=1, keepdims=0>(x) "
        'y = ai.onnx.ml.LabelEncoder<keys_int64s=[0, 1, 2], values_strings=["cat", "dog", "eel"]>(i) }',
    ),
    (
        "label-lookup",
        "skl2onnx looks the class up in a list, along another axis",
        "(float[N,3] x) => (int64[N] y) <int64[3] names = {7, 8, 9}> { i = ArgMax<axis=1>(x) "
        "a = ai.onnx.ml.ArrayFeatureExtractor(names, i) s = Constant<value = int64[1] {-1}>() r = Reshape(a, s) "
        "y = Cast<to=7>(r) }",
    ),
    (
        "encoded-columns",
        "skl2onnx's one-hot encoder: columns by Gather, a reshape that keeps their number",
        "(string[N,2] x) => (float[N,5] y) { i = Constant<value = int64[1] {0}>() a = Gather<axis=1>(x, i) "
        "j = Constant<value = int64[1] {1}>() b = Gather<axis=1>(x, j) "
        'c = ai.onnx.ml.OneHotEncoder<cats_strings=["a", "b", "c"], zeros=1>(a) '
        'd = ai.onnx.ml.OneHotEncoder<cats_strings=["a", "b"], zeros=1>(b) e = Concat<axis=-1>(c, d) '
        "s = Constant<value = int64[2] {-1, 5}>() y = Reshape(e, s) }",
    ),
    (
        "numbered-columns",
        "skl2onnx's ordinal encoder: columns by ArrayFeatureExtractor",
        "(string[N,2] x) => (float[N,2] y) { i = Constant<value = int64 {0}>() "
        "a = ai.onnx.ml.ArrayFeatureExtractor(x, i) j = Constant<value = int64 {1}>() "
        "b = ai.onnx.ml.ArrayFeatureExtractor(x, j) "
        'c = ai.onnx.ml.LabelEncoder<keys_strings=["a", "b"], values_int64s=[0, 1]>(a) '
        'd = ai.onnx.ml.LabelEncoder<keys_strings=["a", "b"], values_int64s=[0, 1]>(b) '
        "s = Constant<value = int64[2] {-1, 1}>() e = Reshape(c, s) f = Reshape(d, s) g1 = Concat<axis=1>(e, f) "
        "y = Cast<to=1>(g1) }",
    ),
    (
        "bagged-trees",
        "skl2onnx's bagging: a new first axis of estimators, and a mean over it",
        f"(float[N,4] x) => (int64[N] y) {{ l, p = ai.onnx.ml.{_CLASSIFIER}(x) m, q = ai.onnx.ml.{_CLASSIFIER}(x) "
        "s = Constant<value = int64[3] {1, -1, 2}>() a = Reshape(p, s) b = Reshape(q, s) c = Concat<axis=0>(a, b) "
        "z = Constant<value = int64[1] {0}>() d = ReduceMean<keepdims=0>(c, z) y = ArgMax<axis=1, keepdims=0>(d) }",
    ),
    (
        "nearest",
        "k nearest neighbours of a fixed training set",
        "(float[N,2] x) => (int64[N,2] y) { t = Constant<value = float[1,3,2] {0.0, 0.0, 1.0, 1.0, 5.0, 5.0}>() "
        "a = Constant<value = int64[1] {1}>() u = Unsqueeze(x, a) d = Sub(u, t) q = Mul(d, d) "
        "b = Constant<value = int64[1] {2}>() s = ReduceSum<keepdims=0>(q, b) k = Constant<value = int64[1] {2}>() "
        "v, y = TopK<largest=0, axis=1>(s, k) }",
    ),
    (
        "counted-words",
        "a TF-IDF of each row's own words",
        '(string[N,5] words) => (float[N,2] y) { c = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=1, '
        'max_skip_count=0, ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["a", "b"]>(words) '
        "w = Constant<value = float[2] {1.5, 0.5}>() m = Mul(c, w) y = LpNormalization<axis=1, p=2>(m) }",
    ),
)

_IDEAS: Final = (
    (
        "row-softmax-of-three",
        "softmax over the last axis of three",
        "(float[N,3,4] x) => (float[N,3,4] y) { y = Softmax(x) }",
        (),
    ),
    (
        "scanned-steps",
        "a scan over time, each row with a state of its own",
        "(float[N,5,2] x) => (float[N,5,2] y) { t = Transpose<perm=[1, 0, 2]>(x) i = Constant<value = int64 {0}>() "
        "f = Gather<axis=0>(t, i) h = Sub(f, f) e, o = Scan<num_scan_inputs=1, body = b (float[N,2] s, float[N,2] v) "
        "=> (float[N,2] n, float[N,2] w) { n = Add(s, v) w = Tanh(n) }>(h, t) y = Transpose<perm=[1, 0, 2]>(o) }",
        (),
    ),
    (
        "looped-steps",
        "a fixed number of rounds, each row by itself",
        "(float[N,2] x) => (float[N,2] y) { m = Constant<value = int64 {4}>() c = Constant<value = bool {1}>() "
        "y = Loop<body = b (int64 i, bool k, float[N,2] s) => (bool q, float[N,2] n) "
        "{ q = Identity(k) h = Tanh(s) n = Add(h, x) }>(m, c, x) }",
        (),
    ),
    (
        "function-of-rows",
        "a function of the file, row by row",
        "(float[N,4] x) => (float[N,4] y) { y = own.scaled(x) } "
        '<domain: "own", opset_import: ["" : 18]> scaled (a) => (b) '
        "{ k = Constant<value = int64[1] {1}>() m = ReduceMax<keepdims=1>(a, k) b = Sub(a, m) }",
        ("own",),
    ),
    (
        "scaled-by-row",
        "int8 by a scale of each row, in plain operators",
        "(float[N,4] x) => (float[N,2] y) <int8[4,2] w = {1, -2, 3, -4, 5, -6, 7, -8}> { a = Abs(x) "
        "k = Constant<value = int64[1] {1}>() m = ReduceMax<keepdims=1>(a, k) e = Constant<value = float {1e-12}>() "
        "p = Max(m, e) c = Constant<value = float {127.0}>() s = Div(p, c) d = Div(x, s) r = Round(d) "
        "q = Cast<to=3>(r) i = MatMulInteger(q, w) f = Cast<to=1>(i) y = Mul(f, s) }",
        (),
    ),
    (
        "chosen-by-row",
        "each row takes one of its own elements",
        "(float[N,5] x, int64[N,2] which) => (float[N,2] y) { y = GatherElements<axis=1>(x, which) }",
        (),
    ),
    (
        "written-by-row",
        "each row writes into itself",
        "(float[N,5] x, int64[N,1] which) => (float[N,5] y) { a = Constant<value = int64[1] {0}>() "
        "b = Constant<value = int64[1] {1}>() u = Slice(x, a, b, b) y = ScatterElements<axis=1>(x, which, u) }",
        (),
    ),
    (
        "words-of-ids",
        "names looked up in a fixed list",
        '(int64[N] which) => (string[N] y) <string[3] names = {"a", "b", "c"}> { y = Gather(names, which) }',
        (),
    ),
    (
        "trigonometry",
        "elements alone; in double, the sines of ONNX Runtime feel large neighbours in the last bit",
        "(float[N,3] x) => (float[N,3] y) { a = Sin(x) b = Tanh(x) k = Less(a, b) y = Where(k, a, b) }",
        (),
    ),
    (
        "truth",
        "truth values",
        "(bool[N,3] x, bool[N,3] z) => (bool[N,3] y) { a = And(x, z) b = Not(a) y = Xor(b, x) }",
        (),
    ),
    (
        "bytes",
        "integers and shifts of bytes",
        '(uint8[N,3] x) => (float[N,3] y) { s = Constant<value = uint8 {4}>() b = BitShift<direction="RIGHT">(x, s) '
        "f = Cast<to=1>(b) k = Constant<value = float[3] {0.1, 0.2, 0.3}>() y = Mul(f, k) }",
        (),
    ),
    (
        "padded-and-cut",
        "padding and slices behind the first axis",
        "(float[N,6] x) => (float[N,3] y) { p = Constant<value = int64[4] {0, 1, 0, 2}>() v = Pad(x, p) "
        "b = Constant<value = int64[1] {8}>() e = Constant<value = int64[1] {-9}>() a = Constant<value = int64[1] "
        "{-1}>() "
        "t = Constant<value = int64[1] {-3}>() y = Slice(v, b, e, a, t) }",
        (),
    ),
    (
        "split-and-joined",
        "splits and joins columns",
        "(float[N,6] x) => (float[N,6] y) { a, b, c = Split<axis=1, num_outputs=3>(x) d = Mul(a, b) "
        "y = Concat<axis=-1>(c, d, a) }",
        (),
    ),
    (
        "cumulated-steps",
        "a cumulative sum and a sort of each row",
        "(float[N,6] x) => (float[N,6] y) { a = Constant<value = int64 {1}>() c = CumSum(x, a) "
        "k = Constant<value = int64[1] {6}>() y, i = TopK<axis=1>(c, k) }",
        (),
    ),
    (
        "zeros-of-a-shape",
        "a start state of as many rows as there are",
        "(float[N,3] x) => (float[N,5] y) { s = Shape<start=0, end=1>(x) w = Constant<value = int64[1] {2}>() "
        "t = Concat<axis=0>(s, w) z = ConstantOfShape<value = float[1] {0.5}>(t) y = Concat<axis=1>(x, z) }",
        (),
    ),
    (
        "interleaved",
        "copies of each row, in a second axis of its own",
        "(float[N,3] x) => (float[N,4,3] y) { a = Constant<value = int64[1] {1}>() u = Unsqueeze(x, a) "
        "e = Constant<value = int64[3] {1, 4, 1}>() y = Expand(u, e) }",
        (),
    ),
    (
        "spectrum",
        "a Fourier transform over time",
        "(float[N,8,1] x) => (float[N,8,2] y) { y = DFT<axis=1>(x) }",
        (),
    ),
    (
        "sampled-grid",
        "samples each picture at its own places",
        "(float[N,1,4,4] x, float[N,2,2,2] grid) => (float[N,1,2,2] y) { y = GridSample(x, grid) }",
        (),
    ),
    (
        "fused-attention",
        "ONNX Runtime's own operators, row by row",
        "(float[N,3,4] x) => (float[N,3,4] y) <float[4] k = {1.0, 1.0, 1.0, 1.0}> { g = com.microsoft.Gelu(x) "
        "n = com.microsoft.SkipLayerNormalization(x, g, k, k) "
        "y = com.microsoft.MultiHeadAttention<num_heads=2>(n, n, n) }",
        ("com.microsoft",),
    ),
)

_RANGES: Final = {"which": (0, 2), "x": (0, 255)}

TABLES: Final = (
    *(
        LabelledModel(name, True, reason, partial(from_text, f"g {text}", domains=_ML), _RANGES)
        for name, reason, text in _CLASSIC
    ),
    *(
        LabelledModel(name, True, reason, partial(from_text, f"g {text}", domains=domains), _RANGES)
        for name, reason, text, domains in _IDEAS
    ),
)
