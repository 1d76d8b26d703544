"""What eager torch answers on a candidate's held-out set: computed once, and every file of an export is held to it.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate, Tolerance
from fitserve_exporters.errors import ExportError
from fitserve_exporters.reference import TorchReference
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.sampling import BATCHES_PER_SIZE, LARGEST_BATCH, batch_sizes, sampled_indices


@dataclass(frozen=True, slots=True)
class TrueBatches:
    """Batches of one size with torch's answers.

    Args:
        batch_size: Examples in each.
        inputs: By batch; the first is whole, the free axes of the others are cut, each elsewhere.
        fp32: Answers as the module is trained, by batch.
        fp64: Answers in float64, by batch.
    """

    batch_size: int
    inputs: tuple[Arrays, ...]
    fp32: tuple[Arrays, ...]
    fp64: tuple[Arrays, ...]

    @property
    def example_count(self) -> int:
        """Examples in all batches."""
        return self.batch_size * len(self.inputs)


class Truth:
    """Answers of a candidate's module on its held-out set, each computed when it is first asked for and then kept.

    Not thread-safe. Owns a copy of the module in fp32 and one in float64.

    Args:
        candidate: Whose module answers; its tolerance bounds the module's own rounding.
    """

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._exact: dict[int, Array] = {}

    @property
    def fp64_gap(self) -> str:
        """Why there are no float64 answers, as far as any were asked for; empty where there are."""
        return self._reference.fp64_gap

    @cached_property
    def batches(self) -> tuple[TrueBatches, ...]:
        """A seeded sample at every batch size that is verified, ascending; the last is one batch of all of it.

        Raises:
            ExportError: the module's outputs are not what the candidate says, or it answers at random.
        """
        indices = sampled_indices(self._candidate, LARGEST_BATCH)
        self._check_repeatable(self._candidate.held_out.rows(indices))
        return tuple(self._of_size(indices, size) for size in batch_sizes(len(indices)))

    @cached_property
    def scores(self) -> Array:
        """The output of the task, as trained, on the full held-out set: (B, C)."""
        held_out, output = self._candidate.held_out, self._output
        starts = range(0, held_out.example_count, LARGEST_BATCH)
        chunks = (np.arange(start, min(start + LARGEST_BATCH, held_out.example_count)) for start in starts)
        return np.concatenate([self._reference.fp32(held_out.rows(chunk))[output] for chunk in chunks])

    @cached_property
    def rounding(self) -> float:
        """How far a score of the task may be from float64 by torch's own rounding: the tolerance of an fp32 file."""
        output, bound = self._output, self._candidate.tolerance
        figures = [
            differences(fp32[output], fp32[output], fp64[output], bound)
            for batch in self.batches
            for fp32, fp64 in zip(batch.fp32, batch.fp64, strict=True)
        ]
        return max(one.tolerance for one in figures)

    def exact_scores(self, indices: Array) -> Array:
        """Gives the output of the task in float64 on some examples of the held-out set, at least one: (B, C)."""
        unknown = np.array([index for index in indices.tolist() if index not in self._exact], dtype=np.int64)
        for start in range(0, len(unknown), LARGEST_BATCH):
            chunk = unknown[start : start + LARGEST_BATCH]
            exact = self._reference.fp64(self._candidate.held_out.rows(chunk))[self._output]
            self._exact |= dict(zip(chunk.tolist(), exact, strict=True))
        return np.stack([self._exact[index] for index in indices.tolist()])

    @cached_property
    def _reference(self) -> TorchReference:
        candidate = self._candidate
        names = tuple(spec.name for spec in candidate.inputs)
        return TorchReference(candidate.module, names, candidate.output_names)

    @property
    def _output(self) -> str:
        assert self._candidate.task is not None
        return self._candidate.task.output

    def _check_repeatable(self, inputs: Arrays) -> None:
        """Refuses a module that draws numbers: its float64 answers are others, its noise would be the tolerance."""
        first, second = self._reference.fp32(inputs), self._reference.fp32(inputs)
        for name in self._candidate.output_names:
            apart = differences(second[name], first[name], first[name].astype(np.float64), Tolerance())
            if not apart.is_within:
                raise ExportError(
                    f"output '{name}': expected the same answer to the same inputs, got {apart.max_abs_diff:.3g} "
                    "apart: the module draws random numbers or keeps state"
                )

    def _of_size(self, indices: Array, size: int) -> TrueBatches:
        count = min(len(indices) // size, BATCHES_PER_SIZE)
        whole = [self._candidate.held_out.rows(indices[start * size :][:size]) for start in range(count)]
        inputs = (whole[0], *(self._cut(batch, place) for place, batch in enumerate(whole[1:])))
        fp32 = tuple(self._reference.fp32(batch) for batch in inputs)
        return TrueBatches(size, inputs, fp32, tuple(self._reference.fp64(batch) for batch in inputs))

    def _cut(self, batch: Arrays, place: int) -> Arrays:
        """Cuts the free axes beside the batch, each batch elsewhere: a model that took their size for a constant shows.

        A size that the module itself does not take, as under a kernel of a convolution, proves nothing: it stays whole.
        """
        cut = {}
        for spec in self._candidate.inputs:
            array = batch[spec.name]
            for axis, name in enumerate(spec.shape[1:], start=1):
                if isinstance(name, str):
                    length = array.shape[axis]
                    array = np.take(array, np.arange(max(1, length - length * (place + 1) // BATCHES_PER_SIZE)), axis)
            cut[spec.name] = array
        try:
            self._reference.fp32(cut)
        except Exception:  # a user's forward may raise anything
            return batch
        return cut
