"""Further graphs whose rows are coupled: of other inputs and outputs, opsets, domains and functions."""

from __future__ import annotations

from functools import partial
from typing import Final

from fitserve_benchmarks.joining.labelled import DRAWS, LabelledModel, from_text

_GRAPHS: Final = (
    (
        "sampled",
        DRAWS,
        "g (float[N,4] x) => (int64[N,1] y) { i = Multinomial<dtype=7, sample_size=1>(x) y = Identity(i) }",
        18,
        (),
    ),
    (
        "softmax-of-opset-11",
        "before opset 13 an axis of 0 makes one row of all",
        "g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0>(x) }",
        11,
        (),
    ),
    (
        "batch-norm-in-training",
        "takes mean and variance of the batch",
        "g (float[N,4] x) => (float[N,4] y) { k = Constant<value = float[4] {1.0, 1.0, 1.0, 1.0}>() "
        "b = Constant<value = float[4] {0.0, 0.0, 0.0, 0.0}>() "
        # ONNX Runtime writes the running statistics into these two at every run.
        "c = Constant<value = float[4] {0.0, 0.0, 0.0, 1.0}>() d = Constant<value = float[4] {1.0, 1.0, 1.0, 2.0}>() "
        "y, m, v = BatchNormalization<training_mode=1>(x, k, b, c, d) }",
        18,
        (),
    ),
    (
        "layer-norm-of-all",
        "a layer norm that begins at axis 0",
        "g (float[N,4] x) => (float[N,4] y) { k = Constant<value = float {1.0}>() s = Shape(x) e = Expand(k, s) "
        "y = LayerNormalization<axis=0>(x, e) }",
        18,
        (),
    ),
    (
        "unique",
        "numbers the distinct values of the batch",
        "g (int64[N] x) => (int64[N] y) { u, i, y, c = Unique(x) }",
        18,
        (),
    ),
    (
        "non-zero",
        "lists the places of the batch's positive elements",
        "g (float[N,4] x) => (int64[M,2] y) { z = Constant<value = float {0.0}>() c = Greater(x, z) n = NonZero(c) "
        "y = Transpose<perm=[1, 0]>(n) }",
        18,
        (),
    ),
    (
        "kept-rows",
        "drops rows",
        "g (float[N,4] x) => (float[M,4] y) { i = Constant<value = int64 {0}>() f = Gather<axis=1>(x, i) "
        "z = Constant<value = float {0.0}>() c = Greater(f, z) y = Compress<axis=0>(x, c) }",
        18,
        (),
    ),
    (
        "attention-over-the-batch",
        "a wrong transpose lets rows attend to each other",
        "g (float[N,5,4] x) => (float[N,5,4] y) { q = Transpose<perm=[1, 0, 2]>(x) k = Transpose<perm=[1, 2, 0]>(x) "
        "s = MatMul(q, k) p = Softmax<axis=-1>(s) o = MatMul(p, q) y = Transpose<perm=[1, 0, 2]>(o) }",
        18,
        (),
    ),
    (
        "pooled-batch",
        "a global pool after the rows became space",
        "g (float[N,3,4] x) => (float[N,3,4] y) { t = Transpose<perm=[1, 2, 0]>(x) m = GlobalAveragePool(t) "
        "u = Transpose<perm=[2, 0, 1]>(m) y = Sub(x, u) }",
        18,
        (),
    ),
    (
        "glu-over-rows",
        "half of the batch gates the other half",
        "g (float[N,4] x) => (float[N,4] y) { d = Concat<axis=0>(x, x) a, b = Split<axis=0, num_outputs=2>(d) "
        "z = Constant<value = int64[1] {0}>() r = Constant<value = int64[1] {-1}>() "
        "e = Constant<value = int64[1] {-9223372036854775807}>() f = Slice(b, r, e, z, r) s = Sigmoid(f) y = Mul(a, "
        "s) }",
        18,
        (),
    ),
    (
        "trimmed-to-the-longest",
        "divides by the largest length of the batch",
        "g (float[N,4] x, int64[N] lengths) => (float[N,4] y) { m = ReduceMax<keepdims=0>(lengths) "
        "o = Constant<value = int64 {1}>() c = Max(m, o) f = Cast<to=1>(c) y = Div(x, f) }",
        18,
        (),
    ),
    (
        "neighbours-by-index",
        "an index input picks other rows, as edges of a graph do",
        "g (float[N,4] x, int64[N] neighbours) => (float[N,4] y) { s = Shape<start=0, end=1>(x) "
        "i = Mod(neighbours, s) n = Gather<axis=0>(x, i) y = Add(x, n) }",
        18,
        (),
    ),
    (
        "summed-by-segment",
        "rows of one segment are added up",
        "g (float[N,4] x, int64[N] segments) => (float[N,4] y) { n = Shape<start=0, end=1>(x) i = Mod(segments, n) "
        'a = Constant<value = int64[1] {1}>() u = Unsqueeze(i, a) z = Sub(x, x) y = ScatterND<reduction="add">(z, u, '
        "x) }",
        18,
        (),
    ),
    (
        "two-axes",
        "queries against another caller's documents: two first axes",
        "g (float[N,4] queries, float[M,4] documents) => (float[N,M] y) { t = Transpose<perm=[1, 0]>(documents) "
        "y = MatMul(queries, t) }",
        18,
        (),
    ),
    (
        "extracted-row",
        "a feature extractor behind a transpose extracts a row",
        "g (float[N,4] x) => (float[N,4] y) { t = Transpose<perm=[1, 0]>(x) i = Constant<value = int64[1] {0}>() "
        "f = ai.onnx.ml.ArrayFeatureExtractor(t, i) s = Constant<value = int64[2] {1, 4}>() r = Reshape(f, s) "
        "y = Sub(x, r) }",
        18,
        ("ai.onnx.ml",),
    ),
    (
        "bagged-rows",
        "a mean over the first axis, behind a reshape that puts rows there",
        "g (float[N,4] x) => (float[N,4] y) { s = Constant<value = int64[3] {-1, 1, 4}>() a = Reshape(x, s) "
        "z = Constant<value = int64[1] {0}>() m = ReduceMean<keepdims=0>(a, z) y = Sub(x, m) }",
        18,
        (),
    ),
    (
        "boxes-in-one-list",
        "boxes of the batch in one list, with their picture's number",
        "g (float[N,6,4] boxes, float[N,2,6] scores) => (int64[M,3] y) { k = Constant<value = int64 {3}>() "
        "t = Constant<value = float {0.5}>() y = NonMaxSuppression(boxes, scores, k, t) }",
        18,
        (),
    ),
    (
        "regions",
        "regions name the picture that they are cut from",
        "g (float[N,1,4,4] x, float[N,4] regions, int64[N] pictures) => (float[N,1,1,1] y) { "
        "s = Shape<start=0, end=1>(x) i = Mod(pictures, s) r = Sigmoid(regions) y = RoiAlign<output_height=1, "
        "output_width=1>(x, r, i) }",
        18,
        (),
    ),
    (
        "mixture-with-capacity",
        "experts take so many rows of a batch, and drop the others",
        "g (float[N,4] x) => (float[N,4] y) { m = Hardmax<axis=1>(x) a = Constant<value = int64 {0}>() c = CumSum(m, "
        "a) "
        "k = Constant<value = float {1.0}>() f = LessOrEqual(c, k) g1 = Cast<to=1>(f) t = Mul(m, g1) y = Mul(x, t) }",
        18,
        (),
    ),
    (
        "time-major",
        "the first axis is the time of a recurrent net",
        "g (float[N,1,2] x) => (float[N,1,1,1] y) <float[1,1,2] w = {1.0, -1.0}, float[1,1,1] r = {0.5}> "
        "{ y, h = RNN<hidden_size=1>(x, w, r) }",
        18,
        (),
    ),
    (
        "first-time-of-a-layout",
        "batch-first data in a time-major net",
        "g (float[N,3,2] x) => (float[N,1,3,1] y) <float[1,1,2] w = {1.0, -1.0}, float[1,1,1] r = {0.5}> "
        "{ y, h = RNN<hidden_size=1>(x, w, r) }",
        18,
        (),
    ),
    (
        "in-a-function",
        "a function of the file reduces over the batch",
        "g (float[N,4] x) => (float[N,4] y) { y = own.scaled(x) } "
        '<domain: "own", opset_import: ["" : 18]> scaled (a) => (b) { m = ReduceMax<keepdims=0>(a) b = Div(a, m) }',
        18,
        ("own",),
    ),
    (
        "words-counted",
        "takes the batch for one text",
        'g (string[N] x) => (float[M] y) { y = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=1, '
        'max_skip_count=0, ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["a", "b"]>(x) }',
        18,
        (),
    ),
    (
        "words-dropped",
        "drops rows that are stop words",
        'g (string[N] x) => (string[M] y) { y = StringNormalizer<case_change_action="LOWER", stopwords=["a"], '
        'is_case_sensitive=0, locale="C">(x) }',
        18,
        (),
    ),
    (
        "quantized-dynamically",
        "one scale for the whole batch",
        "g (float[N,4] x) => (float[N,4] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
        18,
        (),
    ),
    (
        "quantized-by-hand",
        "a scale from the batch's range, in plain operators",
        "g (float[N,4] x) => (float[N,4] y) { a = Abs(x) m = ReduceMax<keepdims=0>(a) k = Constant<value = float "
        "{127.0}>() "
        "s = Div(m, k) q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
        18,
        (),
    ),
    (
        "quantized-product",
        "a product that quantizes its whole input",
        "g (float[N,4] x) => (float[N,2] y) <int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float s = {0.1}> "
        "{ y = com.microsoft.DynamicQuantizeMatMul(x, w, s) }",
        18,
        ("com.microsoft",),
    ),
)

_RANGES: Final = {"lengths": (1, 9), "neighbours": (0, 99), "segments": (0, 99), "pictures": (0, 99), "x": (0, 9)}

COUPLED_SIGNATURES: Final = tuple(
    LabelledModel(
        name,
        False,
        reason,
        partial(from_text, text, opset=opset, domains=domains),
        _RANGES,
        is_random=reason == DRAWS,
    )
    for name, reason, text, opset, domains in _GRAPHS
)
