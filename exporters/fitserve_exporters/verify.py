"""Holds ONNX Runtime against eager torch in fp32 and float64 on held-out data. Figures only: `judge` decides.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from fitserve_contract.sums import Sums, score
from fitserve_contract.tasks import Task, TaskKind
from fitserve_exporters.answers import Agreement, is_different, margins, metrics_of
from fitserve_exporters.candidate import Array, Arrays, Candidate, Tolerance
from fitserve_exporters.differences import Differences, differences
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.reference import TorchReference
from fitserve_exporters.sessions import OrtSession

LARGEST_BATCH: Final = 256
_ODD_BATCH: Final = 7
_BATCHES_PER_SIZE: Final = 16
"""Small batches are repeated so often over other examples: one example alone would hardly be a sample."""


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
    """

    providers: tuple[ProviderFigures, ...]
    tolerances: Mapping[str, float]
    tolerance: Tolerance
    torch_metrics: Mapping[str, Any] | None
    data: Mapping[str, Any]
    fp64_gap: str
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        """Gives the record as the manifest writes it."""
        bound = self.tolerance
        return {
            "reference": "eager torch on the CPU, as trained and in float64",
            "float64_gap": self.fp64_gap or None,
            "tolerance": {
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


def verify(candidate: Candidate, sessions: list[OrtSession]) -> Verification:
    """Runs the batch sizes on a seeded sample and, where the task can be scored, the full held-out set.

    Args:
        candidate: Its module is the reference.
        sessions: The exported model on each execution provider.

    Raises:
        ExportError: the module's outputs or the labels are not what the candidate says, or it answers at random.
        NotVerifiedError: ONNX Runtime cannot run the model on this data, or answers with another shape.
    """
    started_s = time.monotonic()
    names = tuple(spec.name for spec in candidate.inputs)
    reference = TorchReference(candidate.module, names, candidate.output_names)
    _check_repeatable(candidate, reference)
    batches = _all_batches(candidate, reference, sessions)
    tolerances = {
        name: max(batch.outputs[name].tolerance for figures in batches for batch in figures)
        for name in candidate.output_names
    }
    decided = _decide(candidate, reference, sessions, tolerances)
    held_out = candidate.held_out
    return Verification(
        providers=tuple(
            ProviderFigures(session.provider, figures, tally.agreement(), tally.metrics())
            for session, figures, tally in zip(sessions, batches, decided.tallies, strict=True)
        ),
        tolerances=tolerances,
        tolerance=candidate.tolerance,
        torch_metrics=decided.torch.metrics(),
        data={"source": held_out.source, "sha256": held_out.sha256 or None, "example_count": held_out.example_count},
        fp64_gap=reference.fp64_gap,
        duration_s=time.monotonic() - started_s,
    )


def batch_sizes(example_count: int) -> list[int]:
    """Gives the batch sizes that are verified: 1, 2, an odd number and the largest, as far as there are examples."""
    odd = min(_ODD_BATCH, example_count - 1 + example_count % 2)
    return sorted({1, min(2, example_count), odd, min(LARGEST_BATCH, example_count)})


def sampled_indices(candidate: Candidate, count: int) -> Array:
    """Draws examples of the held-out set by the candidate's seed, without repetition, in ascending order; INT64."""
    total = candidate.held_out.example_count
    drawn = np.random.default_rng(candidate.seed).choice(total, min(count, total), replace=False)
    return np.sort(drawn)


def _check_repeatable(candidate: Candidate, reference: TorchReference) -> None:
    """Refuses a module that draws numbers: its float64 answers are others, so that its noise would be the tolerance."""
    inputs = candidate.held_out.rows(sampled_indices(candidate, LARGEST_BATCH))
    first, second = reference.fp32(inputs), reference.fp32(inputs)
    for name in candidate.output_names:
        apart = differences(second[name], first[name], first[name].astype(np.float64), Tolerance())
        if not apart.is_within:
            raise ExportError(
                f"output '{name}': expected the same answer to the same inputs, got {apart.max_abs_diff:.3g} apart: "
                "the module draws random numbers or keeps state"
            )


def _all_batches(
    candidate: Candidate, reference: TorchReference, sessions: list[OrtSession]
) -> list[tuple[BatchFigures, ...]]:
    """Gives for each session its figures at every batch size."""
    indices = sampled_indices(candidate, LARGEST_BATCH)
    per_size = [_one_size(candidate, reference, sessions, indices, size) for size in batch_sizes(len(indices))]
    return [tuple(figures) for figures in zip(*per_size, strict=True)]


def _one_size(
    candidate: Candidate, reference: TorchReference, sessions: list[OrtSession], indices: Array, size: int
) -> list[BatchFigures]:
    chunk_count = min(len(indices) // size, _BATCHES_PER_SIZE)
    chunks = [candidate.held_out.rows(indices[start * size :][:size]) for start in range(chunk_count)]
    chunks = [chunks[0], *(_cut(candidate, reference, chunk, place) for place, chunk in enumerate(chunks[1:]))]
    fp32 = [reference.fp32(chunk) for chunk in chunks]
    fp64 = [reference.fp64(chunk) for chunk in chunks]
    figures = []
    for session in sessions:
        ort = [_run(session, chunk, size, like) for chunk, like in zip(chunks, fp32, strict=True)]
        outputs = {
            name: differences(_joined(ort, name), _joined(fp32, name), _joined(fp64, name), candidate.tolerance)
            for name in candidate.output_names
        }
        figures.append(BatchFigures(size, size * chunk_count, outputs))
    return figures


def _cut(candidate: Candidate, reference: TorchReference, chunk: Arrays, place: int) -> Arrays:
    """Cuts the free axes beside the batch, each chunk elsewhere: a model that took their size for a constant shows.

    A size that the module itself does not take, as under a kernel of a convolution, proves nothing: it stays whole.
    """
    cut = {}
    for spec in candidate.inputs:
        array = chunk[spec.name]
        for axis, name in enumerate(spec.shape[1:], start=1):
            if isinstance(name, str):
                whole = array.shape[axis]
                array = np.take(array, np.arange(max(1, whole - whole * (place + 1) // _BATCHES_PER_SIZE)), axis)
        cut[spec.name] = array
    try:
        reference.fp32(cut)
    except Exception:  # a user's forward may raise anything
        return chunk
    return cut


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


def _joined(parts: list[Arrays], name: str) -> Array:
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
    candidate: Candidate, reference: TorchReference, sessions: list[OrtSession], tolerances: Mapping[str, float]
) -> _Decided:
    """Scores both sides on the full held-out set; nothing without a task."""
    task = candidate.task
    decided = _Decided(_Tally(task), [_Tally(task) for _ in sessions])
    if task is None:
        return decided
    tolerance, labels = tolerances[task.output], candidate.held_out.labels
    for indices in _chunks(candidate.held_out.example_count):
        inputs = candidate.held_out.rows(indices)
        eager = reference.fp32(inputs)
        truth = None if labels is None else labels[indices]
        decided.torch.add_scores(eager[task.output], truth)
        for session, tally in zip(sessions, decided.tallies, strict=True):
            served = _run(session, inputs, len(indices), eager)[task.output]
            tally.add_scores(served, truth)
            if task.kind is not TaskKind.REGRESSION:
                _compare(tally, task, (served, eager[task.output]), (reference, inputs, indices), tolerance)
    return decided


def _compare(
    tally: _Tally,
    task: Task,
    scores: tuple[Array, Array],
    origin: tuple[TorchReference, Arrays, Array],
    tolerance: float,
) -> None:
    """Sorts the examples of one batch into same, ties and differences.

    Only those whose fp32 margin is small, or that differ, are computed in float64: no score errs by more than the
    tolerance, so that the float64 margin of any other is larger than the tolerance.
    """
    served, eager = scores
    reference, inputs, indices = origin
    differs = is_different(task, served, eager)
    doubtful = np.flatnonzero(differs | (margins(task, eager) <= 3 * tolerance))
    if not len(doubtful):
        return
    exact = reference.fp64({name: array[doubtful] for name, array in inputs.items()})[task.output]
    is_tie = margins(task, exact) <= tolerance
    tally.ties += indices[doubtful[is_tie]].tolist()
    tally.tie_differences += indices[doubtful[is_tie & differs[doubtful]]].tolist()
    tally.differences += indices[doubtful[~is_tie & differs[doubtful]]].tolist()


def _chunks(example_count: int) -> Iterator[Array]:
    for start in range(0, example_count, LARGEST_BATCH):
        yield np.arange(start, min(start + LARGEST_BATCH, example_count))
