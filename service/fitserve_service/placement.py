"""Where the runtime placed a model's nodes, and whether that is what was asked for. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SHAPE_OPERATORS: Final = frozenset(
    (
        *("Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal"),
        *("Expand", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod"),
        *("Mul", "Neg", "Not", "Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
        *("Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)
"""What computes shapes. A GPU's provider has kernels for all of these, and leaves one to the CPU only where its result
is needed there: it is no gap of the provider, and counts nothing."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which execution provider runs how many nodes.

    Args:
        node_counts: Execution provider to nodes, before the runtime fused any.
        left_over: Operator to nodes that another provider than the wanted one runs, arithmetic of shapes left out.
    """

    node_counts: Mapping[str, int] = field(default_factory=dict)
    left_over: Mapping[str, int] = field(default_factory=dict)


def placement_of(parts: Iterable[Any], provider: str) -> Placement:
    """Counts a session's nodes.

    Args:
        parts: What the runtime recorded (`get_provider_graph_assignment_info`): subgraphs, each with its provider.
        provider: The execution provider that is to run everything.
    """
    counts: Counter[str] = Counter()
    left_over: Counter[str] = Counter()
    for part in parts:
        nodes = part.get_nodes()
        counts[part.ep_name] += len(nodes)
        if part.ep_name != provider:
            left_over.update(node.op_type for node in nodes if node.domain or node.op_type not in SHAPE_OPERATORS)
    return Placement(dict(counts), dict(sorted(left_over.items())))


def placement_problem(placement: Placement, provider: str, max_left_over: int) -> str:
    """Tells why a placement is not what was asked for, and what to do; empty where it is.

    Args:
        placement: Where the nodes are.
        provider: The execution provider that is to run them.
        max_left_over: Nodes that others may run.
    """
    found = sum(placement.left_over.values())
    if found <= max_left_over:
        return ""
    expected = f"at most {max_left_over} nodes" if max_left_over else "no node"
    hint = f'allow them in model.toml with max_cpu_nodes = {found}, or serve the model with device = "cpu"'
    return f"expected {expected} that {provider} leaves to the CPU, got {found}: {_text(placement.left_over)}; {hint}"


def placement_text(placement: Placement) -> str:
    """Says in one line which provider runs how many nodes."""
    counts = ", ".join(f"{name} {count}" for name, count in placement.node_counts.items())
    left_over = f" ({_text(placement.left_over)} left over)" if placement.left_over else ""
    return f"nodes: {counts}{left_over}"


def _text(operators: Mapping[str, int]) -> str:
    names = [name if count == 1 else f"{name} ×{count}" for name, count in operators.items()]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
