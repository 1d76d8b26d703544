"""Selection has a split of its own, which leaves each class examples to train on; what is held out decides nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fitserve_training import rundir
from fitserve_training.catalogue import PUBLISHED, load_recipe
from fitserve_training.config import RunConfig, Values
from fitserve_training.data import digits
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.validation import rows_of, validation_places, with_validation

SELECTING: Values = {"data.name": "digits", "epochs": 3, "keep_weights": "best", "checkpoint_every_s": 0}


def quiet(_line: str) -> None:
    pass


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 3))
def test_no_class_is_lost_and_the_share_is_kept(classes: list[int], share: float, seed: int) -> None:
    targets = torch.tensor(classes)
    places = validation_places(targets, share, seed).tolist()

    left = Counter(each for place, each in enumerate(classes) if place not in set(places))
    assert left.keys() == set(classes)
    assert places == sorted(set(places))
    free = len(classes) - len(set(classes))
    assert len(places) == min(max(round(len(classes) * share), 1), free)
    drawn = Counter(classes[place] for place in places)
    for name, count in Counter(classes).items():
        if free:
            assert abs(drawn[name] - (count - 1) * len(places) / free) < 1 + 1e-9
    assert places == validation_places(targets, share, seed).tolist()


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_no_label_is_lost(labels: list[list[bool]], share: float) -> None:
    targets = torch.tensor(labels)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[validation_places(targets, share, 0)] = False
    assert torch.equal(targets[kept].any(dim=0), targets.any(dim=0))


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 1), (5, 1), (25, 2)])
def test_of_few_values_one_is_drawn_and_one_is_left(count: int, expected: int) -> None:
    assert len(validation_places(torch.zeros(count, 1), 0.1, 0)) == expected


def test_too_few_examples_are_named() -> None:
    split = Split((torch.zeros(2, 1),), torch.tensor([0, 1]))
    data = DataSet("two.csv", "two examples", split, split, ("a", "b"))
    with pytest.raises(UsageError, match=r"two\.csv: 2 training examples are too few to set any aside"):
        with_validation(data, RunConfig(patience=1))
    assert with_validation(data, RunConfig()) == (data, "")


def test_another_seed_draws_others_and_lengths_go_with_their_examples() -> None:
    targets = torch.arange(40) % 2
    split = Split((torch.arange(40).reshape(-1, 1),), targets, torch.arange(40))
    data = DataSet("d", "d", split, split, ("a", "b"))
    (first, line), (second, _) = (with_validation(data, RunConfig(patience=1, seed=seed)) for seed in (0, 1))
    assert first.validation is not None
    assert second.validation is not None
    assert line == "validation: 4 of 40 training examples say when to stop (validation_share 0.1)"
    assert first.validation.inputs[0].tolist() != second.validation.inputs[0].tolist()
    for part in (first.train, first.validation):
        assert part.lengths is not None
        assert part.inputs[0].flatten().tolist() == part.lengths.tolist()
        assert torch.equal(part.targets, part.lengths % 2)
    every = [*first.train.inputs[0].flatten().tolist(), *first.validation.inputs[0].flatten().tolist()]
    assert sorted(every) == list(range(40))


def test_examples_of_a_mapped_file_stay_there() -> None:
    mapped = Split((torch.arange(10).reshape(-1, 1),), torch.zeros(5, 1), rows=torch.tensor([9, 7, 5, 3, 1]))
    chosen = rows_of(mapped, torch.tensor([1, 4]))
    assert chosen.inputs[0] is mapped.inputs[0]
    assert chosen.whole().inputs[0].flatten().tolist() == [7, 1]


def test_a_split_of_the_data_is_taken_and_unused_without_selection() -> None:
    split = Split((torch.zeros(4, 1),), torch.zeros(4, 1))
    data = DataSet("d", "d", split, split, validation=rows_of(split, torch.tensor([0, 1, 2])))
    chosen, line = with_validation(data, RunConfig(keep_weights="best", patience=2))
    assert chosen is data
    assert line == "validation: 3 examples of the data's own split say when to stop and which weights are kept"
    unused, line = with_validation(data, RunConfig())
    assert (unused.validation, unused.train) == (None, split)
    assert line.startswith("validation: 3 examples of the data's own split are neither trained on nor tested on")


def other_held_out(_name: str, _places: object) -> DataSet:
    """The digits, the classes of those held out shifted by one."""
    data = digits.load()
    targets = (data.held_out.targets + 1) % 10
    return replace(data, held_out=replace(data.held_out, targets=targets))


def test_the_held_out_examples_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: Values = {**SELECTING, "patience": 2, "epochs": 6, "lr": 2.0, "batch_size": 16}
    first = train(Request("softmax", tmp_path / "first", changes=changes), quiet)
    monkeypatch.setattr("fitserve_training.data.images.load", other_held_out)
    second = train(Request("softmax", tmp_path / "second", changes=changes), quiet)

    summaries = [json.loads((run / rundir.SUMMARY).read_text()) for run in (first, second)]
    assert summaries[0]["test_loss"] != summaries[1]["test_loss"]
    assert summaries[0]["best"] == summaries[1]["best"]
    assert (first / rundir.WEIGHTS).read_bytes() == (second / rundir.WEIGHTS).read_bytes()


def test_without_selection_every_example_is_trained_on(tmp_path: Path) -> None:
    run_dir = train(Request("softmax", tmp_path / "run", changes={"data.name": "digits", "epochs": 1}), quiet)
    summary = json.loads((run_dir / rundir.SUMMARY).read_text())
    assert (summary["best"], summary["data"]["validation_count"]) == (None, 0)
    assert summary["data"]["train_count"] == len(digits.load().train)
    assert not (run_dir / rundir.BEST).exists()
    assert "val_loss" not in summary


def test_curves_and_lines_show_the_validation_loss(tmp_path: Path) -> None:
    said: list[str] = []
    run_dir = train(Request("softmax", tmp_path / "run", changes=SELECTING), said.append)
    assert "validation" in (run_dir / "loss.svg").read_text()
    assert any(line.startswith("epoch 1/3: ") and "val loss" in line for line in said)
    assert "val loss" in (run_dir / rundir.REPORT).read_text()
    assert "validation: 144 of 1,438 training examples say which weights are kept (validation_share 0.1)" in said


def test_a_selecting_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    straight = train(Request("softmax", tmp_path / "straight", changes=SELECTING), quiet)

    def stopping(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Request("softmax", tmp_path / "resumed", changes=SELECTING), stopping)
    resumed = train(Request("softmax", tmp_path / "resumed", is_resumed=True), quiet)

    for name in (rundir.WEIGHTS, rundir.BEST):
        expected, found = load_file(straight / name), load_file(resumed / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_recipe_of_the_users_may_bring_its_own_split(tmp_path: Path) -> None:
    source = """
import torch
from torch import nn

def recipe():
    parts = {name: (torch.randn(count, 2), torch.arange(count) % 2) for name, count in COUNTS.items()}
    return nn.Linear(2, 2), parts, nn.CrossEntropyLoss(), {"epochs": 2, "keep_weights": "best", "compile": "off"}
"""
    (tmp_path / "mine.py").write_text(source + 'COUNTS = {"train": 40, "val": 10, "test": 20}\n')
    run_dir = train(Request(str(tmp_path / "mine.py"), tmp_path / "run"), quiet)
    counts = json.loads((run_dir / rundir.SUMMARY).read_text())["data"]
    assert [counts[key] for key in ("train_count", "validation_count", "held_out_count")] == [40, 10, 20]

    (tmp_path / "mine.py").write_text(source + 'COUNTS = {"train": 40, "dev": 10, "test": 20}\n')
    with pytest.raises(UsageError, match="expected no keys but class_names, test, train, val, got dev"):
        train(Request(str(tmp_path / "mine.py"), tmp_path / "run"), quiet)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes_select_nothing(name: str) -> None:
    recipe = load_recipe(name)
    for settings in (recipe.defaults, *recipe.presets.values()):
        assert not settings.keys() & {"patience", "keep_weights"}
