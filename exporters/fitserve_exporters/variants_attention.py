"""Attention in one node: what torch.export spells in some thirty becomes ONNX Runtime's own `Attention`.

The session's own optimizer, and `onnxruntime.transformers.optimizer`, know the spellings of older exporters and fuse
none of this one. Shapes: B examples, S tokens, N heads, D width of a head, H = N·D.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import optimizer
from onnxscript.rewriter import pattern, rewrite

_DOMAIN: Final = "com.microsoft"
_FUSED: Final = ("Attention", "MultiHeadAttention")

_HEADS_FIRST: Final = [0, 2, 1, 3]


def fuse_attention(content: bytes) -> bytes:
    """Puts each scaled dot-product attention of an exported model into one node.

    Heads, scale and the additive mask stay what they are, so that the answers stay those of the plain file up to the
    order of sums. Where query, key and value are linear maps of one tensor, their weights are joined as well.

    Args:
        content: Serialized model, as `onnx_export` writes it.

    Returns:
        The serialized model, changed or not: `attention_count` tells.
    """
    model = ir.serde.deserialize_model(onnx.load_model_from_string(content))
    rewrite(model, [_rule(_ToMultiHead, remove_nodes=False)])
    rewrite(model, [_rule(_ToAttention)])
    optimizer.optimize(model)
    fused = ir.serde.serialize_model(model)
    del fused.graph.value_info[:]  # inferred before the rewrite
    written: bytes = fused.SerializeToString(deterministic=True)
    return written


def attention_count(content: bytes) -> int:
    """Counts the attention nodes of a serialized model that are fused."""
    return sum(node.op_type in _FUSED for node in onnx.load_model_from_string(content).graph.node)


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
        if _scalar(matched["q_scale"]) is None or _scalar(matched["k_scale"]) is None:
            return result.fail("the scales are no constants")
        return result if _head_count(matched["query_BSND"]) else result.fail("the number of heads is no constant")

    def rewrite(
        self, op: Any, query: Any, key: Any, value: Any, mask: Any, query_BSND: Any, q_scale: Any, k_scale: Any
    ) -> Any:
        scale = float(_scalar(q_scale) or 0.0) * float(_scalar(k_scale) or 0.0)
        heads = _head_count(query_BSND)
        return op.MultiHeadAttention(
            query, key, value, None, None, mask, num_heads=heads, scale=scale, _domain=_DOMAIN, _version=1
        )


class _ToAttention(pattern.RewriteRuleClassBase):
    """From three linear maps of one tensor and MultiHeadAttention to Attention, its weights (H, 3 H) joined."""

    def pattern(self, op: Any, x: Any, wq: Any, bq: Any, wk: Any, bk: Any, wv: Any, bv: Any, mask: Any) -> Any:
        query, key, value = (op.Add(op.MatMul(x, w), b) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        return op.MultiHeadAttention(
            query, key, value, None, None, mask, _domain=_DOMAIN, _allow_other_attributes=True, _outputs=["attended"]
        )

    def check(self, op: Any, *args: Any, **matched: Any) -> Any:  # noqa: ARG002
        result = pattern.MatchResult()
        if any(_array(matched[name]) is None for name in ("wq", "bq", "wk", "bk", "wv", "bv")):
            return result.fail("the weights are no constants")
        return result

    def rewrite(self, op: Any, x: Any, mask: Any, attended: Any, **weights: Any) -> Any:
        joined = [np.concatenate([_array(weights[f"{kind}{of}"]) for of in "qkv"], axis=-1) for kind in "wb"]
        weight, bias = (
            op.initializer(ir.tensor(array), name=f"{attended.name}.{kind}")
            for kind, array in zip(("weight", "bias"), joined, strict=True)
        )
        node = attended.producer()
        kept = {name: node.attributes[name] for name in ("num_heads", "scale")}
        return op.Attention(x, weight, bias, None, None, mask, **kept, _domain=_DOMAIN, _version=1)


def _rule(kind: Any, **options: bool) -> Any:
    return kind.rule(kind.__name__, **options)


def _array(value: Any) -> np.ndarray[Any, np.dtype[Any]] | None:
    constant = ir.convenience.get_const_tensor(value)
    return None if constant is None else np.asarray(constant.numpy())


def _scalar(value: Any) -> float | None:
    array = _array(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _head_count(heads_BSND: Any) -> int:
    """Reads N from the sizes that a tensor (B, S, N, D) is reshaped to; 0 where they do not say."""
    if heads_BSND.shape is not None and len(heads_BSND.shape) == 4 and isinstance(heads_BSND.shape[2], int):
        return int(heads_BSND.shape[2])
    return 0
