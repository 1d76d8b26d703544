"""What a set of examples comes to: the sums of one version, or of two with what they did example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve_contract import scoring, sums
from fitserve_contract.pairing import PairedSums, merge_pairs, pair
from fitserve_contract.tasks import Task, TaskKind
from fitserve_contract.tensor_bytes import Array
from fitserve_service.codec_sums import evaluate_response, paired_sums
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.scoring import reals, refused_labels
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor


def task_of(served: ServedVersion) -> Task:
    """Gives a version's task.

    Raises:
        ServiceError: NO_TASK.
    """
    if served.task is None:
        text = (
            f"{version_text(served)}: expected a task in its manifest or in model.toml to score, got none; set task, "
            "class_names and task_scores in model.toml"
        )
        raise ServiceError(Reason.NO_TASK, text, model=served.model)
    return served.task


def check_same_task(first: ServedVersion, second: ServedVersion) -> None:
    """Refuses to compare versions that do different things.

    Raises:
        ServiceError: NO_TASK, or TASK_MISMATCH: another kind of task, or other classes.
    """
    one, other = task_of(first), task_of(second)
    if (one.kind, one.class_names) != (other.kind, other.class_names):
        expected = f"the task of {version_text(first)}, {_task_text(one)}"
        text = f"{version_text(second)}: expected {expected}, got {_task_text(other, than=one)}"
        raise ServiceError(Reason.TASK_MISMATCH, text, model=second.model)


def version_text(served: ServedVersion) -> str:
    """Names a version in messages."""
    return f"model '{served.model}' version {served.version}"


@dataclass(slots=True)
class EvaluationTally:
    """The sums of one version."""

    served: ServedVersion
    labels: Tensor
    scored: sums.Sums | None = None

    def add(self, rows: slice, answers: Sequence[Tensor]) -> None:
        """Scores one batch."""
        with refused_labels():
            part = scoring.score(task_of(self.served), reals(answers[0]), reals(self.labels)[rows])
            self.scored = part if self.scored is None else sums.merge([self.scored, part])

    def response(self) -> pb.EvaluateResponse:
        """Gives the answer to Evaluate, once there was a batch."""
        if self.scored is None:
            raise AssertionError("a set of examples has at least one batch")
        return evaluate_response(self.served.model, self.served.version, self.scored)

    def message(self) -> bytes:
        """Writes the answer to Evaluate."""
        return self.response().SerializeToString()


@dataclass(slots=True)
class ComparisonTally:
    """The sums of two versions, and their outcomes paired.

    Args:
        first: Tally of the first.
        second: Tally of the second; same labels.
        indices: (B): what each example is called in the list of differences.
    """

    first: EvaluationTally
    second: EvaluationTally
    indices: Array
    _pairs: list[PairedSums] = field(default_factory=list)

    def add(self, rows: slice, answers: Sequence[Tensor]) -> None:
        """Scores and pairs one batch."""
        self.first.add(rows, answers[:1])
        self.second.add(rows, answers[1:])
        with refused_labels():
            scores = [reals(answer) for answer in answers]
            labels = reals(self.first.labels)[rows]
            self._pairs.append(pair(task_of(self.first.served), scores[0], scores[1], labels, self.indices[rows]))

    def message(self) -> bytes:
        """Writes the answer to CompareVersions."""
        paired = paired_sums(merge_pairs(self._pairs))
        parts = {"first": self.first.response(), "second": self.second.response()}
        return pb.CompareVersionsResponse(paired=paired, **parts).SerializeToString()


def _task_text(task: Task, *, than: Task | None = None) -> str:
    if task.kind is TaskKind.REGRESSION:
        return task.kind.value
    names = f"{len(task.class_names)} classes"
    if than is not None and than.kind is task.kind and len(than.class_names) == len(task.class_names):
        names = f"{names} of other names or in another order"
    return f"{task.kind.value} of {names}"
