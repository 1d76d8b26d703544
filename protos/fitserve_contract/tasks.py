"""What a model's output means, so that it can be scored against labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class TaskKind(StrEnum):
    """The kinds of task that Evaluate can score."""

    CLASSIFICATION = "classification"
    """One of n classes; labels INT64 (B)."""
    MULTI_LABEL = "multi_label"
    """Any of n classes; labels BOOL or UINT8 (B, n)."""
    TOKEN_CLASSIFICATION = "token_classification"
    """One of n classes per position, scores (B, S, n); labels INT64 (B, S), IGNORED_LABEL where one does not count."""
    REGRESSION = "regression"
    """Real values; labels of the output's datatype and shape."""


IGNORED_LABEL: Final = -100
"""Label of a position that does not count: padding, marks, pieces of a word. Source: `ignore_index` of
torch.nn.CrossEntropyLoss."""


class Scores(StrEnum):
    """What the numbers of the task's output are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Task:
    """A model's task.

    Args:
        kind: What is scored.
        output: Name of the output that is scored.
        scores: What that output's numbers are; VALUES for regression alone.
        class_names: Class names in class order, one per class; empty for regression.

    Raises:
        ValueError: the parts do not fit each other.
    """

    kind: TaskKind
    output: str
    scores: Scores
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind is TaskKind.REGRESSION) != (self.scores is Scores.VALUES):
            raise ValueError(
                f"task: expected scores to be values for regression alone, got {self.scores} for {self.kind}"
            )
        if self.kind is TaskKind.MULTI_LABEL and self.scores is not Scores.PROBABILITIES:
            raise ValueError(f"task: expected probabilities for multi_label, got {self.scores}")
        if (self.kind is TaskKind.REGRESSION) == bool(self.class_names):
            raise ValueError(
                f"task: expected class names for every kind but regression, got {len(self.class_names)} for {self.kind}"
            )

    def to_json(self) -> dict[str, Any]:
        """Gives the task as the manifest writes it."""
        return {
            "kind": self.kind.value,
            "output": self.output,
            "scores": self.scores.value,
            "class_names": list(self.class_names),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Task:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a key is missing or its value is not of the kind expected; the message names it.
        """
        try:
            names = value.get("class_names", [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"task.class_names: expected a list of strings, got {str(names)[:80]}")
            output = value["output"]
            if not isinstance(output, str):
                raise ValueError(f"task.output: expected a string, got {str(output)[:80]}")
            return Task(_kind(value["kind"]), output, Scores(value["scores"]), tuple(names))
        except KeyError as error:
            raise ValueError(f"task: expected a key {error}, got {sorted(value)}") from None


def _kind(value: object) -> TaskKind:
    known = [kind.value for kind in TaskKind]
    if value not in known:
        raise ValueError(f"task.kind: expected one of {', '.join(known)}, got {repr(value)[:80]}; update fitserve")
    return TaskKind(value)
