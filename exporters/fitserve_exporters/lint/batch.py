"""Whether any number of examples can be sent at once, and which node is in the way if not.

The graph itself is asked: it runs with its first axes free at several batch sizes, and what fails or stays the same
size is traced to the node that does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx

from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile, axis_size, graph_inputs
from fitserve_exporters.lint.trial import Trial, axis_sizes, made_up_inputs, reason

_SIZES: Final = (1, 2, 3)
_READS_SHAPE: Final = ("Shape", "Size")


def batch_findings(file: OnnxFile) -> Iterator[Finding]:
    """Says whether the batch axis is free, and if not which input or node fixes it."""
    batched = [value for value in graph_inputs(file.model) if value.type.tensor_type.shape.dim]
    if not batched:
        yield Finding(Level.NOTE, "batch", "no input has an axis: every request runs alone")
        return
    sizes = {value.name: axis_size(_first(value)) for value in batched}
    fixed = {name: size for name, size in sizes.items() if size is not None}
    problem = _problem_in_graph(file, sorted({*_SIZES, *fixed.values()}))
    if fixed:
        found = ", ".join(f"'{name}' {size}" for name, size in fixed.items())
        cause = problem or "no node needs it: export again with a free first axis"
        message = f"expected a free first axis, got a fixed one for {found}; {cause}"
        yield Finding(Level.WARNING, "batch", f"{message}. It is served at this size, without dynamic batching")
    elif problem:
        message = f"the first axis is declared free, but {problem}. It is served without dynamic batching"
        yield Finding(Level.WARNING, "batch", message)
    else:
        yield Finding(Level.NOTE, "batch", "the first axis is free: tried with 1, 2 and 3 examples")


def freed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives a copy whose first axes are free and which declares no other shape; the nodes are the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in graph_inputs(copy):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for output in copy.graph.output:
        if output.type.WhichOneof("value") == "tensor_type":
            output.type.tensor_type.ClearField("shape")
    return copy


_UNTRIED: Final = "it could not be tried with made-up inputs"


def _problem_in_graph(file: OnnxFile, sizes: list[int]) -> str:
    """Says what keeps the graph from taking any batch size; empty where nothing does."""
    values = graph_inputs(file.model)
    failures: dict[int, str] = {}
    shapes: dict[int, dict[str, tuple[int, ...]]] = {}
    try:
        trial = Trial(_with_all_outputs(freed(file.model)), file.path.parent)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        return f"{_UNTRIED}: {reason(error)}"
    for size in sizes:
        try:
            shapes[size] = axis_sizes(trial.run(made_up_inputs(values, size)))
        except Exception as error:  # as above
            failures[size] = reason(error)
    if not shapes:
        return f"{_UNTRIED}: {next(iter(failures.values()))}"
    if failures:
        failed, text = next(iter(failures.items()))
        return f"a node hard-codes it: with {failed} examples {text}; with {next(iter(shapes))} it runs"
    return _stuck_output(file.model, shapes)


def _stuck_output(model: onnx.ModelProto, shapes: dict[int, dict[str, tuple[int, ...]]]) -> str:
    """Names the first output whose first axis is not the batch, and the node that made it so."""
    smallest, largest = shapes[min(shapes)], shapes[max(shapes)]
    for output in model.graph.output:
        before, after = smallest.get(output.name), largest.get(output.name)
        if before is None or after is None or after[:1] == (max(shapes),):
            continue
        if before != after:
            return f"output '{output.name}' has the batch not as its first axis: {after} for {max(shapes)} examples"
        changing = {name for name in smallest if smallest[name] != largest.get(name)}
        node = _fixing_node(model, output.name, changing | {value.name for value in graph_inputs(model)})
        return f"output '{output.name}' keeps shape {after} at every batch size{node}"
    return ""


def _fixing_node(model: onnx.ModelProto, output: str, changing: set[str]) -> str:
    """Walks from an output towards the inputs to the first node that reads values which grow with the batch."""
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting, seen = [output], {output}
    while waiting:
        node = producers.get(waiting.pop(0))
        if node is None:
            continue
        if changing & set(node.input) and node.op_type not in _READS_SHAPE:
            return f": node '{node.name}' ({node.op_type}) hard-codes it"
        waiting += [name for name in node.input if name not in seen]
        seen.update(node.input)
    return ""


def _with_all_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes every value of the graph an output, after the model's own: their shapes tell where the batch is lost."""
    known = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                known.add(name)
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model


def _first(value: onnx.ValueInfoProto) -> onnx.TensorShapeProto.Dimension:
    return value.type.tensor_type.shape.dim[0]
