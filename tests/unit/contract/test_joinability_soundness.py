"""Random graphs and the onnx package's own: whatever is proved answers a row by that row alone in ONNX Runtime.

Sizes of other axes are often those of the batch, so that a rule that takes one for the other is found out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from fitserve_contract.joinability.proof import prove_rows

OPSET = 18
HOSTILE = [0.0, -1.0, 3e38, -3e38, np.nan, np.inf, -np.inf, 1e-30, 1e6]
GRAPHS_PER_CASE = 25

Array = np.ndarray[Any, Any]
Moves = dict[str, Callable[["Grower", str], str | None]]


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def serialized(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], output: str, constants: dict[str, Array]
) -> bytes:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), [onnx.ValueInfoProto(name=output)], tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def declared(name: str, array: Array, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


class Grower:
    """Grows a graph node by node; each is run, so that shapes are known and what cannot run is left out."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.rows = int(self.random.choice([2, 3, 4]))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        for place in range(int(self.random.choice([1, 1, 2]))):
            shape = [int(size) for size in self.random.choice([1, 2, 3, 4], size=int(self.random.integers(0, 4)))]
            name, array = f"x{place}", self.random.normal(size=[self.rows, *shape]).astype(np.float32)
            axes = [size if self.random.random() < 0.7 else f"s{place}{axis}" for axis, size in enumerate(shape)]
            self.values[name], self.inputs[name] = array, declared(name, array, ["N", *axes])

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.values[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def floats(self, shape: Sequence[int]) -> str:
        return self.constant(self.random.normal(size=shape).astype(np.float32))

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def tensor(self) -> str:
        """A tensor of floats that is no constant, rather a late one."""
        names = [n for n, v in self.values.items() if v.dtype == np.float32 and n not in self.constants]
        return names[-1] if self.random.random() < 0.5 else str(self.pick(*names))

    def axis(self, name: str, more: int = 0) -> int:
        rank = self.values[name].ndim + more
        return int(self.random.integers(-rank, rank)) if rank else 0

    def run(self, operator: str, *inputs: str | None, outputs: int = 1, **attributes: Any) -> str | None:
        """Adds a node; None where an input is, or where it does not run."""
        if None in inputs:
            return None
        names = [str(name) for name in inputs]
        made = [f"t{len(self.nodes)}_{place}" for place in range(outputs)]
        try:
            node = helper.make_node(operator, names, made, name=made[0], **attributes)
            feeds = {name: self.values[name] for name in names if name}
            infos = [declared(name, array, array.shape) for name, array in feeds.items()]
            (found,) = open_session(serialized([node], infos, made[0], {})).run(None, feeds)
        except Exception:
            return None
        if found.size > 2000 or found.ndim > 6:
            return None
        self.nodes.append(node)
        self.values[made[0]] = found
        return made[0]

    def sizes(self, name: str) -> list[str | None]:
        shape = self.run("Shape", name)
        return [self.run("Gather", shape, self.ints(axis)) for axis in range(self.values[name].ndim)]

    def model(self, output: str) -> bytes:
        """The graph without nodes that the output does not need."""
        needed, live = {output}, list[onnx.NodeProto]()
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                live.insert(0, node)
        constants = {name: array for name, array in self.constants.items() if name in needed}
        return serialized(live, list(self.inputs.values()), output, constants)


def with_constant(grower: Grower, name: str) -> str | None:
    shape = [size if grower.random.random() < 0.5 else 1 for size in grower.values[name].shape]
    operator = grower.pick("Add", "Mul", "Max", "Sub")
    return grower.run(operator, name, grower.floats(shape[int(grower.random.integers(0, len(shape) + 1)) :]))


def reduced(grower: Grower, name: str) -> str | None:
    operator = grower.pick("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd")
    axes = [grower.ints(grower.axis(name))] if grower.random.random() < 0.8 else []
    return grower.run(operator, name, *axes, keepdims=grower.pick(0, 1), noop_with_empty_axes=grower.pick(0, 0, 1))


def reshaped(grower: Grower, name: str) -> str | None:
    target = [int(grower.pick(0, -1, 1, 2, 3, 4, 6, 8, grower.rows)) for _ in range(grower.pick(1, 2, 3, 4))]
    return grower.run("Reshape", name, grower.ints(*target))


def regrouped(grower: Grower, name: str) -> str | None:
    """Merges, parts or swaps axes by sizes that the graph reads from tensors."""
    sizes = [*grower.sizes(name), *grower.sizes(grower.tensor())]
    if grower.random.random() < 0.5:
        sizes = sizes[: grower.values[name].ndim]
        place = int(grower.random.integers(max(1, len(sizes) - 1)))
        sizes[place : place + 2] = [grower.run("Mul", *sizes[place : place + 2])] if len(sizes) > 1 else sizes
    else:
        sizes = [grower.pick(*sizes) for _ in range(grower.pick(1, 2, 3))] if sizes else []
    if sizes and grower.random.random() < 0.4:
        sizes[int(grower.random.integers(len(sizes)))] = grower.ints(-1)
    return grower.run("Reshape", name, grower.run("Concat", *sizes, axis=0))


def expanded(grower: Grower, name: str) -> str | None:
    """A constant, or a tensor, as large as another."""
    other = grower.tensor()
    shape = [size if grower.random.random() < 0.4 else 1 for size in grower.values[other].shape]
    return grower.run("Expand", grower.pick(name, grower.floats(shape)), grower.run("Shape", other))


def sliced(grower: Grower, name: str) -> str | None:
    start, end, step = grower.pick(0, 0, 1, -1), grower.pick(1, 2, 2**63 - 1, -1), grower.pick(1, 1, 2, -1)
    ends = [grower.ints(end), *grower.sizes(grower.tensor())]
    return grower.run(
        "Slice", name, grower.ints(start), grower.pick(*ends), grower.ints(grower.axis(name)), grower.ints(step)
    )


def counted(grower: Grower, size: str | None) -> str | None:
    """0, 1, ... up to a size."""
    zero, one = grower.constant(np.array(0)), grower.constant(np.array(1))
    return grower.run("Range", zero, grower.run("Squeeze", size), one)


def picked(grower: Grower, name: str) -> str | None:
    """Elements by places that are the same for all, of each row, or of the place of the row."""
    other = grower.tensor()
    places = grower.run("Cast", grower.run("Relu", grower.run("Sign", other)), to=7)
    rows = grower.run(
        "Range",
        grower.constant(np.array(0)),
        grower.run("Squeeze", grower.pick(*grower.sizes(other), None)),
        grower.constant(np.array(1)),
    )
    columns = [grower.run("Unsqueeze", column, grower.ints(-1)) for column in (rows, places)]
    choice = grower.pick("Gather", "Rows", "Elements", "Token", "Table")
    if choice == "Gather":
        return grower.run("Gather", name, grower.ints(grower.pick(0, 0, 1)), axis=grower.axis(name))
    if choice == "Rows":
        return grower.run("Gather", name, rows, axis=grower.axis(name))
    if choice == "Elements":
        return grower.run("GatherElements", name, places, axis=grower.axis(name))
    if choice == "Table":
        return grower.run("Gather", grower.floats((4, 2)), places, axis=grower.pick(0, 1))
    return grower.run("GatherND", name, grower.run("Concat", *columns, axis=-1), batch_dims=grower.pick(0, 0, 1))


def multiplied(grower: Grower, name: str) -> str | None:
    other, shape = grower.tensor(), grower.values[name].shape
    if not shape:
        return None
    swapped = grower.run("Transpose", other, perm=[*range(grower.values[other].ndim - 2), -1, -2])
    weights = grower.floats((shape[-1], 2) if grower.random.random() < 0.7 else (shape[0], shape[-1], 2))
    return grower.run("MatMul", name, grower.pick(other, swapped, weights, weights))


def summed(grower: Grower, name: str) -> str | None:
    other = grower.tensor()
    letters = [str(letter) for letter in grower.random.choice(list("abc"), grower.values[name].ndim)]
    more = [str(letter) for letter in grower.random.choice(list("abc"), grower.values[other].ndim)]
    kept = [letter for letter in sorted({*letters, *more}) if grower.random.random() < 0.7]
    return grower.run("Einsum", name, other, equation=f"{''.join(letters)},{''.join(more)}->{''.join(kept)}")


def of_count(grower: Grower, name: str) -> str | None:
    """The number of rows, or their places, as numbers."""
    size = grower.pick(*grower.sizes(grower.tensor()), None)
    filled = grower.run("ConstantOfShape", grower.run("Concat", size, grower.ints(2), axis=0))
    places = grower.run(
        "Range", grower.constant(np.array(0)), grower.run("Squeeze", size), grower.constant(np.array(1))
    )
    return grower.run("Add", name, grower.run("Cast", grower.pick(size, filled, places), to=1))


def quantized(grower: Grower, name: str) -> str | None:
    """By one scale, by one for each place along an axis, or by one for each slice that the graph computes."""
    axis, shape = grower.axis(name), grower.values[name].shape
    if not shape:
        return None
    scales = np.full(shape[axis], 0.1, np.float32)
    computed = grower.run(
        "Add", grower.run("ReduceMax", grower.run("Abs", name), grower.ints(-1), keepdims=0), grower.floats(())
    )
    scale = grower.pick(grower.constant(scales), grower.constant(scales[0]), computed)
    coded = grower.run("QuantizeLinear", name, scale, axis=axis)
    return grower.run("DequantizeLinear", coded, scale, axis=axis)


def resized(grower: Grower, name: str) -> str | None:
    scales = np.array([grower.pick(1, 1, 2) for _ in grower.values[name].shape], np.float32)
    return grower.run("Resize", name, "", grower.constant(scales))


MOVES: Moves = {
    "unary": lambda g, x: g.run(g.pick("Relu", "Tanh", "Neg", "Abs", "Erf"), x),
    "binary": lambda g, x: g.run(g.pick("Add", "Mul", "Sub", "Div", "Max"), x, g.tensor()),
    "choice": lambda g, x: g.run("Where", g.run("Greater", x, g.tensor()), x, g.tensor()),
    "constant": with_constant,
    "reduced": reduced,
    "softmax": lambda g, x: g.run(g.pick("Softmax", "LogSoftmax", "Hardmax"), x, axis=g.axis(x)),
    "reshaped": reshaped,
    "regrouped": regrouped,
    "again": regrouped,
    "transposed": lambda g, x: g.run("Transpose", x, perm=[int(a) for a in g.random.permutation(g.values[x].ndim)]),
    "flattened": lambda g, x: g.run("Flatten", x, axis=g.axis(x)),
    "squeezed": lambda g, x: g.run("Squeeze", x),
    "unsqueezed": lambda g, x: g.run("Unsqueeze", x, g.ints(g.axis(x, 1))),
    "expanded": expanded,
    "tiled": lambda g, x: g.run("Tile", x, g.ints(*(g.pick(1, 1, 2) for _ in g.values[x].shape))),
    "joined": lambda g, x: g.run("Concat", x, g.pick(g.tensor(), g.floats(g.values[x].shape)), axis=g.axis(x)),
    "parted": lambda g, x: g.run("Split", x, outputs=2, axis=g.axis(x), num_outputs=2),
    "sliced": sliced,
    "picked": picked,
    "multiplied": multiplied,
    "summed": summed,
    "sorted": lambda g, x: g.run("TopK", x, g.ints(1), outputs=2, axis=g.axis(x)),
    "added up": lambda g, x: g.run("CumSum", x, g.constant(np.array(g.axis(x)))),
    "triangle": lambda g, x: g.run("Trilu", x),
    "count": of_count,
    "quantized": quantized,
    "dynamic": lambda g, x: g.run("DynamicQuantizeLinear", x, outputs=3),
    "window": lambda g, x: g.run(g.pick("MaxPool", "AveragePool"), x, kernel_shape=[1, 2], pads=[0, 1, 0, 1]),
    "resized": resized,
    "normalized": lambda g, x: g.run("MeanVarianceNormalization", x, axes=[g.axis(x)]),
}  # fmt: skip


def drawn(random: np.random.Generator, like: Array, count: int, is_hostile: bool) -> Array:
    """Rows of the shape and type of `like`."""
    shape = (count, *like.shape[1:])
    if like.dtype.kind == "b":
        return random.random(shape) < 0.5
    if like.dtype.kind != "f":
        return random.integers(0, 2, shape).astype(like.dtype)
    plain = random.normal(size=shape)
    if is_hostile:
        plain = np.where(random.random(shape) < 0.5, plain * 1e4, random.choice(HOSTILE, shape))
    with np.errstate(over="ignore"):
        return plain.astype(like.dtype)


def coupling(content: bytes, likes: Sequence[Array], sizes: Sequence[int]) -> str:
    """How a row's answer depends on others; empty where it does not, at any size and position that is tried."""
    session, random = open_session(content), np.random.default_rng(0)
    names = [entry.name for entry in session.get_inputs()]

    def answers(rows: Sequence[Array]) -> list[Array]:
        return [np.asarray(found) for found in session.run(None, dict(zip(names, rows, strict=True)))]

    for size, position in [(many, place) for many in sizes for place in (0, many - 1)]:
        own = [drawn(random, like, 1, is_hostile=False) for like in likes]
        beside = [drawn(random, like, size, is_hostile=True) for like in likes]
        for array, row in zip(beside, own, strict=True):
            array[position] = row[0]
        alone, copies = answers(own), answers([np.repeat(row, size, 0) for row in own])
        try:
            hostile = answers(beside)
        except Exception:
            # A value that the runtime refuses, such as a place past the end, is no answer that could be wrong.
            continue
        for single, one, other in zip(alone, copies, hostile, strict=True):
            if single.shape[:1] != (1,) or one.shape[:1] != (size,) or one.shape != other.shape:
                return f"{size} rows: shapes {single.shape}, {one.shape}, {other.shape}"
            if one[position].tobytes() != other[position].tobytes() and not _same(one[position], other[position]):
                return f"{size} rows, row {position}: {one[position].ravel()[:3]}, {other[position].ravel()[:3]}"
            if not np.allclose(single[0].astype(float), one[position].astype(float), 1e-3, 1e-4, equal_nan=True):
                return f"{size} rows, row {position} alone: {single[0].ravel()[:3]}, {one[position].ravel()[:3]}"
    return ""


def _same(one: Array, other: Array) -> bool:
    return one.dtype.kind == "f" and np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize("case", range(8))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_graphs_that_are_proved_couple_no_rows(case: int) -> None:
    proved = 0
    for seed in range(case * GRAPHS_PER_CASE, (case + 1) * GRAPHS_PER_CASE):
        grower = Grower(seed)
        for _ in range(grower.pick(1, 2, 4, 6, 8)):
            MOVES[grower.pick(*MOVES)](grower, grower.tensor())
        likes = [grower.values[name] for name in grower.inputs]
        ends = [name for node in grower.nodes for name in node.output if name in grower.values]
        for output in [end for end in ends if grower.values[end].shape[:1] == (grower.rows,)][-3:]:
            content = grower.model(output)
            if prove_rows(content).is_proved:
                proved += 1
                problem = coupling(content, likes, (grower.rows, grower.rows + 1))
                assert not problem, f"seed {seed}: {problem}\n{onnx.printer.to_text(onnx.load_from_string(content))}"
    assert proved > GRAPHS_PER_CASE // 3


def published() -> Iterator[tuple[str, bytes, list[Array]]]:
    """The onnx package's own test models with a free first axis: of the first input, or of all, others constant."""
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None)[::4]:
        arrays = case.data_sets[0][0] if case.data_sets else ()
        if (
            case.model is None
            or not arrays
            or not all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in arrays)
        ):
            continue
        for count in {1, len(arrays)}:
            model, rows = copy.deepcopy(case.model), list[Array]()
            model.ir_version = min(model.ir_version, 10)
            infos = list(model.graph.input)
            del model.graph.input[:]
            for place, (info, array) in enumerate(zip(infos, arrays, strict=False)):
                if place < count and array.ndim and array.shape[0]:
                    model.graph.input.append(declared(info.name, array, ["N", *array.shape[1:]]))
                    rows.append(array)
                else:
                    model.graph.initializer.append(numpy_helper.from_array(array, info.name))
            for opset in model.opset_import:
                opset.version = min(opset.version, 22) if not opset.domain else opset.version
            for entry in model.graph.output:
                entry.type.tensor_type.ClearField("shape")
            if rows:
                yield case.name, model.SerializeToString(), rows


def test_published_models_that_are_proved_couple_no_rows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [entry for entry in published() if prove_rows(entry[1]).is_proved]
        wrong, run = dict[str, str](), 0
        for name, content, rows in models:
            try:
                problem = coupling(content, rows, (2, 3))
            except Exception:
                # What this runtime does not know, or a value that it refuses, is no answer that could be wrong.
                continue
            run += 1
            if problem:
                wrong[name] = problem
    assert wrong == {}
    assert run > 100
