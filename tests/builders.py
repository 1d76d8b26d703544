"""Small ONNX models of every shape that people have, and repositories of them: the worlds in which tests live.

Each model is a serialized ModelProto of a few nodes. Shapes: B is a free first axis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fitserve_contract.certificate import HELD_OUT_FILE, PROBE_FILE, HeldOutExamples, Probe
from fitserve_contract.manifest import Manifest, TensorSpec
from fitserve_contract.repository import (
    CHECKSUMS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    VersionPath,
    checksum_text,
    checksums,
    publish,
    publishing,
    version_path,
)
from fitserve_contract.tasks import Scores, Task, TaskKind

OPSET = 20
IR_VERSION = 10

FLOAT = TensorProto.FLOAT

ELEMENT_TYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""OIP datatype to ONNX element type."""

Shape = Sequence[int | str | None] | None


def value(name: str, shape: Shape = ("B", 2), element_type: int = FLOAT) -> onnx.ValueInfoProto:
    """Describes a tensor; shape None leaves the rank open."""
    return helper.make_tensor_value_info(name, element_type, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    ml: bool = False,
    ir_version: int = IR_VERSION,
) -> bytes:
    """Serializes a model; `ml` adds the ai.onnx.ml operators."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), initializer=tensors)
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid("ai.onnx.ml", 3)] if ml else [])]
    built = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return bytes(built.SerializeToString())


def identity(datatype: str = "FP32", shape: Shape = ("B", 2)) -> bytes:
    """x -> y, the same values of any datatype and shape."""
    element_type = ELEMENT_TYPES[datatype]
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", shape, element_type)],
        [value("y", shape, element_type)],
    )


def scaled(factor: float = 2.0, width: int = 2) -> bytes:
    """x FP32 (B, width) -> y = factor * x: rows are independent."""
    return model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [value("x", ("B", width))],
        [value("y", ("B", width))],
        {"factor": np.array(factor, np.float32)},
    )


def linear(rows: int = 2, columns: int = 3, seed: int = 0) -> bytes:
    """x FP32 (B, rows) -> y FP32 (B, columns), a matrix product."""
    weights = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ("B", rows))],
        [value("y", ("B", columns))],
        {"w": weights},
    )


def killer(divisor: int = -1) -> bytes:
    """x INT32 (B, 1) -> y = x / divisor; by -1 the lowest integer has no quotient, which kills the process (SIGFPE)."""
    return model(
        [helper.make_node("Div", ["x", "divisor"], ["y"])],
        [value("x", ("B", 1), TensorProto.INT32)],
        [value("y", ("B", 1), TensorProto.INT32)],
        {"divisor": np.array([divisor], np.int32)},
    )


def deadly() -> bytes:
    """x FP32 (B, 2) -> y; kills whoever loads it: the runtime folds a quotient of constants that is none (SIGFPE)."""
    nodes = [
        helper.make_node("Div", ["lowest", "minus_one"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["factor"], to=FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    constants = {"lowest": np.array([-(2**31)], np.int32), "minus_one": np.array([-1], np.int32)}
    return model(nodes, [value("x")], [value("y")], constants)


def fixed_shape() -> bytes:
    """x FP32 (2, 3) -> y: no batch axis."""
    return identity(shape=(2, 3))


def two_in_two_out() -> bytes:
    """a, b FP32 (B, 2) -> total, difference FP32 (B, 2)."""
    return model(
        [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [value("a"), value("b")],
        [value("total"), value("difference")],
    )


def default_input() -> bytes:
    """x FP32 (B, 2), offset FP32 (1) that defaults to 10 -> y = x + offset."""
    return model(
        [helper.make_node("Add", ["x", "offset"], ["y"])],
        [value("x"), value("offset", (1,))],
        [value("y")],
        {"offset": np.array([10], np.float32)},
    )


def optional_tensor() -> bytes:
    """x FP32 (B, 2), extra optional(FP32) -> y = x, is_there BOOL scalar: whether `extra` was given."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    return model(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("OptionalHasElement", ["extra"], ["is_there"]),
        ],
        [value("x"), helper.make_value_info("extra", kind)],
        [value("y"), value("is_there", (), TensorProto.BOOL)],
    )


def zipmap_like() -> bytes:
    """x FP32 (B, 3) -> label INT64 (B), probabilities: a sequence of maps, as scikit-learn's converter makes them."""
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, _tensor_type(FLOAT)))
    return model(
        [
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
            helper.make_node("ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        ],
        [value("x", ("B", 3))],
        [value("label", ("B",), TensorProto.INT64), helper.make_value_info("probabilities", maps)],
        ml=True,
    )


def sequence_input() -> bytes:
    """A sequence goes in: no request of tensors can bring it."""
    sequence = helper.make_sequence_type_proto(_tensor_type(FLOAT))
    return model(
        [helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)],
        [helper.make_value_info("s", sequence)],
        [value("y")],
    )


def mean_over_batch() -> bytes:
    """y = x - mean of x over the batch: rows mix."""
    return model(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        {"axes": np.array([0], np.int64)},
    )


def cumulative_sum() -> bytes:
    """y = cumulative sum of x along the batch: rows mix."""
    nodes = [helper.make_node("CumSum", ["x", "axis"], ["y"])]
    return model(nodes, [value("x")], [value("y")], {"axis": np.array(0, np.int64)})


def softmax_over_batch() -> bytes:
    """y = softmax of x along the batch: rows mix."""
    return model([helper.make_node("Softmax", ["x"], ["y"], axis=0)], [value("x")], [value("y")])


def gather(classes: int = 5) -> bytes:
    """index INT64 (B) in -classes..classes-1 -> y FP32 (B, 2): rows of a table; any other index is refused."""
    table = np.arange(classes * 2, dtype=np.float32).reshape(classes, 2)
    return model(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [value("index", ("B",), TensorProto.INT64)],
        [value("y")],
        {"table": table},
    )


def slow(rounds: int = 400, width: int = 512) -> bytes:
    """x FP32 (B, width) -> y = x: a chain of matrix products, milliseconds long."""
    names = ["x", *[f"h{index}" for index in range(rounds - 1)], "y"]
    nodes = [helper.make_node("MatMul", [left, "w"], [right]) for left, right in pairwise(names)]
    return model(nodes, [value("x", ("B", width))], [value("y", ("B", width))], {"w": np.eye(width, dtype=np.float32)})


def endless() -> bytes:
    """x FP32 (B, 2) -> y: a loop without an end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["again"]), helper.make_node("Add", ["state", "one"], ["next"])],
        "body",
        [value("round", (), TensorProto.INT64), value("go_on", (), TensorProto.BOOL), value("state", ("B", 2))],
        [value("again", (), TensorProto.BOOL), value("next", ("B", 2))],
    )
    return model(
        [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)],
        [value("x")],
        [value("y")],
        {"yes": np.array(True), "one": np.array(1, np.float32)},
    )


def slow_rows(trips_per_row: int) -> bytes:
    """x FP32 (B, 2) -> y = 2 x, in a time that grows with the rows: so many products of 128 x 128 for each."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "weights"], ["product"]),
            helper.make_node("Tanh", ["product"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["again"]),
        ],
        "body",
        [value("round", (), TensorProto.INT64), value("go_on", (), TensorProto.BOOL), value("before", (128, 128))],
        [value("again", (), TensorProto.BOOL), value("after", (128, 128))],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Squeeze", ["rows"], ["row_count"]),
        helper.make_node("Mul", ["row_count", "trips_per_row"], ["trips"]),
        helper.make_node("Loop", ["trips", "yes", "weights"], ["last"], body=body),
        helper.make_node("ReduceMin", ["last"], ["least"], keepdims=0),
        helper.make_node("Min", ["least", "zero"], ["nothing"]),
        helper.make_node("Max", ["nothing", "zero"], ["offset"]),
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "offset"], ["y"]),
    ]
    weights = {
        "weights": np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32) / 12,
        "trips_per_row": np.array(trips_per_row),
        "yes": np.array(True),
        "zero": np.array(0, np.float32),
        "two": np.array(2, np.float32),
    }
    return model(nodes, [value("x")], [value("y")], weights)


def external(location: str, rows: int = 2) -> bytes:
    """x FP32 (B, rows) -> y = x + w, with w FP32 (rows) in the file `location`: `external_content(rows)`."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[rows], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", ("B", rows))],
        [value("y", ("B", rows))],
        [tensor],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def external_content(rows: int = 2) -> bytes:
    """The weights of `external`: 1, 2, 3, …"""
    return np.arange(1, rows + 1, dtype=np.float32).tobytes()


def manifest(name: str, task: Task | None = None) -> Manifest:
    """A manifest of a model x FP32 (B, 2) -> y FP32 (B, 2)."""
    spec = TensorSpec("x", "FP32", ("B", 2))
    return Manifest(name, "2026-01-01T00:00:00Z", (spec,), (TensorSpec("y", "FP32", ("B", 2)),), task)


def classes_task(output: str = "y", count: int = 2) -> Task:
    """One of `count` classes, from logits."""
    return Task(TaskKind.CLASSIFICATION, output, Scores.LOGITS, tuple(f"class {index}" for index in range(count)))


def publish_version(root: Path, name: str, content: bytes, *, task: Task | None = None, **files: bytes) -> VersionPath:
    """Publishes a model as an exporter does: with its manifest, further files and checksums, atomically."""
    with publishing(root, name) as aside:
        (aside / MODEL_FILE).write_bytes(content)
        (aside / MANIFEST_FILE).write_bytes(manifest(name, task).to_bytes())
        for file, data in files.items():
            (aside / file).write_bytes(data)
        return publish(root, name, aside)


def certified_version(
    root: Path,
    name: str,
    content: bytes,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    *,
    task: Task | None = None,
    tolerance: float = 1e-5,
    held_out: HeldOutExamples | None = None,
) -> VersionPath:
    """Publishes a model of FP32 with a certificate: what onnx's own evaluator answers to `inputs` in FP32 and FP64."""
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(content))
    names = evaluator.output_names
    fp32 = dict(zip(names, map(np.asarray, evaluator.run(None, dict(inputs))), strict=True))
    exact = {output: array.astype(np.float64) for output, array in fp32.items()}
    probe = Probe(inputs, fp32, exact).to_bytes()
    files = {PROBE_FILE: probe} | ({HELD_OUT_FILE: held_out.to_bytes()} if held_out is not None else {})
    bounds = {"tolerance": {"per_output": dict.fromkeys(names, tolerance)}}
    facts = {file: {"sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    described = replace(manifest(name, task), verification=bounds, files=facts)
    with publishing(root, name) as aside:
        for file, data in {MODEL_FILE: content, MANIFEST_FILE: described.to_bytes(), **files}.items():
            (aside / file).write_bytes(data)
        return publish(root, name, aside)


def rewrite(path: VersionPath, file: str, content: bytes) -> None:
    """Changes a file of a published version and makes the checksums fit again, as who tampers with it does."""
    (path.folder / file).write_bytes(content)
    (path.folder / CHECKSUMS_FILE).write_text(checksum_text(checksums(path.folder)))


def bare_version(root: Path, name: str, version: int, content: bytes) -> VersionPath:
    """Lays a bare model.onnx into a repository, as a person with a foreign file does."""
    path = version_path(root, name, version)
    path.folder.mkdir(parents=True)
    (path.folder / MODEL_FILE).write_bytes(content)
    return path


def _tensor_type(element_type: int) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(element_type, None)
