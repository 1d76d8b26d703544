"""int8 products whose activations are quantized row by row, so that no row's answer depends on its neighbours.

`quantize_dynamic` takes one scale from the whole batch: a large row rounds all others away. Here each row has a scale
of its own, computed in the graph: its largest magnitude. Shapes: R rows (all axes but the last), K inputs, N outputs.

    largest = ReduceMax(|x|)                     (R, 1)
    q       = QuantizeLinear(x / largest)        (R, K), uint8 around 128, in steps of 1/127
    y       = (q W) · column scales · largest    (R, N), W (K, N) in int8, exact sums in int32

A row of zeros gives zeros: whatever q holds is multiplied by 0. A row with NaN or an infinity gives NaN: QuantizeLinear
would write a number in its place, and ReduceMax loses NaN, so 0 · Σ|x| is added to the row's largest magnitude.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.errors import VariantError

LEAST_OPSET: Final = 18
"""The first whose reductions take their axes as an input; the exporter writes it."""

_ONNX: Final = ("", "ai.onnx")
_DOMAIN: Final = "com.microsoft"
_STEPS: Final = 127
_ZERO_POINT: Final = 128


def quantize_rows(content: bytes) -> bytes:
    """Quantizes every product of the main graph with constant FP32 weights (K, N): MatMul, and Gemm without transA.

    Products that read one activation share its quantized form. All else, and a product with a weight that is not
    finite, stays FP32.

    Args:
        content: Serialized FP32 model, opset 18 or later.

    Raises:
        VariantError: an older opset, or no such product.
    """
    model = onnx.load_model_from_string(content)
    opset = next((entry.version for entry in model.opset_import if entry.domain in _ONNX), 0)
    if opset < LEAST_OPSET:
        raise VariantError(f"int8: expected opset {LEAST_OPSET} or later, got {opset}: export the model anew")
    rewriter = _Rewriter(model.graph)
    rewriter.rewrite()
    if not rewriter.product_count:
        raise VariantError("int8: expected MatMul or Gemm with constant weights to quantize, found none")
    if all(entry.domain != _DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    del model.graph.value_info[:]  # inferred before the rewrite
    written: bytes = model.SerializeToString(deterministic=True)
    return written


class _Rewriter:
    """Replaces the products of a graph in place. Quantizes each weight and each activation once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.product_count = 0
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._normalized = {node.output[0] for node in graph.node if _normalizes_rows(node)}
        self._names = _all_names(graph)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, str] = {}
        self._activations: dict[str, tuple[str, str]] = {}

    def rewrite(self) -> None:
        """Rewrites the graph; drops the FP32 weights that nothing reads any more."""
        for node in list(self._graph.node):
            weight = self._weight_of(node)
            if weight is None:
                self._nodes.append(node)
            else:
                self._replace(node, weight)
                self.product_count += 1
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        read = _names_read(self._graph)
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _weight_of(self, node: onnx.NodeProto) -> Array | None:
        """Returns the weight of a product that is to be quantized, (K, N); None for any other node."""
        if node.domain not in _ONNX or node.op_type not in ("MatMul", "Gemm"):
            return None
        tensor = self._weights.get(node.input[1])
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or 0 in tensor.dims:
            return None
        if _attribute(node, "transA", 0):
            return None
        weight = numpy_helper.to_array(tensor)
        return weight if bool(np.isfinite(weight).all()) else None

    def _replace(self, node: onnx.NodeProto, weight: Array) -> None:
        activation, output, is_turned = node.input[0], node.output[0], bool(_attribute(node, "transB", 0))
        quantized, scales = _quantized_columns(weight.T if is_turned else weight)
        alpha, beta = (float(_attribute(node, name, 1.0)) for name in ("alpha", "beta"))
        rows, largest = self._quantized_rows(activation)
        place = f"{node.input[1]}.{'turned' if is_turned else 'int8'}"
        inputs = [
            rows,
            self._constant(place, quantized),
            self._constant("step", np.float32(1 / _STEPS)),
            self._constant(f"{place}.scales.{alpha}", scales * np.float32(alpha)),
            self._constant("zero_point", np.uint8(_ZERO_POINT)),
        ]
        product = self._add("MatMulIntegerToFloat", inputs, f"{output}.product", domain=_DOMAIN)
        if len(node.input) < 3 or not node.input[2]:
            self._nodes.append(helper.make_node("Mul", [product, largest], [output]))
            return
        scaled, bias = self._add("Mul", [product, largest], f"{output}.scaled"), node.input[2]
        if beta != 1.0:
            bias = self._add("Mul", [bias, self._constant(f"beta.{beta}", np.float32(beta))], f"{output}.bias")
        self._nodes.append(helper.make_node("Add", [scaled, bias], [output]))

    def _quantized_rows(self, activation: str) -> tuple[str, str]:
        """Writes the nodes that quantize an activation, once; returns it in uint8 and its rows' largest magnitudes."""
        if activation not in self._activations:
            magnitude = self._add("Abs", [activation], f"{activation}.magnitude")
            largest = self._largest(magnitude, loses_nan=activation not in self._normalized)
            inverse = self._add("Reciprocal", [largest], f"{activation}.inverse")
            unit = self._add("Mul", [activation, inverse], f"{activation}.unit")
            step, zero = (
                self._constant("step", np.float32(1 / _STEPS)),
                self._constant("zero_point", np.uint8(_ZERO_POINT)),
            )
            rows = self._add("QuantizeLinear", [unit, step, zero], f"{activation}.quantized")
            self._activations[activation] = (rows, largest)
        return self._activations[activation]

    def _largest(self, magnitude: str, *, loses_nan: bool) -> str:
        """Writes the largest of each row, NaN for a row with NaN. A row that is NaN throughout needs no care."""
        last = self._constant("last_axis", np.array([-1], np.int64))
        largest = self._add("ReduceMax", [magnitude, last], f"{magnitude}.largest", keepdims=1)
        if not loses_nan:
            return largest
        total = self._add("ReduceSum", [magnitude, last], f"{magnitude}.total", keepdims=1)
        nothing = self._add("Mul", [total, self._constant("zero", np.float32(0))], f"{magnitude}.nothing")
        return self._add("Add", [largest, nothing], f"{magnitude}.largest_or_nan")

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        name = self._fresh(output)
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _constant(self, what: str, value: Any) -> str:
        if what not in self._constants:
            self._constants[what] = self._fresh(f"int8.{what}")
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), self._constants[what])
            if np.ndim(value) == 0:
                del tensor.dims[:]
            self._graph.initializer.append(tensor)
        return self._constants[what]

    def _fresh(self, wanted: str) -> str:
        name = wanted
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _quantized_columns(weight: Array) -> tuple[Array, Array]:
    """Rounds each column of a finite (K, N) to 127 steps of its own scale; returns int8 (K, N) and float32 (N,)."""
    wide = weight.astype(np.float64)
    scales = np.abs(wide).max(axis=0) / _STEPS
    scales[scales == 0.0] = 1.0
    return np.rint(wide / scales).astype(np.int8), scales.astype(np.float32)


def _normalizes_rows(node: onnx.NodeProto) -> bool:
    """Tells whether a node's rows are NaN throughout where they hold any NaN: it divides by a mean over the row."""
    return node.op_type == "LayerNormalization" and node.domain in _ONNX


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _all_names(graph: onnx.GraphProto) -> set[str]:
    values = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return values | {name for node in graph.node for name in node.output} | _names_read(graph)


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """Collects what a graph and its subgraphs read or give, and every name that the subgraphs write."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _names_read(inner) | {name for one in inner.node for name in one.output}
    return names
