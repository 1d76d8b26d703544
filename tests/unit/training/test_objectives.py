"""Losses and sums: adding over batches gives what the whole gives, and agrees with the exact sums of Evaluate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.scoring import score
from fitserve_contract.sums import ClassificationSums, RegressionSums
from fitserve_contract.tasks import Scores, Task
from fitserve_training.data.dataset import Split
from fitserve_training.evaluating import evaluate
from fitserve_training.objectives import Classification, Objective, Regression


class Passthrough(torch.nn.Module):
    """Answers with its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scores_and_targets(objective: Objective, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    if isinstance(objective, Classification):
        return torch.randn(count, 4, generator=stream), torch.randint(0, 4, (count,), generator=stream)
    return torch.randn(count, 2, generator=stream), torch.randn(count, 2, generator=stream)


@pytest.mark.parametrize("objective", [Classification(), Regression()])
@given(parts=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_sums_over_batches_are_those_of_the_whole(objective: Objective, parts: list[int], seed: int) -> None:
    outputs, targets = scores_and_targets(objective, sum(parts), seed)
    whole = objective.sums(outputs, targets, objective.loss(outputs, targets))

    added = torch.zeros(objective.sum_count, dtype=torch.float64)
    for some_outputs, some_targets in zip(torch.split(outputs, parts), torch.split(targets, parts), strict=True):
        added += objective.sums(some_outputs, some_targets, objective.loss(some_outputs, some_targets))

    torch.testing.assert_close(added, whole, rtol=1e-5, atol=1e-5)


def test_regression_metrics_by_hand() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [2.0]])
    objective = Regression()
    sums = objective.sums(outputs, targets, objective.loss(outputs, targets))

    metrics = objective.metrics(sums.tolist(), 3)

    assert metrics == pytest.approx({"loss": 5 / 3, "mae": 1.0, "r2": 1 - 5 / 2})


def test_r2_is_left_out_where_targets_do_not_vary() -> None:
    ones = torch.ones(3, 1)
    sums = Regression().sums(ones, ones, torch.tensor(0.0))
    assert "r2" not in Regression().metrics(sums.tolist(), 3)


def test_evaluation_covers_every_chunk_and_puts_the_mode_back() -> None:
    outputs, targets = scores_and_targets(Classification(), 2500, seed=1)
    model = Passthrough().train()

    metrics = evaluate(model, Classification(), Split((outputs,), targets)).metrics

    assert model.training
    assert metrics["accuracy"] == (outputs.argmax(1) == targets).sum().item() / 2500
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, targets).item(), rel=1e-6)


def test_metrics_agree_with_what_evaluate_will_say() -> None:
    outputs, targets = scores_and_targets(Classification(), 300, seed=2)
    values, truth = scores_and_targets(Regression(), 300, seed=3)
    names = tuple("abcd")

    classes = score(Task(Classification.kind, "y", Scores.LOGITS, names), outputs.numpy(), targets.numpy())
    reals = score(Task(Regression.kind, "y", Scores.VALUES), values.numpy(), truth.numpy())

    assert isinstance(classes, ClassificationSums)
    assert isinstance(reals, RegressionSums)
    trained = evaluate(Passthrough(), Classification(), Split((outputs,), targets)).metrics
    assert classes.per_class is not None
    balanced = {"balanced_accuracy": classes.per_class.balanced_accuracy, "macro_f1": classes.per_class.macro_f1}
    assert trained == pytest.approx({"loss": classes.mean_loss, "accuracy": classes.accuracy, **balanced}, rel=1e-6)
    fitted = evaluate(Passthrough(), Regression(), Split((values,), truth)).metrics
    assert fitted == pytest.approx({"loss": reals.mse, "mae": reals.mae, "r2": reals.r_squared}, rel=1e-6)
