"""Names of a finished graph: its inputs and outputs as the caller wants them, its own values out of their way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx


def name_ends(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Renames the inputs and outputs, in order, in place. Other values of the same names get new ones.

    Args:
        model: As many inputs and outputs as there are names; no value is both.
        inputs: Distinct.
        outputs: Distinct, none of them an input.
    """
    graph = model.graph
    ends = dict(zip((value.name for value in (*graph.input, *graph.output)), (*inputs, *outputs), strict=True))
    wanted = {name: clean for name in sorted(_names(graph) - set(ends)) if (clean := _without_wrapper(name)) != name}
    taken = set(ends.values())
    renamed = dict(ends)
    for name in sorted(_names(graph) - set(ends)):
        renamed[name] = _free(wanted.get(name, name), taken)
        taken.add(renamed[name])
    for part in graphs(graph):
        _rename(part, renamed)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yields a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def _names(graph: onnx.GraphProto) -> set[str]:
    found = {name for part in graphs(graph) for node in part.node for name in (*node.input, *node.output)}
    found |= {value.name for part in graphs(graph) for value in (*part.input, *part.output, *part.value_info)}
    found |= {tensor.name for part in graphs(graph) for tensor in part.initializer}
    return found - {""}


def _without_wrapper(name: str) -> str:
    """Drops the modules that the export itself puts around a user's: `module.module.linear.weight`."""
    return name.removeprefix("module.").removeprefix("module.")


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}__{number}"
    return free


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    named: list[Any] = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for value in named:
        value.name = renamed.get(value.name, value.name)
