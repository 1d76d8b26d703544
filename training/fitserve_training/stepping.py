"""One training step, the same code for eager, compiled module and compiled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fitserve_training.compiling import (
    CompileRecord,
    Gradient,
    compile_forward,
    compile_step,
    compiled_graph_count,
    quiet_compilation,
)
from fitserve_training.data.dataset import Batch
from fitserve_training.device import now
from fitserve_training.objectives import Objective
from fitserve_training.parallel import Workers


@dataclass(frozen=True)
class StepPlan:
    """How a step deals with its batch and its gradients.

    Args:
        micro_batch_size: Examples that go through the model at once; 0 means all of the batch.
        clip_norm: Largest L2 norm of all gradients together; 0 means no bound.
        workers: Those who share each batch.
    """

    micro_batch_size: int = 0
    clip_norm: float = 0.0
    workers: Workers = field(default_factory=Workers)

    @property
    def is_whole(self) -> bool:
        """Whether a batch goes through the model at once, here, and so can be compiled with its update."""
        return self.micro_batch_size == 0 and self.workers.count == 1


def make_gradient(forward: Callable[..., Tensor], objective: Objective, autocast: torch.autocast) -> Gradient:
    """Makes the function that adds a batch's gradients and sums: forward, loss, backward; nothing is read back."""

    def gradient(batch: Batch, sums: Tensor, share: float) -> Tensor:
        with autocast:
            outputs = forward(*batch.inputs)
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        loss = objective.loss(outputs, batch.targets)
        (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
        sums.add_(objective.sums(outputs.detach(), batch.targets, loss.detach()))
        return loss.detach()

    return gradient


class Stepper:
    """Takes steps: full batches through the compiled path, a ragged last one eagerly, so nothing is compiled twice.

    Owns the compile record and keeps it up to date; `full_size` is the size of a full (micro-)batch once the first was
    seen. Not thread-safe.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        record: CompileRecord,
        autocast: torch.autocast,
        say: Callable[[str], None],
        plan: StepPlan | None = None,
    ) -> None:
        self.record = record
        self.plan = plan or StepPlan()
        self.optimizer = optimizer
        self._model, self._objective, self._autocast, self._say = model, objective, autocast, say
        self._eager = make_gradient(model, objective, autocast)
        self._full = self._eager
        self._is_search = isinstance(optimizer, torch.optim.LBFGS)
        self.full_size = 0
        if record.used == "step" and (not self.plan.is_whole or self._is_search):
            record.used, record.reason = "module", "a step of several parts is not compiled as a whole"

    def __call__(self, batch: Batch, sums: Tensor, share: float = 1.0) -> None:
        """Trains on one batch.

        Args:
            batch: This worker's part of the batch; it may be empty where others' are not.
            sums: Takes the batch's sums.
            share: The part's share of the batch, 0..1.
        """
        if self._is_search:
            self._search(batch, sums)
            return
        for piece in self._pieces(batch):
            weight = 1.0 if self._objective.is_summed else share * len(piece.targets) / len(batch.targets)
            self._add_gradient(piece, sums, weight)
        if self._is_update_apart(batch):
            self._update()

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        count, size = len(batch.targets), self.plan.micro_batch_size or len(batch.targets)
        if size >= count > 0:
            yield batch
            return
        for start in range(0, count, size or 1):
            yield Batch(tuple(x[start : start + size] for x in batch.inputs), batch.targets[start : start + size])

    def _add_gradient(self, batch: Batch, sums: Tensor, share: float) -> None:
        if self.full_size == 0:
            self._first(batch, sums, share)
        elif len(batch.targets) == self.full_size:
            self._full(batch, sums, share)
        else:
            self._eager(batch, sums, share)

    def _is_update_apart(self, batch: Batch) -> bool:
        return self.record.used != "step" or len(batch.targets) != self.full_size

    def _update(self) -> None:
        parameters = list(self._model.parameters())
        self.plan.workers.add_up_gradients(parameters)
        if self.plan.clip_norm:
            nn.utils.clip_grad_norm_(parameters, self.plan.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _search(self, batch: Batch, sums: Tensor) -> None:
        """LBFGS asks for the loss several times a step; the first answer is the step's."""
        is_first = True

        def closure() -> Tensor:
            nonlocal is_first
            self.optimizer.zero_grad(set_to_none=True)
            addends = torch.zeros_like(sums)
            loss = self._eager(batch, addends, 1.0)
            if is_first:
                sums.add_(addends)
            is_first = False
            return loss

        self.optimizer.step(closure)  # type: ignore[arg-type]

    def _make_full(self) -> Gradient:
        forward = compile_forward(self._model, self.record)
        gradient = make_gradient(forward, self._objective, self._autocast)
        if self.record.used != "step":
            return gradient

        def step(batch: Batch, sums: Tensor, share: float) -> Tensor:
            loss = gradient(batch, sums, share)
            self._update()
            return loss

        return compile_step(step)

    def _first(self, batch: Batch, sums: Tensor, share: float) -> None:
        self.full_size = len(batch.targets)
        started, sums_before = now(sums.device), sums.clone()
        if self.record.used == "off":
            self._eager(batch, sums, share)
            return
        try:
            with quiet_compilation():
                self._full = self._make_full()
                self._full(batch, sums, share)
        except Exception as error:
            self._go_on_eagerly(error)
            sums.copy_(sums_before)
            self._eager(batch, sums, share)
        self.record.first_step_s = now(sums.device) - started
        self.record.graph_count_after_first_step = compiled_graph_count()

    def _go_on_eagerly(self, error: Exception) -> None:
        # A failure to compile comes before anything was updated, but gradients may already have been left behind.
        self.optimizer.zero_grad(set_to_none=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self.record.reason = f"{type(error).__name__}: {' '.join(lines[:2])}"[:200]
        self.record.used = "off"
        self._full = self._eager
        self._say(f"cannot compile here, going on eagerly: {self.record.reason}")
