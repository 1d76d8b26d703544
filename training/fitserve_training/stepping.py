"""One training step, the same code for eager, compiled module, compiled step and a step captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fitserve_training.capturing import Capture, IndexStep, side_stream
from fitserve_training.compiling import CompileRecord, Gradient, compile_forward, compile_step, quiet_compilation
from fitserve_training.data.dataset import Batch, Split
from fitserve_training.derived import derived_gradient, plain_descent
from fitserve_training.device import now
from fitserve_training.objectives import Objective
from fitserve_training.parallel import Workers

_WARM_UP_STEPS = {"off": 0, "module": 1, "step": 3}
"""Full steps before the steady ones. The first update of a step makes the optimizer's state, so the second is compiled
again; only the third is like all that follow."""


@dataclass(frozen=True)
class StepPlan:
    """How a step deals with its batch and its gradients.

    Args:
        micro_batch_size: Examples that go through the model at once; 0 means all of the batch.
        clip_norm: Largest L2 norm of all gradients together; 0 means no bound.
        workers: Those who share each batch.
        capture: How a compiled step is captured; None where it is not.
    """

    micro_batch_size: int = 0
    clip_norm: float = 0.0
    workers: Workers = field(default_factory=Workers)
    capture: Capture | None = None

    @property
    def is_whole(self) -> bool:
        """Whether a batch goes through the model at once, here, and so can be compiled with its update."""
        return self.micro_batch_size == 0 and self.workers.count == 1


def make_gradient(forward: Callable[..., Tensor], objective: Objective, autocast: torch.autocast) -> Gradient:
    """Makes the function that adds a batch's gradients and sums: forward, loss, backward; nothing is read back."""

    def gradient(batch: Batch, sums: Tensor, share: float | Tensor) -> Tensor:
        with autocast:
            outputs = forward(*batch.inputs)
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        loss = objective.loss(outputs, batch.targets)
        (loss if isinstance(share, float) and share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
        sums.add_(objective.sums(outputs.detach(), batch.targets, loss.detach()))
        return loss.detach()

    return gradient


class Stepper:
    """Takes steps: full batches through the compiled path, a ragged last one eagerly, so nothing is compiled twice.

    Owns the compile record and keeps it up to date, and `sums`, which the batches of `train_on` add to; `full_size` is
    the size of a full (micro-)batch once the first was seen, `warm_up_examples` how many the warm-up took. Not
    thread-safe.
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
        device = next(model.parameters()).device
        self.sums = torch.zeros(objective.sum_count, dtype=torch.float64, device=device)
        self._parameters = list(model.parameters())
        self._model, self._objective, self._autocast, self._say = model, objective, autocast, say
        self._eager = derived_gradient(model, objective, autocast) or make_gradient(model, objective, autocast)
        self._full = self._eager
        self._is_search = isinstance(optimizer, torch.optim.LBFGS)
        self._descend = plain_descent(optimizer) if record.used == "off" else None
        self._captured: tuple[Split, IndexStep] | None = None
        self.full_size, self.warm_up_examples = 0, 0
        if record.used != "off" and self._is_search:
            record.used, record.reason = "off", "optimizer lbfgs asks for the loss several times a step"
        if record.used == "step" and not self.plan.is_whole:
            record.used, record.reason = "module", "a step of several parts is not compiled as a whole"
        self._warm_up_left = _WARM_UP_STEPS[record.used]
        self._capture = self.plan.capture if record.used == "step" else None

    def train_on(self, split: Split, indices: Tensor | None, gathered: Batch | None = None) -> None:
        """Trains on examples of `split`.

        Args:
            split: On this stepper's device, or with inputs that are gathered from elsewhere.
            indices: Which, int64 (B,) on its device; None stands for all of them.
            gathered: This worker's part of them, where it was gathered ahead of time.
        """
        if gathered is None and indices is not None and len(indices) == self.full_size and self._warm_up_left == 0:
            if self._capture:
                self._capture_step(self._capture, split, indices)
            if self._captured and self._captured[0] is split:
                self._captured[1](indices)
                return
        batch, share = self._own_part(split, indices, gathered)
        self(batch, self.sums, share)

    def _own_part(self, split: Split, indices: Tensor | None, gathered: Batch | None) -> tuple[Batch, float | Tensor]:
        if self.plan.workers.count == 1:
            return (split.whole() if indices is None else split.take(indices)) if gathered is None else gathered, 1.0
        if indices is None:
            indices = torch.arange(len(split), device=split.targets.device)
        own = self.plan.workers.part(indices)
        share = self._share(split.targets[own], split.targets[indices])
        return split.take(own) if gathered is None else gathered, share

    def _share(self, part: Tensor, whole: Tensor) -> float | Tensor:
        """Returns the share of some targets in the mean over all of them."""
        if len(part) == len(whole):
            return 1.0
        return self._objective.weight(part) / self._objective.weight(whole)

    def __call__(self, batch: Batch, sums: Tensor, share: float | Tensor = 1.0) -> None:
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
            weight = 1.0 if self._objective.is_summed else share * self._share(piece.targets, batch.targets)
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

    def _add_gradient(self, batch: Batch, sums: Tensor, share: float | Tensor) -> None:
        self.full_size = self.full_size or len(batch.targets)
        if len(batch.targets) != self.full_size:
            self._eager(batch, sums, share)
        elif self._warm_up_left:
            self._warm_up(batch, sums, share)
        else:
            self._full(batch, sums, share)

    def _is_update_apart(self, batch: Batch) -> bool:
        return self.record.used != "step" or len(batch.targets) != self.full_size

    def _update(self) -> None:
        self.plan.workers.add_up_gradients(self._parameters)
        if self.plan.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters, self.plan.clip_norm)
        (self._descend or self.optimizer.step)()
        for parameter in self._parameters:
            parameter.grad = None

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

        def step(batch: Batch, sums: Tensor, share: float | Tensor) -> Tensor:
            loss = gradient(batch, sums, share)
            self._update()
            return loss

        return compile_step(step)

    def _warm_up(self, batch: Batch, sums: Tensor, share: float | Tensor) -> None:
        started, sums_before = now(sums.device), sums.clone()
        try:
            with quiet_compilation(), side_stream(sums.device):
                self._full = self._make_full() if self._full is self._eager else self._full
                self._full(batch, sums, share)
            self._warm_up_left -= 1
        except Exception as error:
            self._go_on_eagerly(error)
            sums.copy_(sums_before)
            self._eager(batch, sums, share)
        self._add_warm_up(now(sums.device) - started, len(batch.targets))

    def _add_warm_up(self, elapsed_s: float, example_count: int) -> None:
        self.warm_up_examples += example_count
        self.record.first_step_s = self.record.first_step_s or elapsed_s
        self.record.warm_up_s += elapsed_s
        self.record.count_graphs(is_warm_up=True)

    def _go_on_eagerly(self, error: Exception) -> None:
        # A failure to compile comes before anything was updated, but gradients may already have been left behind.
        self.optimizer.zero_grad(set_to_none=True)
        self.record.reason = _first_lines(error)
        self.record.used = "off"
        self._full, self._warm_up_left, self._capture = self._eager, 0, None
        self._say(f"cannot compile here, going on eagerly: {self.record.reason}")

    def _capture_step(self, capture: Capture, split: Split, indices: Tensor) -> None:
        started = now(self.sums.device)
        try:
            self._captured = split, capture(lambda held: self(split.take(held), self.sums), indices)
        except Exception as error:
            # Nothing was carried out, but the gradients of the attempt lie in its memory.
            self.optimizer.zero_grad(set_to_none=True)
            self.record.reason = f"not captured: {_first_lines(error)}"
            self._say(f"cannot capture the step, going on without: {self.record.reason}")
        self._capture = None
        self.record.is_captured = self._captured is not None
        self.record.capture_s = now(self.sums.device) - started
        self._add_warm_up(self.record.capture_s, 0)


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:200]
