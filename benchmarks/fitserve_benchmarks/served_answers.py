"""Holds what a server answers against torch's own answers on the same examples.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fitserve_benchmarks.programs import StepFailedError
from fitserve_benchmarks.subject import Array
from fitserve_client import Client, Evaluation
from fitserve_contract.sums import ClassificationSums

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZE: Final = 256


@dataclass(frozen=True, slots=True)
class Tie:
    """An example that torch and the server class differently, because its two best classes are level.

    Args:
        index: Number of the example.
        classes: Torch's class and the server's.
        gap: How far apart torch's scores of the two are.
    """

    index: int
    classes: tuple[int, int]
    gap: float


@dataclass(frozen=True, slots=True)
class ServedAnswers:
    """The server and torch on one labelled data set.

    Args:
        example_count: N.
        served_correct_count: Right answers by Evaluate over gRPC.
        torch_correct_count: Right answers of the eager module.
        served_loss: Mean cross-entropy by Evaluate, nats.
        interval: 95 % interval of the served accuracy (Wilson).
        max_abs_diff: Largest difference between a score by Predict and by torch.
        tolerance: Two scores closer than this are level.
        ties: Examples that are classed differently, each within the tolerance.
    """

    example_count: int
    served_correct_count: int
    torch_correct_count: int
    served_loss: float
    interval: tuple[float, float]
    max_abs_diff: float
    tolerance: float
    ties: tuple[Tie, ...]

    @property
    def accuracy(self) -> float:
        """Served accuracy, 0..1."""
        return self.served_correct_count / self.example_count


def compare_answers(
    client: Client, model: str, version: int, module: nn.Module, inputs: Mapping[str, Array], labels: Array
) -> ServedAnswers:
    """Calls Predict and Evaluate on a whole data set and holds both against torch.

    Args:
        client: Connected to the server.
        model: Model name, of a classifier with one output.
        version: Version that was exported from the module.
        module: Eager module, in eval mode.
        inputs: (N, …) by name, in the module's order.
        labels: (N) classes.

    Raises:
        StepFailedError: a class differs by more than a tie, or Evaluate counts otherwise than Predict's answers do.
        FitserveError: a call failed.
    """
    own = _torch_scores(module, inputs)
    served = _served_scores(client, model, version, inputs)
    tolerance = 1e-5 * max(1.0, float(np.abs(own).max()))
    ties = find_ties(own, served, tolerance)
    evaluation = client.evaluate(model, inputs, labels, version=version, batch_size=BATCH_SIZE)
    sums, figures = _classifier_sums(evaluation), evaluation.figures
    if sums.correct_count != (predicted_count := _correct_count(served, labels)):
        raise StepFailedError(
            f"Evaluate: expected {predicted_count} right as Predict answers, got {sums.correct_count}"
        )
    return ServedAnswers(
        example_count=sums.example_count,
        served_correct_count=sums.correct_count,
        torch_correct_count=_correct_count(own, labels),
        served_loss=sums.mean_loss,
        interval=(figures["accuracy_low"], figures["accuracy_high"]),
        max_abs_diff=float(np.abs(own - served).max()),
        tolerance=tolerance,
        ties=ties,
    )


def find_ties(own: Array, served: Array, tolerance: float) -> tuple[Tie, ...]:
    """Lists the examples that are classed differently.

    Args:
        own: (N, C) scores of torch.
        served: (N, C) scores of the server.
        tolerance: Largest gap of two scores that are level.

    Raises:
        StepFailedError: the gap of an example's two classes is larger: the answers differ.
    """
    own_classes, served_classes = own.argmax(axis=1), served.argmax(axis=1)
    ties = []
    for index in np.flatnonzero(own_classes != served_classes).tolist():
        first, second = int(own_classes[index]), int(served_classes[index])
        gap = float(own[index, first] - own[index, second])
        if not gap <= tolerance:
            raise StepFailedError(
                f"example {index}: expected class {first} as torch has it, the server answered {second}; "
                f"the scores are {gap:.2e} apart, more than a tie ({tolerance:.2e})"
            )
        ties.append(Tie(index, (first, second), gap))
    return tuple(ties)


def _classifier_sums(evaluation: Evaluation) -> ClassificationSums:
    if not isinstance(evaluation.sums, ClassificationSums):
        raise StepFailedError(f"Evaluate: expected the sums of a classifier, got {type(evaluation.sums).__name__}")
    return evaluation.sums


def _correct_count(scores: Array, labels: Array) -> int:
    return int((scores.argmax(axis=1) == labels).sum())


def _torch_scores(module: nn.Module, inputs: Mapping[str, Array]) -> Array:
    import torch

    with torch.inference_mode():
        parts = [module(*map(torch.from_numpy, part.values())).numpy() for part in _parts(inputs)]
    return np.concatenate(parts).astype(np.float64)


def _served_scores(client: Client, model: str, version: int, inputs: Mapping[str, Array]) -> Array:
    parts = [client.predict(model, part, version=version).array for part in _parts(inputs)]
    return np.concatenate(parts).astype(np.float64)


def _parts(inputs: Mapping[str, Array]) -> list[dict[str, np.ndarray[Any, Any]]]:
    count = len(next(iter(inputs.values())))
    return [
        {name: array[start : start + BATCH_SIZE] for name, array in inputs.items()}
        for start in range(0, count, BATCH_SIZE)
    ]
