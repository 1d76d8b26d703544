"""Graphs that couple rows in disguise: by shapes, counts, computed axes, row numbers, and rows on other axes.

An analysis that follows the rows less carefully would take each of them for independent.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fitserve_benchmarks.joining.labelled import LabelledModel, from_text

_GRAPHS: Final = (
    (
        "flat-index-next",
        "row number times width plus a column reaches one element into the next row",
        "g (float[N,4] x) => (float[N,4] y) { f = Constant<value = int64[1] {-1}>() v = Reshape(x, f) t = Size(x) "
        "s = Shape<start=0,end=1>(x) n = Squeeze(s) z = Constant<value = int64 {0}>() "
        "o = Constant<value = int64 {1}>() "
        "w = Constant<value = int64 {4}>() r = Range(z, n, o) a = Constant<value = int64[1] {1}>() u = Unsqueeze(r, a) "
        "b = Mul(u, w) c = Constant<value = int64[4] {1, 2, 3, 4}>() d = Add(b, c) i = Mod(d, t) "
        "y = Gather<axis=0>(v, i) }",
    ),
    (
        "flat-index-narrow",
        "row number times less than the width",
        "g (float[N,4] x) => (float[N,4] y) { f = Constant<value = int64[1] {-1}>() v = Reshape(x, f) "
        "s = Shape<start=0,end=1>(x) n = Squeeze(s) z = Constant<value = int64 {0}>() "
        "o = Constant<value = int64 {1}>() "
        "w = Constant<value = int64 {3}>() r = Range(z, n, o) a = Constant<value = int64[1] {1}>() u = Unsqueeze(r, a) "
        "b = Mul(u, w) c = Constant<value = int64[4] {0, 1, 2, 3}>() i = Add(b, c) y = Gather<axis=0>(v, i) }",
    ),
    (
        "five-rows-are-others",
        "a vector of sizes is compared with a number that the count of rows may be",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape(x) k = Constant<value = int64[2] {5, -1}>() e = Equal(s, k) "
        "o = Constant<value = int64[2] {1, 1}>() z = Constant<value = int64[2] {0, 0}>() q = Where(e, o, z) "
        "f = Cast<to=1>(q) a = Constant<value = int64[1] {0}>() m = ReduceMax<keepdims=0>(f, a) y = Add(x, m) }",
    ),
    (
        "reshape-pairs",
        "copies in columns are folded so that rows of one half meet the other",
        "g (float[N,4] x) => (float[N,4] y) { s = Constant<value = int64[2] {-1, 8}>() d = Concat<axis=1>(x,x) r "
        "= Reshape(d, s) t = Constant<value = int64[3] {2, -1, 4}>() u = Reshape(r, t) a = Constant<value = "
        "int64[1] {0}>() y = ReduceMean<keepdims=0>(u, a) }",
    ),
    (
        "reshape-four",
        "a reshape to (4, N) and a mean over the four",
        "g (float[N,4] x) => (float[N,4] y) { s = Constant<value = int64[3] {4, -1, 1}>() r = Reshape(x, s) a = "
        "Constant<value = int64[1] {0}>() m = ReduceMean<keepdims=0>(r, a) y = Sub(x, m) }",
    ),
    (
        "shape-of-other",
        "a transposed tensor takes the shape of the input",
        "g (float[N,4] x, float[N,4] z) => (float[N,4] y) { t = Transpose<perm=[1,0]>(z) s = Shape(x) y = "
        "Reshape(t, s) }",
    ),
    (
        "rows-in-both",
        "a product against another input's rows",
        "g (float[N,4] x, float[N,4] z) => (float[N,4] y) { t = Transpose<perm=[1,0]>(z) a = MatMul(x, t) y = "
        "MatMul(a, z) }",
    ),
    (
        "broadcast-cross",
        "every row minus every row",
        "g (float[N,4] x) => (float[N,4] y) { a = Constant<value = int64[1] {0}>() b = Constant<value = int64[1] "
        "{1}>() u = Unsqueeze(x, a) v = Unsqueeze(x, b) d = Sub(u, v) q = Abs(d) y = ReduceSum<keepdims=0>(q, b) "
        "}",
    ),
    (
        "broadcast-1d",
        "a vector of rows is broadcast along columns that are rows",
        "g (float[N] x, float[N,4] z) => (float[N,4] y) { a = Constant<value = int64[1] {1}>() t = "
        "Transpose<perm=[1,0]>(z) b = Mul(t, x) s = ReduceSum<keepdims=1>(b, a) r = Transpose<perm=[1,0]>(s) y = "
        "Add(z, r) }",
    ),
    (
        "square-broadcast",
        "a column of rows plus a row of rows",
        "g (float[N,4] x) => (float[N,4] y) { a = Constant<value = int64[1] {1}>() m = ReduceSum<keepdims=0>(x, "
        "a) b = Unsqueeze(m, a) c = Add(b, m) s = ReduceMax<keepdims=1>(c, a) y = Add(x, s) }",
    ),
    (
        "expand-square",
        "a row count twice in a shape",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) k = Constant<value = int64[1] {1}>() i "
        "= Gather<axis=1>(x, k) f = Squeeze(i, k) c = Concat<axis=0>(s, s) e = Expand(f, c) m = "
        "ReduceMax<keepdims=1>(e, k) y = Add(x, m) }",
    ),
    (
        "where-rowcount",
        "a choice by the number of rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) one = Constant<value = int64[1] {1}>() "
        "c = Greater(s, one) n = Neg(x) y = Where(c, n, x) }",
    ),
    (
        "slice-by-count",
        "as many columns as there are rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) four = Constant<value = int64[1] "
        "{3}>() e = Min(s, four) z = Constant<value = int64[1] {0}>() o = Constant<value = int64[1] {1}>() v = "
        "Slice(x, z, e, o) m = ReduceSum<keepdims=1>(v, o) y = Add(x, m) }",
    ),
    (
        "pad-by-count",
        "as much padding as there are rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) z = Constant<value = int64[3] "
        "{0,0,0}>() p = Concat<axis=0>(z, s) v = Pad(x, p) a = Constant<value = int64[1] {1}>() m = "
        "ReduceMean<keepdims=1>(v, a) y = Add(x, m) }",
    ),
    (
        "topk-by-count",
        "the largest so many as there are rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) f = Constant<value = int64[1] {4}>() k "
        "= Min(s, f) v, i = TopK<axis=1>(x, k) a = Constant<value = int64[1] {1}>() m = ReduceSum<keepdims=1>(v, "
        "a) y = Add(x, m) }",
    ),
    (
        "range-gather-reverse",
        "row numbers that count down pick rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) o = Constant<value = "
        "int64 {1}>() m = Constant<value = int64 {-1}>() l = Sub(n, o) r = Range(l, m, m) y = Gather<axis=0>(x, "
        "r) }",
    ),
    (
        "range-gather-mod",
        "row numbers plus one, modulo their count",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) o = Constant<value = "
        "int64 {1}>() z = Constant<value = int64 {0}>() r = Range(z, n, o) q = Add(r, o) w = Mod(q, n) y = "
        "Gather<axis=0>(x, w) }",
    ),
    (
        "range-gather-half",
        "halved row numbers pick every row twice",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) o = Constant<value = "
        "int64 {2}>() z = Constant<value = int64 {0}>() i = Constant<value = int64 {1}>() r = Range(z, n, i) w = "
        "Div(r, o) y = Gather<axis=0>(x, w) }",
    ),
    (
        "row-numbers-pick-columns",
        "row numbers pick columns",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) o = Constant<value = "
        "int64 {1}>() z = Constant<value = int64 {0}>() r = Range(z, n, o) a = Constant<value = int64[1] {1}>() "
        "u = Unsqueeze(r, a) t = Constant<value = int64 {4}>() w = Mod(u, t) y = GatherElements<axis=1>(x, w) }",
    ),
    (
        "gathernd-swapped",
        "row numbers stand in the place of columns",
        "g (float[N,4] x) => (float[N,1] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) o = Constant<value = "
        "int64 {1}>() z = Constant<value = int64 {0}>() r = Range(z, n, o) t = Constant<value = int64 {4}>() w = "
        "Mod(r, t) a = Constant<value = int64[1] {1}>() u = Unsqueeze(w, a) c = ArgMax<axis=1,keepdims=1>(x) p = "
        "Mul(c, z) i = Concat<axis=1>(p, u) q = GatherND(x, i) y = Unsqueeze(q, a) }",
    ),
    (
        "triangle",
        "a triangle over rows and columns",
        "g (float[N,4] x) => (float[N,4] y) { y = Trilu<upper=1>(x) }",
    ),
    (
        "eyelike",
        "a diagonal over rows and columns",
        "g (float[N,4] x) => (float[N,4] y) { e = EyeLike(x) y = Add(x, e) }",
    ),
    (
        "gather-own-index",
        "values of rows pick rows",
        "g (int64[N] x) => (int64[N] y) { s = Shape(x) i = Mod(x, s) y = Gather<axis=0>(x, i) }",
    ),
    (
        "scatter-own",
        "values of rows say which row is written",
        "g (int64[N] x) => (int64[N] y) { s = Shape(x) i = Mod(x, s) z = Mul(x, x) y = "
        "ScatterElements<axis=0>(z, i, x) }",
    ),
    (
        "cumsum-dyn-axis",
        "a computed axis that is the rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) o = Constant<value = int64[1] {1}>() c "
        "= Sub(s, s) q = Squeeze(c) y = CumSum(x, q) }",
    ),
    (
        "reduce-dyn-axes",
        "computed axes that are the rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) c = Sub(s, s) m = "
        "ReduceMax<keepdims=1>(x, c) y = Sub(x, m) }",
    ),
    (
        "if-shape-branch",
        "another branch where there is one row",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) k = Constant<value = int64[1] {2}>() b "
        "= Less(s, k) c = Squeeze(b) y = If(c) <then_branch = t () => (float[N,4] u) { u = Abs(x) }, else_branch "
        "= e () => (float[N,4] v) { v = Identity(x) }> }",
    ),
    (
        "loop-trip-by-count",
        "as many rounds as rows",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) t = Constant<value = "
        "bool {1}>() y = Loop<body = b (int64 i, bool k, float[N,4] v) => (bool q, float[N,4] w) { q = "
        "Identity(k) h = Constant<value = float {0.5}>() w = Mul(v, h) }>(n, t, x) }",
    ),
    (
        "loop-cond-by-row",
        "rounds until the batch's peak is small",
        "g (float[N,4] x) => (float[N,4] y) { t = Constant<value = int64 {5}>() c = Constant<value = bool {1}>() "
        "y = Loop<body = b (int64 i, bool k, float[N,4] v) => (bool q, float[N,4] w) { h = Constant<value = "
        "float {0.5}>() w = Mul(v, h) m = ReduceMax<keepdims=0>(w) o = Constant<value = float {1.0}>() q = "
        "Greater(m, o) }>(t, c, x) }",
    ),
    (
        "loop-scan-out",
        "stacked copies of the first row",
        "g (float[N,4] x) => (float[N,4] y) { s = Shape<start=0,end=1>(x) n = Squeeze(s) t = Constant<value = "
        "bool {1}>() y = Loop<body = b (int64 i, bool k) => (bool q, float[4] w) { q = Identity(k) z = "
        "Constant<value = int64 {0}>() w = Gather<axis=0>(x, z) }>(n, t) }",
    ),
    (
        "scan-reverse",
        "rows are scanned from the last on",
        "g (float[N,4] x) => (float[N,4] y) { y = Scan<num_scan_inputs=1, scan_input_directions=[1], body = b "
        "(float[4] r) => (float[4] o) { o = Identity(r) }>(x) }",
    ),
    (
        "scan-output-reverse",
        "a scan's rows are written from the last on",
        "g (float[N,4] x) => (float[N,4] y) { y = Scan<num_scan_inputs=1, scan_output_directions=[1], body = b "
        "(float[4] r) => (float[4] o) { o = Abs(r) }>(x) }",
    ),
    (
        "transpose-square",
        "a softmax of the batch's products",
        "g (float[N,4] x) => (float[N,4] y) { f = Constant<value = int64[1] {0}>() t = Transpose<perm=[1,0]>(x) "
        "m = MatMul(t, x) p = Softmax<axis=1>(m) y = MatMul(x, p) }",
    ),
    (
        "lstm-of-batch-first-data",
        "batch-first data in a time-first LSTM",
        "g (float[N,3,2] x) => (float[N,3,1] y) <float[1,4,2] w = {1,-1,1,-1,1,-1,1,-1}, float[1,4,1] r = "
        "{0.5,0.5,0.5,0.5}> { a, h, c = LSTM<hidden_size=1>(x, w, r) k = Constant<value = int64[1] {1}>() y = "
        "Squeeze(a, k) }",
    ),
    (
        "scale-from-the-peak",
        "a scale from the peak of the batch",
        "g (float[N,4] x) => (float[N,4] y) { m = ReduceMax<keepdims=0>(x) a = Abs(m) q = QuantizeLinear(x, a) y "
        "= DequantizeLinear(q, a) }",
    ),
    (
        "softmax-behind-transpose",
        "a softmax over rows behind a transpose",
        "g (float[N,4,4] x) => (float[N,4,4] y) { t = Transpose<perm=[1,0,2]>(x) s = Softmax<axis=1>(t) y = "
        "Transpose<perm=[1,0,2]>(s) }",
    ),
    (
        "mean-of-rows-as-channels",
        "rows as channels, and their mean",
        "g (float[N,1,4] x) => (float[N,1,4] y) { t = Transpose<perm=[1,0,2]>(x) m = GlobalMaxPool(t) a = "
        "Constant<value = int64[1] {1}>() r = ReduceMean<keepdims=1>(m, a) y = Sub(x, r) }",
    ),
    (
        "peak-of-rows-as-channels",
        "rows as channels, and their peak",
        "g (float[N,4,2,2] x) => (float[N,4,2,2] y) { d = DepthToSpace<blocksize=2>(x) t = "
        "Transpose<perm=[1,0,2,3]>(d) p = MaxPool<kernel_shape=[1,4]>(t) r = Transpose<perm=[1,0,2,3]>(p) m = "
        "ReduceMax<keepdims=1>(t) y = Add(x, m) }",
    ),
    (
        "negative-log-likelihood",
        "the mean loss of the batch",
        "g (float[N,4] x) => (float[N,4] y) { l = ArgMax<axis=1,keepdims=0>(x) p = LogSoftmax(x) m = "
        "NegativeLogLikelihoodLoss(p, l) y = Add(x, m) }",
    ),
    (
        "squares-of-the-batch",
        "the sum of squares of the batch",
        "g (float[N,4] x) => (float[N,4] y) { m = Max(x) k = ReduceSumSquare(m) y = Div(x, k) }",
    ),
    (
        "concat-const-front",
        "a constant row in front moves all rows by one",
        "g (float[N,4] x) => (float[N,4] y) <float[1,4] k = {1,2,3,4}> { c = Concat<axis=0>(k, x) s = "
        "Shape<start=0,end=1>(x) o = Constant<value = int64[1] {0}>() y = Slice(c, o, s, o) }",
    ),
    (
        "window-over-rows",
        "a window over rows behind a transpose",
        "g (float[N,4] x) => (float[N,4] y) { t = Transpose<perm=[1,0]>(x) a = Constant<value = int64[1] {0}>() "
        "u = Unsqueeze(t, a) p = MaxPool<kernel_shape=[3],pads=[1,1]>(u) m = Squeeze(p, a) y = "
        "Transpose<perm=[1,0]>(m) }",
    ),
    (
        "lrn-channels-rows",
        "a response norm over rows as channels",
        "g (float[N,4] x) => (float[N,4] y) { a = Constant<value = int64[2] {0,3}>() u = Unsqueeze(x, a) p = "
        "LRN<size=3, alpha=1.0>(u) y = Squeeze(p, a) }",
    ),
    (
        "group-norm-over-rows",
        "a group norm over rows as steps",
        "g (float[N,4] x) => (float[N,4] y) { t = Transpose<perm=[1,0]>(x) a = Constant<value = int64[1] {0}>() "
        "u = Unsqueeze(t, a) k = Constant<value = float[1] {1.0}>() m = GroupNormalization<num_groups=1>(u, k, "
        "k) y = Squeeze(m, a) }",
    ),
    (
        "fused-attention-over-rows",
        "fused attention over rows as steps",
        "g (float[N,3,4] x) => (float[N,3,4] y) { t = Transpose<perm=[1,0,2]>(x) m = "
        "com.microsoft.MultiHeadAttention<num_heads=2>(t, t, t) y = Transpose<perm=[1,0,2]>(m) }",
    ),
    (
        "bias-from-the-batch",
        "a bias that is the peak of the batch",
        "g (float[N,4] x) => (float[N,4] y) { k = Constant<value = float[4] {1.0,1.0,1.0,1.0}>() a = "
        "Constant<value = int64[1] {0}>() u = Unsqueeze(x, a) m = ReduceMax<keepdims=1>(x, a) b = Squeeze(m, a) "
        "y = com.microsoft.BiasGelu(x, b) }",
    ),
    (
        "gru-beside-right-one",
        "a GRU of batch-first data beside a right one",
        "g (float[N,3,2] x) => (float[N,3,1] y) <float[1,3,2] w = {1,-1,1,-1,1,-1}, float[1,3,1] r = "
        "{0.5,0.5,0.5}> { t = Transpose<perm=[1,0,2]>(x) a, h = GRU<hidden_size=1>(t, w, r) a2, h2 = "
        "GRU<hidden_size=1>(x, w, r) k = Constant<value = int64[1] {1}>() q = Squeeze(a2, k) y = Identity(q) }",
    ),
)

COUPLED_DISGUISES: Final = tuple(
    LabelledModel(name, False, reason, partial(from_text, text, domains=("com.microsoft",)), {"x": (0, 9)})
    for name, reason, text in _GRAPHS
)
