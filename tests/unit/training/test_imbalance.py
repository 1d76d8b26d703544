"""Classes of unlike size: weights as scikit-learn's, one gradient however the batch is cut, figures per class."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from fitserve_training import rundir
from fitserve_training.compiling import CompileRecord
from fitserve_training.config import RunConfig, Values
from fitserve_training.constant import compare_with_constant
from fitserve_training.data.dataset import Batch, Split
from fitserve_training.errors import UsageError
from fitserve_training.evaluating import evaluate
from fitserve_training.imbalance import balanced_weights
from fitserve_training.launch import Request, train
from fitserve_training.objectives import Classification
from fitserve_training.optim import make_optimizer
from fitserve_training.outcome import closing_lines
from fitserve_training.stepping import Stepper, StepPlan

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def quiet(_line: str) -> None:
    pass


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    weights = balanced_weights(torch.tensor(labels), 8)
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights[present], expected, rtol=1e-6)
    assert weights.sum().item() == pytest.approx(expected.sum(), rel=1e-6)
    assert weights[labels].double().mean().item() == pytest.approx(1.0, rel=1e-6)


def stepped(plan: StepPlan, mode: str = "off") -> tuple[torch.Tensor, dict[str, float]]:
    """Takes three steps on examples of which each class has another weight; gives the weights and the metrics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = Batch((torch.randn(10, 6, dtype=torch.float64),), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 0]))
    objective = Classification(0.1, WEIGHTS)
    optimizer = make_optimizer(model.parameters(), RunConfig(lr=0.5))
    stepper = Stepper(model, objective, optimizer, CompileRecord(mode, mode), OFF, pytest.fail, plan)
    sums = torch.zeros(objective.sum_count, dtype=torch.float64)
    for _ in range(3):
        stepper(batch, sums)
    assert stepper.record.used == mode
    return torch.cat([p.detach().flatten() for p in model.parameters()]), objective.metrics(sums.tolist(), 30)


@pytest.mark.parametrize("size", [1, 3, 5, 9, 10, 11])
def test_micro_batches_are_the_batch(size: int) -> None:
    whole, parts = stepped(StepPlan()), stepped(StepPlan(micro_batch_size=size))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-12, atol=1e-14)
    assert parts[1] == pytest.approx(whole[1], rel=1e-12)


@pytest.mark.parametrize("mode", ["module", "step"])
def test_compiled_steps_are_the_eager_ones(mode: str) -> None:
    eager, compiled = stepped(StepPlan()), stepped(StepPlan(), mode)
    torch.testing.assert_close(compiled[0], eager[0], rtol=1e-10, atol=1e-12)
    assert compiled[1] == pytest.approx(eager[1], rel=1e-10)


@settings(max_examples=30)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.2]))
def test_the_loss_is_that_of_torch(seed: int, smoothing: float) -> None:
    torch.manual_seed(seed)
    outputs, targets = torch.randn(20, 3, requires_grad=True), torch.randint(0, 3, (20,))
    expected = nn.CrossEntropyLoss(WEIGHTS, label_smoothing=smoothing)(outputs, targets)
    torch.testing.assert_close(Classification(smoothing, WEIGHTS).loss(outputs, targets), expected)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_figures_of_a_split_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    targets, predicted = torch.tensor(pairs).T
    found = evaluate(nn.Identity(), Classification(), Split((torch.eye(4)[predicted],), targets)).metrics
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(targets, predicted, average="macro", zero_division=0))
    recalls = [float((predicted[targets == c] == c).double().mean()) for c in targets.unique().tolist()]
    assert found["balanced_accuracy"] == pytest.approx(math.fsum(recalls) / len(recalls))


def test_a_weighted_run_is_held_against_the_constant_under_its_own_loss() -> None:
    """A model that answers all classes alike has learned what the weighted loss of a constant allows, not less."""
    targets = torch.tensor([0] * 97 + [1] * 3)
    split = Split((torch.zeros(100, 2),), targets)
    compared = compare_with_constant(nn.Identity(), Classification(0.1, balanced_weights(targets, 2)), split, 0)
    assert compared is not None
    assert compared.loss == pytest.approx(math.log(2))
    assert compared.constant_loss == pytest.approx(math.log(2))
    assert "learned nothing" in compared.check()


@pytest.fixture
def unlike(tmp_path: Path) -> Path:
    """Two overlapping classes, 9 of 10 examples of the first."""
    stream = np.random.default_rng(0)
    labels = (stream.random(600) < 0.1).astype(np.int64)
    x = (stream.standard_normal((600, 2)) + labels[:, None]).astype(np.float32)
    np.savez(tmp_path / "unlike.npz", x=x, labels=labels)
    return tmp_path / "unlike.npz"


def trained(recipe: str, data: Path, folder: Path, **changes: object) -> tuple[Path, dict[str, object], list[str]]:
    said: list[str] = []
    values: Values = {"data.name": str(data), "epochs": 10, **changes}  # type: ignore[dict-item]
    run_dir = train(Request(recipe, folder, changes=values), said.append)
    return run_dir, json.loads((run_dir / rundir.SUMMARY).read_text()), said


def test_balanced_weights_find_the_small_class(unlike: Path, tmp_path: Path) -> None:
    _, plain, said = trained("mlp", unlike, tmp_path / "plain")
    run_dir, weighted, quieter = trained("mlp", unlike, tmp_path / "weighted", class_weights="balanced")

    assert [line for line in said if "--set class_weights=balanced" in line and "% of the training examples" in line]
    assert not [line for line in quieter if "class_weights" in line]
    small = [summary["classes"][1] for summary in (plain, weighted)]  # type: ignore[index]
    assert small[0]["recall"] < 0.6 < small[1]["recall"]
    assert weighted["test_balanced_accuracy"] > plain["test_balanced_accuracy"]  # type: ignore[operator]
    recalls = [each["recall"] for each in weighted["classes"]]  # type: ignore[attr-defined]
    assert weighted["test_balanced_accuracy"] == pytest.approx(sum(recalls) / 2)
    assert {"test_balanced_accuracy", "test_macro_f1"} <= set(rundir.read_lines(run_dir / rundir.METRICS)[0])
    assert [line for line in closing_lines(weighted) if line.startswith("recall: 0=")]
    report = (run_dir / rundir.REPORT).read_text()
    assert "<h2>Classes</h2>" in report
    assert "test balanced accuracy" in report


def test_a_weighted_run_resumes_to_the_same_bits(unlike: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    changes: Values = {"data.name": str(unlike), "epochs": 6, "class_weights": "balanced", "checkpoint_every_s": 0}
    straight = train(Request("mlp", tmp_path / "straight", changes=changes), quiet)

    def stop(line: str) -> None:
        if "3/6" in line or "epoch 3" in line:
            raise Enough

    with pytest.raises(Enough):
        train(Request("mlp", tmp_path / "stopped", changes=changes), stop)
    resumed = train(Request("mlp", tmp_path / "stopped", is_resumed=True), quiet)
    expected, found = (load_file(run / rundir.WEIGHTS) for run in (straight, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


OWN = """
import torch
from torch import nn

def recipe():
    x = torch.randn(40, 3)
    return nn.Linear(3, 2), (x, (x[:, 0] > 0).long()), nn.CrossEntropyLoss(), {"epochs": 1}
"""


@pytest.mark.parametrize("key", ["class_weights=balanced", "label_smoothing=0.1"])
def test_recipes_without_a_cross_entropy_of_ours_are_refused(key: str, tmp_path: Path) -> None:
    name, _, value = key.partition("=")
    with pytest.raises(UsageError, match=f"'{name}': recipe linreg does not classify one of n; leave it at"):
        train(Request("linreg", tmp_path / "a", changes={name: value}), quiet)
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(UsageError, match=f"'{name}': the loss of recipe mine is its own"):
        train(Request(str(tmp_path / "mine.py"), tmp_path / "b", changes={name: value}), quiet)
    np.savez(tmp_path / "real.npz", x=np.ones((40, 2), np.float32), labels=np.arange(40) / 3)
    with pytest.raises(UsageError, match=f"'{name}': recipe mlp does not classify"):
        train(Request("mlp", tmp_path / "c", changes={name: value, "data.name": str(tmp_path / "real.npz")}), quiet)
