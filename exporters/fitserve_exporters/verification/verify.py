"""Holds ONNX Runtime against eager torch in fp32 and float64 on held-out data. Figures only: `judge` decides.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fitserve_contract.scoring import score
from fitserve_contract.sums import Sums
from fitserve_contract.tasks import IGNORED_LABEL, Task, TaskKind
from fitserve_exporters.candidate.candidate import EAGER_TORCH, Array, Arrays, Candidate, Tolerance
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.answers import Agreement, is_different, margins, metrics_of
from fitserve_exporters.verification.differences import Differences, differences
from fitserve_exporters.verification.sampling import LARGEST_BATCH
from fitserve_exporters.verification.tolerance import FORMULA, bounds_of, joined_bounds
from fitserve_exporters.verification.truth import TrueBatches, Truth


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """Figures of every output at one batch size."""

    batch_size: int
    example_count: int
    outputs: Mapping[str, Differences]

    def to_json(self) -> dict[str, Any]:
        """Gives the figures as the manifest writes them."""
        outputs = {name: figures.to_json() for name, figures in self.outputs.items()}
        return {"batch_size": self.batch_size, "example_count": self.example_count, "outputs": outputs}


@dataclass(frozen=True, slots=True)
class ProviderFigures:
    """What one execution provider answered.

    Args:
        provider: ONNX Runtime's name of it.
        batches: By ascending batch size.
        agreement: Decisions against torch's over the full held-out set; None where the task decides nothing.
        metrics: Accuracy or its like over the full held-out set; None without labels.
    """

    provider: str
    batches: tuple[BatchFigures, ...]
    agreement: Agreement | None
    metrics: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Gives the figures as the manifest writes them."""
        return {
            "batches": [batch.to_json() for batch in self.batches],
            "agreement": self.agreement.to_json() if self.agreement else None,
            "metrics": dict(self.metrics) if self.metrics else None,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """The whole record of one verification.

    Args:
        providers: Every execution provider that works here.
        tolerances: Largest tolerance of each output over the batch sizes.
        tolerance: How they were computed.
        torch_metrics: Eager torch's accuracy or its like over the full held-out set; None without labels.
        data: Source, hash and size of the held-out set.
        fp64_gap: Why there is no float64 reference; empty where there is.
        duration_s: Time that it took.
        reference: What ONNX Runtime was held against.
    """

    providers: tuple[ProviderFigures, ...]
    tolerances: Mapping[str, float]
    tolerance: Tolerance
    torch_metrics: Mapping[str, Any] | None
    data: Mapping[str, Any]
    fp64_gap: str
    duration_s: float
    reference: str = EAGER_TORCH

    def to_json(self) -> dict[str, Any]:
        """Gives the record as the manifest writes it."""
        bound = self.tolerance
        return {
            "reference": self.reference,
            "float64_gap": self.fp64_gap or None,
            "tolerance": {
                "formula": FORMULA,
                "factor": bound.factor,
                "atol": bound.atol,
                "rtol": bound.rtol,
                "reason": bound.reason,
                "per_output": dict(self.tolerances),
            },
            "data": dict(self.data),
            "torch": {"metrics": dict(self.torch_metrics) if self.torch_metrics else None},
            "providers": {figures.provider: figures.to_json() for figures in self.providers},
            "duration_s": round(self.duration_s, 3),
        }


def verify(candidate: Candidate, sessions: list[OrtSession], truth: Truth | None = None) -> Verification:
    """Runs the batch sizes on a seeded sample and, where the task can be scored, the full held-out set.

    Args:
        candidate: Its module is the reference.
        sessions: The exported model on each execution provider.
        truth: What the module answers, where several files are held against it; made here where it is None.

    Raises:
        ExportError: the module's outputs or the labels are not what the candidate says, or it answers at random.
        NotVerifiedError: ONNX Runtime cannot run the model on this data, or answers with another shape.
    """
    started_s = time.monotonic()
    truth = truth or Truth(candidate)
    batches = [[_one_size(candidate, truth, batch, session) for batch in truth.batches] for session in sessions]
    tolerances = {
        name: max(batch.outputs[name].tolerance for figures in batches for batch in figures)
        for name in candidate.output_names
    }
    decided = _decide(candidate, truth, sessions, tolerances)
    held_out = candidate.held_out
    return Verification(
        providers=tuple(
            ProviderFigures(session.provider, tuple(figures), tally.agreement(), tally.metrics())
            for session, figures, tally in zip(sessions, batches, decided.tallies, strict=True)
        ),
        tolerances=tolerances,
        tolerance=candidate.tolerance,
        torch_metrics=decided.torch.metrics(),
        data={"source": held_out.source, "sha256": held_out.sha256 or None, "example_count": held_out.example_count},
        fp64_gap=truth.fp64_gap,
        duration_s=time.monotonic() - started_s,
        reference=candidate.reference,
    )


def _one_size(candidate: Candidate, truth: Truth, true: TrueBatches, session: OrtSession) -> BatchFigures:
    served = [_run(session, batch, true.batch_size, like) for batch, like in zip(true.inputs, true.fp32, strict=True)]
    outputs = {name: _figures(name, candidate.tolerance, (truth, true), served) for name in candidate.output_names}
    return BatchFigures(true.batch_size, true.example_count, outputs)


def _figures(
    name: str, tolerance: Tolerance, origin: tuple[Truth, TrueBatches], served: Sequence[Arrays]
) -> Differences:
    """Computes the figures of one output; where elements are beyond, their bounds get their condition first."""
    truth, true = origin
    features = truth.features.get(name)
    bounds = joined_bounds(
        bounds_of(eager[name], exact[name], tolerance, features)
        for eager, exact in zip(true.fp32, true.fp64, strict=True)
    )
    answers = _joined(served, name), _joined(true.fp32, name), _joined(true.fp64, name)
    found = differences(*answers, bounds)
    if not found.beyond_count or features is None:
        return found
    return differences(*answers, bounds.widened(_joined(truth.noise(true), name), 2 * tolerance.factor))


def _run(session: OrtSession, inputs: Arrays, size: int, like: Arrays) -> Arrays:
    try:
        answers = session.run(inputs)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        raise NotVerifiedError(f"{session.provider} fails at batch size {size}: {str(error)[:400]}") from error
    for name, expected in like.items():
        if answers[name].shape != expected.shape:
            raise NotVerifiedError(
                f"output '{name}' at batch size {size}: expected shape {expected.shape}, got {answers[name].shape}"
            )
    return answers


def _joined(parts: Sequence[Arrays], name: str) -> Array:
    return np.concatenate([part[name].reshape(-1) for part in parts])


@dataclass(slots=True)
class _Tally:
    """Sums and disagreements of one side, gathered batch by batch."""

    task: Task | None = None
    sums: Sums | None = None
    example_count: int = 0
    ties: list[int] = field(default_factory=list)
    tie_differences: list[int] = field(default_factory=list)
    differences: list[int] = field(default_factory=list)

    def add_scores(self, scores: Array, labels: Array | None) -> None:
        self.example_count += len(scores)
        if labels is None or self.task is None:
            return
        try:
            part = score(self.task, scores, labels)
        except ValueError as error:
            raise ExportError(f"held-out set: {error}") from error
        self.sums = part if self.sums is None else self.sums + part  # type: ignore[operator]

    def agreement(self) -> Agreement | None:
        if self.task is None or self.task.kind is TaskKind.REGRESSION:
            return None
        same_count = self.example_count - len(self.tie_differences) - len(self.differences)
        parts = (tuple(part) for part in (self.ties, self.tie_differences, self.differences))
        return Agreement(self.example_count, same_count, *parts)

    def metrics(self) -> dict[str, Any] | None:
        return None if self.sums is None else metrics_of(self.sums)


@dataclass(slots=True)
class _Decided:
    torch: _Tally
    tallies: list[_Tally]


def _decide(
    candidate: Candidate, truth: Truth, sessions: list[OrtSession], tolerances: Mapping[str, float]
) -> _Decided:
    """Scores both sides on the full held-out set; nothing without a task."""
    task = candidate.task
    decided = _Decided(_Tally(task), [_Tally(task) for _ in sessions])
    if task is None:
        return decided
    tolerance, labels = tolerances[task.output], candidate.held_out.labels
    for start in range(0, candidate.held_out.example_count, LARGEST_BATCH):
        eager = truth.scores[start : start + LARGEST_BATCH]
        indices = np.arange(start, start + len(eager))
        inputs = candidate.held_out.rows(indices)
        true_labels = None if labels is None else labels[indices]
        decided.torch.add_scores(eager, true_labels)
        for session, tally in zip(sessions, decided.tallies, strict=True):
            served = _run(session, inputs, len(indices), {task.output: eager})[task.output]
            tally.add_scores(served, true_labels)
            if task.kind is not TaskKind.REGRESSION:
                _compare(tally, task, (served, eager), (truth, indices), tolerance, _counted(task, eager, true_labels))
    return decided


def _compare(
    tally: _Tally,
    task: Task,
    scores: tuple[Array, Array],
    origin: tuple[Truth, Array],
    tolerance: float,
    is_counted: Array,
) -> None:
    """Sorts the examples of one batch into same, ties and differences.

    Only those that differ, or whose margin is so near the tolerance that torch's own rounding might decide, are
    computed in float64: a margin is off by at most the errors of two scores.
    """
    served, eager = scores
    truth, indices = origin
    differs, margin = is_different(task, served, eager) & is_counted, margins(task, eager)
    is_tie = margin <= tolerance
    is_doubtful = (differs | (np.abs(margin - tolerance) <= 2 * truth.rounding)) & is_counted
    if len(doubtful := np.flatnonzero(_any(is_doubtful))):
        is_tie[doubtful] = margins(task, truth.exact_scores(indices[doubtful])) <= tolerance
    is_difference, is_tie_difference = _any(differs & ~is_tie), _any(differs & is_tie)
    tally.ties += indices[_any(is_tie & is_counted)].tolist()
    tally.tie_differences += indices[is_tie_difference & ~is_difference].tolist()
    tally.differences += indices[is_difference].tolist()


def _counted(task: Task, scores: Array, labels: Array | None) -> Array:
    """Tells which examples are compared, or which positions of each: all but those whose label says that it is not."""
    if task.kind is not TaskKind.TOKEN_CLASSIFICATION or labels is None:
        return np.ones(scores.shape[:-1] if task.kind is TaskKind.TOKEN_CLASSIFICATION else len(scores), bool)
    return np.asarray(labels != IGNORED_LABEL)


def _any(values: Array) -> Array:
    """Tells for each example whether anything in its row holds, (B, ...) to (B)."""
    return np.asarray(values.any(axis=tuple(range(1, values.ndim))))
