"""What eager torch answers on a candidate's held-out set: computed once, and every file of an export is held to it.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fitserve_contract.axis_ranges import AxisRange
from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate, Tolerance
from fitserve_exporters.errors import ExportError
from fitserve_exporters.reference import TorchReference, reference_of
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.noise import Noise
from fitserve_exporters.verification.sampling import BATCHES_PER_SIZE, LARGEST_BATCH, batch_sizes, sampled_indices
from fitserve_exporters.verification.tolerance import Features, bounds_of, features_of, is_exact


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
        self._noises: dict[int, tuple[Arrays, ...]] = {}

    @property
    def fp64_gap(self) -> str:
        """Why there are no float64 answers, as far as any were asked for; empty where there are."""
        return self._reference.fp64_gap

    @cached_property
    def batches(self) -> tuple[TrueBatches, ...]:
        """A seeded sample at every batch size that is verified, ascending; the last is one batch of all of it.

        Raises:
            ExportError: the module's outputs are not what the candidate says, it answers at random, or NaN where
                `allow_nan` does not name the output.
        """
        indices = sampled_indices(self._candidate, LARGEST_BATCH)
        self._check_repeatable(self._candidate.held_out.rows(indices))
        found = tuple(self._of_size(indices, size) for size in batch_sizes(len(indices)))
        self._check_numbers(found)
        return found

    @cached_property
    def scores(self) -> Array:
        """The output of the task, as trained, on the full held-out set: (B, C)."""
        held_out, output = self._candidate.held_out, self._output
        starts = range(0, held_out.example_count, LARGEST_BATCH)
        chunks = (np.arange(start, min(start + LARGEST_BATCH, held_out.example_count)) for start in starts)
        return np.concatenate([self._reference.fp32(held_out.rows(chunk))[output] for chunk in chunks])

    @cached_property
    def features(self) -> dict[str, Features]:
        """Scale and rounding of every feature of the outputs that are real numbers, over all batches; by output."""
        first = self.batches[0].fp32[0]
        return {name: features_of(self._answers(name)) for name in first if not is_exact(first[name])}

    @cached_property
    def rounding(self) -> float:
        """How far a score of the task may be from float64 by torch's own rounding: the tolerance of an fp32 file."""
        output, bound = self._output, self._candidate.tolerance
        features = self.features.get(output)
        return max(
            float(bounds_of(eager, exact, bound, features).allowed.max()) for eager, exact in self._answers(output)
        )

    def noise(self, batches: TrueBatches) -> tuple[Arrays, ...]:
        """Computes the condition of every element of some batches, see `Noise`, and keeps it."""
        if id(batches) not in self._noises:
            self._noises[id(batches)] = tuple(
                self._noise.of(inputs, exact) for inputs, exact in zip(batches.inputs, batches.fp64, strict=True)
            )
        return self._noises[id(batches)]

    def noise_of(self, inputs: Arrays) -> Arrays:
        """Computes the condition of every element of the answers to one batch, see `Noise`."""
        return self._noise.of(inputs, self._reference.fp64(inputs))

    @property
    def first(self) -> Array:
        """The place of the first held-out example that is verified, (1,)."""
        return sampled_indices(self._candidate, LARGEST_BATCH)[:1]

    def answers(self, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Returns what the module answers to one batch: as trained, and in float64."""
        return self._reference.fp32(inputs), self._reference.fp64(inputs)

    def run(self, inputs: Arrays) -> Arrays | None:
        """Returns what the module answers to one batch, as trained; None where it refuses the values."""
        try:
            return self._reference.fp32(inputs)
        except ExportError:
            return None

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
        return reference_of(self._candidate)

    @cached_property
    def _noise(self) -> Noise:
        return Noise(self._candidate, runs_in_float64=not self.fp64_gap)

    def _answers(self, output: str) -> list[tuple[Array, Array]]:
        return [
            (fp32[output], fp64[output])
            for batch in self.batches
            for fp32, fp64 in zip(batch.fp32, batch.fp64, strict=True)
        ]

    @property
    def _output(self) -> str:
        assert self._candidate.task is not None
        return self._candidate.task.output

    def _check_repeatable(self, inputs: Arrays) -> None:
        """Refuses a module that draws numbers: its float64 answers are others, its noise would be the tolerance."""
        first, second = self._reference.fp32(inputs), self._reference.fp32(inputs)
        for name in self._candidate.output_names:
            bounds = bounds_of(first[name], first[name], Tolerance())
            apart = differences(second[name], first[name], first[name], bounds)
            if not apart.is_within:
                raise ExportError(
                    f"output '{name}': expected the same answer to the same inputs, got {apart.max_abs_diff:.3g} "
                    "apart: the module draws random numbers or keeps state"
                )

    def _check_numbers(self, batches: Sequence[TrueBatches]) -> None:
        """Refuses NaN in torch's answers: agreement with it proves nothing."""
        for name in self._candidate.output_names:
            answers = [fp32[name] for batch in batches for fp32 in batch.fp32]
            if name in self._candidate.allow_nan or answers[0].dtype.kind != "f":
                continue
            count = sum(int(np.isnan(answer).sum()) for answer in answers)
            if count:
                raise ExportError(
                    f"output '{name}': expected numbers, got NaN in {count} of {sum(a.size for a in answers)} elements "
                    "of torch's own answers to held-out examples; mend the weights or the examples, or accept it with "
                    f"allow_nan=['{name}']"
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
        lengths: dict[tuple[str, int], int] = {}
        for spec in self._candidate.inputs:
            ranges = {one.axis: one for one in spec.ranges}
            for axis, name in enumerate(spec.shape[1:], start=1):
                length = batch[spec.name].shape[axis]
                wanted = max(1, length - length * (place + 1) // BATCHES_PER_SIZE) if isinstance(name, str) else length
                lengths[spec.name, axis] = _fitting(wanted, length, ranges.get(axis), lengths)
        cut = {
            name: array[(slice(None), *(slice(0, lengths[name, axis]) for axis in range(1, array.ndim)))]
            for name, array in batch.items()
        }
        try:
            self._reference.fp32(cut)
        except Exception:  # a user's forward may raise anything
            return batch
        return cut


def _fitting(wanted: int, length: int, known: AxisRange | None, lengths: Mapping[tuple[str, int], int]) -> int:
    """Takes a size to the next smaller one of its range; that of an axis that follows another from there."""
    if known is None:
        return wanted
    if known.same_as is not None:
        return lengths[known.same_as] + known.offset
    steps = -(-(length - wanted) // known.multiple_of)
    return min(length, max(known.minimum, length - steps * known.multiple_of))
