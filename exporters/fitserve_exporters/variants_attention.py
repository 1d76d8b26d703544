"""Attention in one node: what torch.export spells in some thirty becomes ONNX Runtime's own `Attention`.

The session's own optimizer, and `onnxruntime.transformers.optimizer`, know the spellings of older exporters and fuse
none of this one. Shapes: B examples, S tokens, N heads, D width of a head, H = N·D.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from fitserve_exporters.variants_constants import array_of, scalar_of

_DOMAIN: Final = "com.microsoft"
_HEADS_FIRST: Final = [0, 2, 1, 3]


def attention_rules(*, joins_weights: bool) -> tuple[Any, ...]:
    """Gives the rules that put each scaled dot-product attention into one node, to be applied one after the other.

    Heads, scale and the additive mask stay what they are, so that the answers stay up to the order of sums.

    Args:
        joins_weights: Where query, key and value are linear maps of one tensor, their weights go into the node as well.
    """
    to_multi_head, to_attention = _rule(_ToMultiHead, remove_nodes=False), _rule(_ToAttention)
    return (to_multi_head, to_attention) if joins_weights else (to_multi_head,)


def _rule(kind: Any, **options: bool) -> Any:
    return kind.rule(kind.__name__, **options)


class _ToMultiHead(pattern.RewriteRuleClassBase):
    """From `softmax(q·s kᵀ·s + mask) v`, heads apart, to MultiHeadAttention on (B, S, H).

    The shapes are computed from the keys as well, beside the pattern: its nodes stay until nothing reads them.
    """

    def pattern(self, op: Any, query: Any, key: Any, value: Any, mask: Any, q_scale: Any, k_scale: Any) -> Any:
        query_BNSD = op.Transpose(op.Reshape(query, pattern.ANY_VALUE, _outputs=["query_BSND"]), perm=_HEADS_FIRST)
        key_BNSD = op.Transpose(op.Reshape(key, pattern.ANY_VALUE), perm=_HEADS_FIRST)
        value_BNSD = op.Transpose(op.Reshape(value, pattern.ANY_VALUE), perm=_HEADS_FIRST)
        turned = op.Transpose(op.Reshape(key_BNSD, pattern.ANY_VALUE), perm=[0, 2, 1])
        key_BNDS = op.Reshape(turned, pattern.ANY_VALUE)
        scores = op.Add(op.MatMul(op.Mul(query_BNSD, q_scale), op.Mul(key_BNDS, k_scale)), mask)
        weights = op.Softmax(scores, axis=-1)
        weights = op.Where(op.IsNaN(weights), pattern.ANY_VALUE, weights)
        return op.Reshape(op.Transpose(op.MatMul(weights, value_BNSD), perm=_HEADS_FIRST), pattern.ANY_VALUE)

    def check(self, op: Any, *args: Any, **matched: Any) -> Any:  # noqa: ARG002
        result = pattern.MatchResult()
        if scalar_of(matched["q_scale"]) is None or scalar_of(matched["k_scale"]) is None:
            return result.fail("the scales are no constants")
        return result if _head_count(matched["query_BSND"]) else result.fail("the number of heads is no constant")

    def rewrite(
        self, op: Any, query: Any, key: Any, value: Any, mask: Any, query_BSND: Any, q_scale: Any, k_scale: Any
    ) -> Any:
        scale = float(scalar_of(q_scale) or 0.0) * float(scalar_of(k_scale) or 0.0)
        heads = _head_count(query_BSND)
        # The node answers NaN to a query whose mask is -inf for every key, where the pattern's Where answers 0.
        finite = op.Max(mask, op.Constant(value_float=float(np.finfo(np.float32).min)))
        attended = op.MultiHeadAttention(
            query, key, value, None, None, finite, num_heads=heads, scale=scale, _domain=_DOMAIN, _version=1
        )
        best = op.ReduceMax(mask, op.Constant(value_ints=[-1]), keepdims=1)
        has_key = op.Cast(op.Not(op.IsInf(best, detect_positive=0)), to=ir.DataType.FLOAT)
        apart = op.Reshape(attended, op.Constant(value_ints=[0, 0, heads, -1]))
        # A product, for NaN among the values stays NaN behind weights of 0.
        kept = op.Mul(apart, op.Transpose(has_key, perm=_HEADS_FIRST))
        return op.Reshape(kept, op.Constant(value_ints=[0, 0, -1]))


class _ToAttention(pattern.RewriteRuleClassBase):
    """From three linear maps of one tensor and MultiHeadAttention to Attention, its weights (H, 3 H) joined."""

    def pattern(self, op: Any, x: Any, wq: Any, bq: Any, wk: Any, bk: Any, wv: Any, bv: Any, mask: Any) -> Any:
        query, key, value = (op.Add(op.MatMul(x, w), b) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        return op.MultiHeadAttention(
            query, key, value, None, None, mask, _domain=_DOMAIN, _allow_other_attributes=True, _outputs=["attended"]
        )

    def check(self, op: Any, *args: Any, **matched: Any) -> Any:  # noqa: ARG002
        result = pattern.MatchResult()
        if any(array_of(matched[name]) is None for name in ("wq", "bq", "wk", "bk", "wv", "bv")):
            return result.fail("the weights are no constants")
        return result

    def rewrite(self, op: Any, x: Any, mask: Any, attended: Any, **weights: Any) -> Any:
        joined = [np.concatenate([array_of(weights[f"{kind}{of}"]) for of in "qkv"], axis=-1) for kind in "wb"]
        weight, bias = (
            op.initializer(ir.tensor(array), name=f"{attended.name}.{kind}")
            for kind, array in zip(("weight", "bias"), joined, strict=True)
        )
        node = attended.producer()
        kept = {name: node.attributes[name] for name in ("num_heads", "scale")}
        return op.Attention(x, weight, bias, None, None, mask, **kept, _domain=_DOMAIN, _version=1)


def _head_count(heads_BSND: Any) -> int:
    """Reads N from the sizes that a tensor (B, S, N, D) is reshaped to; 0 where they do not say."""
    if heads_BSND.shape is not None and len(heads_BSND.shape) == 4 and isinstance(heads_BSND.shape[2], int):
        return int(heads_BSND.shape[2])
    return 0
