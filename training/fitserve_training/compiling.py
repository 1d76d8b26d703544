"""Whether and how training is compiled, and the fall-back to eager where it cannot be."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from fitserve_training.data.dataset import Batch

Gradient = Callable[[Batch, torch.Tensor, float | torch.Tensor], torch.Tensor]
"""Adds a batch's gradients, weighted by its share of the whole, and its sums to the vector given; gives the loss."""

_AUTO = {
    "cpu": ("off", "auto: on a CPU compiling takes longer than it saves"),
    "cuda": ("step", "auto: on a GPU a compiled step has few launches"),
}
"""What `auto` means, and why. On 2 CPU cores LeNet's convolutions cost the same compiled or not, a linear model is one
multiplication, and compiling a whole step takes half a minute. On a GPU launches are the cost, and a compiled step has
few of them."""

_LENGTHS = "auto: batches differ in length, and each length would be compiled anew"

_COMPILERS = ("g++", "clang++", "c++")


@dataclass
class CompileRecord:
    """What was asked and what happened.

    Args:
        requested: auto, off, module or step.
        used: off, module or step.
        reason: Why `auto` chose it, why it is not what was asked, or why a compiled step was not captured.
        first_step_s: The first full step, with compilation in it.
        warm_up_s: All full steps before the steady ones, the first and the capture among them.
        capture_s: Capturing the step as a CUDA graph.
        is_captured: Whether full steps were replayed from a CUDA graph.
        graph_count_after_warm_up: Graphs that dynamo had compiled when the steps became steady.
        graph_count: Graphs that it has compiled by now.
        recompilation_count: Those after the warm-up; 0 is as it should be.
    """

    requested: str
    used: str
    reason: str = ""
    first_step_s: float = 0.0
    warm_up_s: float = 0.0
    capture_s: float = 0.0
    is_captured: bool = False
    graph_count_after_warm_up: int = 0
    graph_count: int = 0
    recompilation_count: int = 0

    def count_graphs(self, is_warm_up: bool = False) -> None:
        """Takes down how many graphs there are; those compiled after the warm-up are the recompilations."""
        self.graph_count = compiled_graph_count() if self.used != "off" else 0
        if is_warm_up or self.used == "off":
            self.graph_count_after_warm_up = self.graph_count
        self.recompilation_count = self.graph_count - self.graph_count_after_warm_up


def choose_compile(requested: str, device: torch.device, cache_dir: Path, has_lengths: bool = False) -> CompileRecord:
    """Decides the mode for this machine; what cannot compile here goes on eagerly, with the reason.

    Args:
        requested: auto, off, module or step.
        device: Where training runs.
        cache_dir: Inductor's cache goes below it, so that a later run need not compile again.
        has_lengths: Whether batches differ in shape; `auto` then compiles nothing, for it would do so for each shape.
    """
    mode, why = requested, ""
    if requested == "auto":
        mode, why = ("off", _LENGTHS) if has_lengths else _AUTO[device.type]
    if mode == "off":
        return CompileRecord(requested, "off", why)
    if reason := why_not_compile(device):
        return CompileRecord(requested, "off", reason)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir / "inductor"))
    return CompileRecord(requested, mode, why)


def why_not_compile(device: torch.device) -> str:
    """Names what inductor lacks here; empty where it lacks nothing that can be seen beforehand."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((named,) if named else _COMPILERS)):
        return f"no C++ compiler found ({named or ', '.join(_COMPILERS)})"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return "" if header.is_file() else f"no Python headers found ({header})"


def compile_forward(module: torch.nn.Module, record: CompileRecord) -> Callable[..., torch.Tensor]:
    """Gives the module's forward, compiled in mode `module`. The module itself stays eager and keeps its names."""
    if record.used != "module":
        return module
    forward: Callable[..., torch.Tensor] = torch.compile(module, dynamic=False)
    return forward


def compile_step(step: Gradient) -> Gradient:
    """Gives the step, update included, compiled as a whole.

    It becomes two graphs, forward with backward and the update, for torch's optimizers put a break before theirs.
    """
    # The optimizer's profiler marks are left out of the graph; dynamo warns of each.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        torch._dynamo.config.trace_autograd_ops = True
    compiled: Gradient = torch.compile(step, dynamic=False)
    return compiled


@contextmanager
def quiet_compilation() -> Iterator[None]:
    """Silences what torch warns about its own code while it compiles: nobody here can act on it."""
    with warnings.catch_warnings():
        for message in (
            r"`torch\.jit\.script",
            r"The \.grad attribute of a Tensor that is not a leaf",
            r"<class 'torch\.autograd\.function\.Function'> should not be instantiated",
            r"This instance was constructed with capturable=True",
        ):
            warnings.filterwarnings("ignore", message)
        yield


def compiled_graph_count() -> int:
    """Counts the graphs that dynamo has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
