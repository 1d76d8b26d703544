"""One training step, the same code for eager, compiled module and compiled step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fitserve_training.compiling import (
    CompileRecord,
    Step,
    compile_forward,
    compile_step,
    compiled_graph_count,
    quiet_compilation,
)
from fitserve_training.data.dataset import Batch
from fitserve_training.device import now
from fitserve_training.objectives import Objective


def make_step(
    forward: Callable[..., Tensor],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    autocast: torch.autocast,
) -> Step:
    """Makes the function that trains on one batch: forward, loss, backward, update, sums; nothing is read back."""

    is_searching = isinstance(optimizer, torch.optim.LBFGS)

    def again(batch: Batch) -> Callable[[], float]:
        """Gives what LBFGS evaluates along its search: loss and fresh gradients at the parameters of the moment."""

        def closure() -> float:
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad(), autocast:
                outputs = forward(*batch.inputs)
            loss = objective.loss(outputs.float() if outputs.dtype == torch.bfloat16 else outputs, batch.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

        return closure

    def step(batch: Batch, sums: Tensor) -> None:
        with autocast:
            outputs = forward(*batch.inputs)
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        loss = objective.loss(outputs, batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(again(batch) if is_searching else None)
        optimizer.zero_grad(set_to_none=True)
        sums.add_(objective.sums(outputs.detach(), batch.targets, loss.detach()))

    return step


class Stepper:
    """Takes steps: full batches through the compiled path, a ragged last batch eagerly, so nothing is compiled twice.

    Owns the compile record and keeps it up to date; `full_size` is the size of a full batch once the first was seen.
    Not thread-safe.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        record: CompileRecord,
        autocast: torch.autocast,
        say: Callable[[str], None],
    ) -> None:
        self.record = record
        self._optimizer = optimizer
        self._say = say
        self._eager = make_step(model, objective, optimizer, autocast)
        self._full = self._eager
        self._make_full: Callable[[], Step] = lambda: compile_step(
            make_step(compile_forward(model, record), objective, optimizer, autocast), record
        )
        self.full_size = 0

    def __call__(self, batch: Batch, sums: Tensor) -> None:
        """Trains on one batch; the first batch's size is the full one."""
        if self.full_size == 0:
            self._first(batch, sums)
        elif len(batch.targets) == self.full_size:
            self._full(batch, sums)
        else:
            self._eager(batch, sums)

    def _first(self, batch: Batch, sums: Tensor) -> None:
        self.full_size = len(batch.targets)
        started = now(sums.device)
        if self.record.used == "off":
            self._eager(batch, sums)
            return
        try:
            with quiet_compilation():
                self._full = self._make_full()
                self._full(batch, sums)
        except Exception as error:
            self._go_on_eagerly(error)
            self._eager(batch, sums)
        self.record.first_step_s = now(sums.device) - started
        self.record.graph_count_after_first_step = compiled_graph_count()

    def _go_on_eagerly(self, error: Exception) -> None:
        # A failure to compile comes before anything was updated, but gradients may already have been left behind.
        self._optimizer.zero_grad(set_to_none=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self.record.reason = f"{type(error).__name__}: {' '.join(lines[:2])}"[:200]
        self.record.used = "off"
        self._full = self._eager
        self._say(f"cannot compile here, going on eagerly: {self.record.reason}")
