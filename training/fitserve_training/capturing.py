"""A full batch's step as one CUDA graph: all that the host does for a step is to copy indices and to launch once.

The captured step gathers its examples by indices that lie on the device, goes forward and back, updates the parameters
and adds up the sums. Whatever it touches has to stay where it is, so it is captured after steps that went through the
same code and made the optimizer's state. Source: the PyTorch notes on CUDA semantics, "CUDA Graphs".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

IndexStep = Callable[[Tensor], None]
"""Trains on the examples at the indices given, int64 (B,) on the device."""

Capture = Callable[[IndexStep, Tensor], IndexStep]
"""Makes of a step another that does the same for as many indices as those given, without its Python."""


def choose_capture(device: torch.device, optimizer: torch.optim.Optimizer, has_lengths: bool) -> Capture | None:
    """Gives the way to capture a step; None where it would not do what the step does.

    Args:
        device: Only CUDA has graphs.
        optimizer: One that counts its steps on the host would have the count of the captured step for ever.
        has_lengths: Whether batches of as many examples differ in shape.
    """
    is_on_device = isinstance(optimizer, torch.optim.SGD) or all(
        group.get("capturable", False) for group in optimizer.param_groups
    )
    return capture_step if device.type == "cuda" and is_on_device and not has_lengths else None


def capture_step(step: IndexStep, indices: Tensor) -> IndexStep:
    """Captures a step, which carries out nothing of it; the step that it gives replays it on the current stream.

    Raises:
        RuntimeError: the step does what no graph can, for example it waits for an answer of the device.
    """
    held, graph = indices.clone(), torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(indices.device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(indices.device), torch.cuda.graph(graph, stream=stream):
        step(held)

    def replay(given: Tensor) -> None:
        held.copy_(given)
        graph.replay()

    return replay


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Runs what is inside on another stream than the default one, whose work no graph can hold; nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
