"""Graphs whose rows are coupled, in the syntax of onnx.parser: one for each way in which rows meet.

N is the rows' axis. Every graph runs at any N of at least 1, so that only an analysis or an experiment tells.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fitserve_benchmarks.joining.labelled import DRAWS, LabelledModel, from_text

_ROWS: Final = "(float[N,4] x) => (float[N,4] y)"

_REDUCTIONS: Final = {
    "peak": ("divides by the largest element of the batch", "m = ReduceMax<keepdims=0>(x) y = Div(x, m)"),
    "mel-floor": (
        "floors at 8 below the batch's peak, as Whisper's mel filter does",
        "m = ReduceMax<keepdims=0>(x) k = Constant<value = float {8.0}>() f = Sub(m, k) y = Max(x, f)",
    ),
    "bytes-or-unit": (
        "scales where any element of the batch is above 1",
        "m = ReduceMax<keepdims=0>(x) one = Constant<value = float {1.0}>() c = Greater(m, one) "
        "k = Constant<value = float {255.0}>() d = Div(x, k) y = Where(c, d, x)",
    ),
    "min-max": (
        "normalises by the batch's range",
        "a = ReduceMin(x) b = ReduceMax(x) d = Sub(x, a) r = Sub(b, a) y = Div(d, r)",
    ),
    "centred": (
        "subtracts the mean row",
        "a = Constant<value = int64[1] {0}>() m = ReduceMean<keepdims=1>(x, a) y = Sub(x, m)",
    ),
    "reduced-from-the-back": (
        "sums over axis -2, which is the rows'",
        "a = Constant<value = int64[1] {-2}>() m = ReduceSum<keepdims=1>(x, a) y = Add(x, m)",
    ),
    "no-axes": (
        "an empty list of axes reduces over all",
        "a = Constant<value = int64[0] {}>() m = ReduceSum<keepdims=1>(x, a) y = Add(x, m)",
    ),
    "norm-clipped": ("clips by the norm of the batch", "n = ReduceL2<keepdims=0>(x) y = Div(x, n)"),
    "log-sum-exp": (
        "normalises by the batch's log-sum-exp",
        "n = ReduceLogSumExp<keepdims=0>(x) y = Sub(x, n)",
    ),
    "arg-max": (
        "subtracts each column's largest row",
        "i = ArgMax<axis=0, keepdims=1>(x) m = GatherElements<axis=0>(x, i) y = Sub(x, m)",
    ),
    "any-not-a-number": (
        "replaces the whole batch where one element is not a number",
        "n = IsNaN(x) f = Cast<to=1>(n) m = ReduceMax<keepdims=0>(f) c = Cast<to=9>(m) "
        "z = Constant<value = float {0.0}>() y = Where(c, z, x)",
    ),
    "median": (
        "subtracts the batch's upper median",
        "f = Constant<value = int64[1] {-1}>() v = Reshape(x, f) s = Shape(v) two = Constant<value = int64[1] {2}>() "
        "k = Div(s, two) t, i = TopK(v, k) m = ReduceMin<keepdims=0>(t) y = Sub(x, m)",
    ),
    "mean-loss": (
        "adds the mean loss of the batch",
        'l = ArgMax<axis=1, keepdims=0>(x) m = SoftmaxCrossEntropyLoss<reduction="mean">(x, l) y = Add(x, m)',
    ),
    "mean-over-a-sum": ("Mean of a reduction and the rows", "m = ReduceMax(x) y = Mean(x, m)"),
}

_NORMALISATIONS: Final = {
    "softmax-of-columns": ("softmax over the rows", "y = Softmax<axis=0>(x)"),
    "softmax-from-the-back": ("softmax over axis -2 of two", "y = Softmax<axis=-2>(x)"),
    "log-softmax-of-columns": ("log-softmax over the rows", "y = LogSoftmax<axis=0>(x)"),
    "hardmax-of-columns": ("the largest row of each column", "y = Hardmax<axis=0>(x)"),
    "lp-of-columns": ("unit columns", "y = LpNormalization<axis=0, p=2>(x)"),
    "mean-variance-default": (
        "MeanVarianceNormalization takes axes 0, 2 and 3 by default",
        "s = Constant<value = int64[4] {-1, 1, 2, 2}>() v = Reshape(x, s) n = MeanVarianceNormalization(v) "
        "t = Constant<value = int64[2] {-1, 4}>() y = Reshape(n, t)",
    ),
    "instance-norm-reshaped": (
        "the rows became a channel's elements before an instance norm",
        "s = Constant<value = int64[3] {1, 1, -1}>() v = Reshape(x, s) k = Constant<value = float[1] {1.0}>() "
        "b = Constant<value = float[1] {0.0}>() n = InstanceNormalization(v, k, b) z = Shape(x) y = Reshape(n, z)",
    ),
    "instance-norm-transposed": (
        "the rows became the space of an instance norm",
        "a = Constant<value = int64[1] {0}>() t = Transpose<perm=[1, 0]>(x) v = Unsqueeze(t, a) "
        "k = Constant<value = float[4] {1.0, 1.0, 1.0, 1.0}>() b = Constant<value = float[4] {0.0, 0.0, 0.0, 0.0}>() "
        "n = InstanceNormalization(v, k, b) u = Squeeze(n, a) y = Transpose<perm=[1, 0]>(u)",
    ),
}

_ORDERS: Final = {
    "cumulated": ("sums over the rows before", "a = Constant<value = int64 {0}>() y = CumSum(x, a)"),
    "cumulated-backwards": (
        "sums over the rows behind",
        "a = Constant<value = int64 {-2}>() y = CumSum<reverse=1, exclusive=1>(x, a)",
    ),
    "sorted": (
        "sorts the rows' elements",
        "s = Shape<start=0, end=1>(x) y, i = TopK<axis=0>(x, s)",
    ),
    "rolled": (
        "the row behind, by two slices",
        "o = Constant<value = int64[1] {1}>() z = Constant<value = int64[1] {0}>() "
        "e = Constant<value = int64[1] {9223372036854775807}>() a = Slice(x, o, e, z) b = Slice(x, z, o, z) "
        "y = Concat<axis=0>(a, b)",
    ),
    "reversed": (
        "a slice with a step of -1 over the rows",
        "b = Constant<value = int64[1] {-1}>() e = Constant<value = int64[1] {-9223372036854775807}>() "
        "a = Constant<value = int64[1] {0}>() y = Slice(x, b, e, a, b)",
    ),
    "shifted-by-padding": (
        "pads a row in front and cuts one off behind",
        "p = Constant<value = int64[4] {1, 0, 0, 0}>() v = Pad(x, p) z = Constant<value = int64[1] {0}>() "
        "e = Constant<value = int64[1] {-1}>() s = Slice(v, z, e, z) y = Add(s, x)",
    ),
    "less-the-first": (
        "subtracts the first row of the batch",
        "i = Constant<value = int64[1] {0}>() f = Gather<axis=0>(x, i) y = Sub(x, f)",
    ),
    "less-the-last": (
        "subtracts the last row of the batch",
        "i = Constant<value = int64 {-1}>() f = Gather<axis=0>(x, i) y = Sub(x, f)",
    ),
    "numbered": (
        "adds each row's place in the batch",
        "s = Shape<start=0, end=1>(x) n = Squeeze(s) z = Constant<value = int64 {0}>() o = Constant<value = int64 "
        "{1}>() "
        "r = Range(z, n, o) f = Cast<to=1>(r) a = Constant<value = int64[1] {1}>() c = Unsqueeze(f, a) y = Add(x, c)",
    ),
    "numbered-by-ones": (
        "numbers the rows by a cumulated constant",
        "s = Shape(x) k = ConstantOfShape<value = float[1] {1.0}>(s) a = Constant<value = int64 {0}>() "
        "c = CumSum(k, a) y = Mul(x, c)",
    ),
    "counted": (
        "divides by the count of rows",
        "s = Shape<start=0, end=1>(x) f = Cast<to=1>(s) y = Div(x, f)",
    ),
    "sized": ("divides by the count of elements", "s = Size(x) f = Cast<to=1>(s) y = Div(x, f)"),
    "spectrum-of-rows": (
        "a Fourier transform over the rows",
        "a = Constant<value = int64[1] {2}>() u = Unsqueeze(x, a) z = Constant<value = int64[1] {0}>() "
        "i = Constant<value = int64[2] {0, 2}>() t = Unsqueeze(u, z) d = DFT<axis=1>(t) "
        "q = Squeeze(d, z) o = Constant<value = int64 {0}>() y = Gather<axis=2>(q, o)",
    ),
}

_SHAPES: Final = {
    "columns-taken-for-rows": (
        "a transpose read back as rows",
        "t = Transpose<perm=[1, 0]>(x) s = Constant<value = int64[2] {-1, 4}>() y = Reshape(t, s)",
    ),
    "reshaped-the-other-way": (
        "a reshape to (4, N) mixes rows where a transpose was meant",
        "s = Constant<value = int64[2] {4, -1}>() v = Reshape(x, s) y = Transpose<perm=[1, 0]>(v)",
    ),
    "flat-softmax": (
        "Flatten at axis 0 makes one row of all",
        "f = Flatten<axis=0>(x) p = Softmax<axis=1>(f) s = Shape(x) y = Reshape(p, s)",
    ),
    "repeated-not-interleaved": (
        "copies of the batch are read as copies of a row",
        "r = Constant<value = int64[2] {2, 1}>() t = Tile(x, r) s = Constant<value = int64[3] {-1, 2, 4}>() "
        "v = Reshape(t, s) a = Constant<value = int64[1] {1}>() y = ReduceMean<keepdims=0>(v, a)",
    ),
    "expanded-in-front": (
        "an expanded first axis is folded into the rows",
        "e = Constant<value = int64[3] {3, 1, 1}>() v = Expand(x, e) s = Constant<value = int64[3] {-1, 3, 4}>() "
        "w = Reshape(v, s) a = Constant<value = int64[1] {1}>() y = ReduceMax<keepdims=0>(w, a)",
    ),
    "convolved-over-rows": (
        "the rows became the height of a picture",
        "s = Constant<value = int64[4] {1, 1, -1, 4}>() v = Reshape(x, s) "
        "w = Constant<value = float[1,1,3,3] {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}>() "
        "c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(v, w) t = Constant<value = int64[2] {-1, 4}>() y = "
        "Reshape(c, t)",
    ),
    "pooled-over-rows": (
        "a pool whose window runs over the rows",
        "s = Constant<value = int64[4] {1, 1, -1, 4}>() v = Reshape(x, s) "
        "c = MaxPool<kernel_shape=[3, 1], pads=[1, 0, 1, 0]>(v) t = Constant<value = int64[2] {-1, 4}>() y = "
        "Reshape(c, t)",
    ),
    "resized-over-rows": (
        "rows are blended by a resize and cut back",
        'e = Constant<value = string[1] {""}>() k = Constant<value = float[2] {2.0, 1.0}>() '
        'r = Resize<mode="linear">(x, , k) s = Shape(x) z = Constant<value = int64[2] {0, 0}>() '
        "y = Slice(r, z, s)",
    ),
    "squeezed-at-one": (
        "Squeeze without axes drops the rows' axis of a single row",
        "a = Constant<value = int64[1] {1}>() u = Unsqueeze(x, a) y = Squeeze(u)",
    ),
    "stacked-on-itself": (
        "two copies of the batch, of which every other row is kept",
        "c = Concat<axis=-2>(x, x) z = Constant<value = int64[1] {0}>() e = Constant<value = int64[1] "
        "{9223372036854775807}>() "
        "t = Constant<value = int64[1] {2}>() y = Slice(c, z, e, z, t)",
    ),
}

_PRODUCTS: Final = {
    "similarity": (
        "each row against every row of the batch",
        "t = Transpose<perm=[1, 0]>(x) s = MatMul(x, t) p = Softmax<axis=-1>(s) y = MatMul(p, x)",
    ),
    "in-batch-negatives": (
        "contrastive logits over the batch",
        'y = Einsum<equation="ij,kj->ik">(x, x)',
    ),
    "einsum-sum": ("an index that is summed away is the rows'", 'm = Einsum<equation="ij->j">(x) y = Sub(x, m)'),
    "einsum-ellipsis": (
        "the rows are summed away beside an ellipsis",
        'm = Einsum<equation="i...->...">(x) y = Sub(x, m)',
    ),
    "whitened": (
        "a product with the batch's covariance",
        "t = Transpose<perm=[1, 0]>(x) c = MatMul(t, x) y = MatMul(x, c)",
    ),
    "gemm-transposed": (
        "a Gemm with transA sums over the rows",
        "c = Gemm<transA=1>(x, x) y = Gemm(x, c)",
    ),
    "scattered-onto-rows": (
        "an index made of the data picks the row that is written",
        "i = ArgMax<axis=1, keepdims=1>(x) z = Constant<value = int64 {0}>() n = Mul(i, z) "
        "a = Constant<value = int64[1] {0}>() e = Constant<value = int64[1] {1}>() v = Slice(x, a, e, e) "
        'y = ScatterElements<axis=0, reduction="add">(x, n, v)',
    ),
}

_CONTROL: Final = {
    "if-any-above-one": (
        "a branch for the whole batch",
        "m = ReduceMax<keepdims=0>(x) one = Constant<value = float {1.0}>() c = Greater(m, one) "
        "y = If(c) <then_branch = t () => (float[N,4] a) { k = Constant<value = float {255.0}>() a = Div(x, k) }, "
        "else_branch = e () => (float[N,4] b) { b = Identity(x) }>",
    ),
    "if-one-row": (
        "another formula where there is a single row",
        "s = Shape<start=0, end=1>(x) q = Squeeze(s) one = Constant<value = int64 {1}>() c = Equal(q, one) "
        "y = If(c) <then_branch = t () => (float[N,4] a) { a = Neg(x) }, "
        "else_branch = e () => (float[N,4] b) { b = Identity(x) }>",
    ),
    "scanned-rows": (
        "a state is carried from row to row",
        "s = Constant<value = float[4] {0.0, 0.0, 0.0, 0.0}>() "
        "f, y = Scan<num_scan_inputs=1, body = b (float[4] h, float[4] r) => (float[4] n, float[4] o) "
        "{ n = Add(h, r) o = Identity(n) }>(s, x)",
    ),
    "looped-rows": (
        "a loop over rows that carries a sum",
        "s = Constant<value = float[4] {0.0, 0.0, 0.0, 0.0}>() c = Constant<value = bool {1}>() "
        "l = Shape<start=0, end=1>(x) m = Squeeze(l) "
        "f, y = Loop<body = b (int64 i, bool k, float[4] h) => (bool k2, float[4] n, float[4] o) "
        "{ k2 = Identity(k) r = Gather<axis=0>(x, i) n = Add(h, r) o = Identity(n) }>(m, c, s)",
    ),
    "looped-while-large": (
        "a loop that ends when the whole batch is small",
        "t = Constant<value = int64 {50}>() one = Constant<value = float {1.0}>() m = ReduceMax<keepdims=0>(x) "
        "c = Greater(m, one) y = Loop<body = b (int64 i, bool k, float[N,4] v) => (bool k2, float[N,4] w) "
        "{ h = Constant<value = float {0.5}>() w = Mul(v, h) p = ReduceMax<keepdims=0>(w) k2 = Greater(p, one) }>(t, "
        "c, x)",
    ),
    "sequence-of-rows": (
        "the first of a sequence of rows is added to all",
        "q = SplitToSequence<axis=0, keepdims=1>(x) i = Constant<value = int64 {0}>() f = SequenceAt(q, i) y = "
        "Add(x, f)",
    ),
}

_RANDOM: Final = {
    "noise": (DRAWS, "n = RandomNormalLike(x) y = Add(x, n)"),
    "uniform-noise": (DRAWS, "n = RandomUniformLike<low=0.0, high=1.0>(x) y = Mul(x, n)"),
    "coin": (DRAWS, "p = Sigmoid(x) y = Bernoulli(p)"),
    "dropout-in-training": (
        DRAWS,
        "r = Constant<value = float {0.5}>() t = Constant<value = bool {1}>() y = Dropout(x, r, t)",
    ),
}

_GROUPS: Final = (_REDUCTIONS, _NORMALISATIONS, _ORDERS, _SHAPES, _PRODUCTS, _CONTROL, _RANDOM)


def _of_rows(name: str, reason: str, body: str) -> LabelledModel:
    outputs = "(float[N,N] y)" if name == "in-batch-negatives" else "(float[N,4] y)"
    text = f"g (float[N,4] x) => {outputs} {{ {body} }}"
    return LabelledModel(name, False, reason, partial(from_text, text), is_random=reason == DRAWS)


COUPLED_GRAPHS: Final = tuple(
    _of_rows(name, reason, body) for group in _GROUPS for name, (reason, body) in group.items()
)
"""All map (N, 4) to (N, 4), but for the logits of in-batch negatives."""
