"""No setting that somebody gave is passed over in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitserve_training import rundir
from fitserve_training.config import RunConfig, Values
from fitserve_training.errors import UsageError
from fitserve_training.ignored import Watch, check_effects
from fitserve_training.launch import Request, train

QUICK: Values = {"epochs": 1, "compile": "off"}


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One small set of each kind of own data, by kind."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("", "train", "test", "val"):
        for place, name in enumerate(("cat", "dog")):
            for number in range(4):
                path = folder / ("split" if split else "pictures") / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (16, 16), 100 * place + 20 * number + len(split)).save(path)
    (folder / "t.csv").write_text("a,b,y\n" + "".join(f"{n},{n % 5},{'pq'[n % 2]}\n" for n in range(20)))
    (folder / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"word {n % 3}", "label": "pq"[n % 2]}) + "\n" for n in range(12))
    )
    rng = np.random.default_rng(0)
    np.savez(folder / "a.npz", image=rng.random((12, 1, 16, 16)), labels=np.arange(12) % 2)
    names = {"pictures": "pictures", "split": "split", "table": "t.csv", "text": "t.jsonl", "arrays": "a.npz"}
    return {kind: str(folder / name) for kind, name in names.items()}


@pytest.mark.parametrize(
    ("recipe", "kind", "key", "value"),
    [
        ("bert-multilabel", "bundled", "data.text", "text"),
        ("bert-multilabel", "bundled", "data.label", "mood"),
        ("bert-multilabel", "bundled", "data.task", "classification"),
        ("bert-multilabel", "bundled", "data.hold_out", 0.5),
        ("bert-multilabel", "bundled", "data.example_count", 5),
        ("bert-multilabel", "text", "data.example_count", 5),
        ("softmax", "digits", "data.hold_out", 0.2),
        ("softmax", "digits", "data.skip_bad", True),
        ("softmax", "digits", "memory_format", "channels_last"),
        ("lenet", "digits", "data.image_size", 32),
        ("lenet", "arrays", "data.image_size", 32),
        ("lenet", "pictures", "data.task", "classification"),
        ("mlp", "table", "data.image_size", 64),
        ("mlp", "table", "data.skip_bad", True),
        ("mlp", "arrays", "data.label", "y"),
        ("mlp", "arrays", "data.drop", "a"),
        ("convnet", "arrays", "data.image_size", 64),
        ("convnet", "pictures", "data.label", "y"),
        ("convnet", "pictures", "data.categories", "y"),
        ("convnet", "split", "data.hold_out", 0.5),
        ("linreg", "synthetic", "validation_share", 0.2),
        ("linreg", "synthetic", "micro_batch_size", 11),
        ("thermometer", "readings", "micro_batch_size", 12),
    ],
)
def test_a_setting_without_effect_is_refused(
    recipe: str, kind: str, key: str, value: str | float, data: dict[str, str], tmp_path: Path
) -> None:
    needed: Values = {"data.label": "y"} if kind == "table" else {}
    changes: Values = {**QUICK, **needed, "data.name": data.get(kind, kind), key: value}

    with pytest.raises(UsageError, match=f"setting '{key}': it would be ignored, for .*; leave it out"):
        train(Request(recipe, tmp_path / "run", changes=changes), quiet)

    assert not list(tmp_path.iterdir())


def test_a_warm_up_over_all_steps_leaves_no_use_for_a_schedule(tmp_path: Path) -> None:
    changes: Values = {**QUICK, "lr_schedule": "cosine", "lr_warmup_steps": 99}
    train(Request("linreg", tmp_path / "run", changes=changes), quiet)
    with pytest.raises(UsageError, match=r"'lr_schedule': it would be ignored, for the warm-up takes all 100 steps"):
        train(Request("linreg", tmp_path / "run", changes={**changes, "lr_warmup_steps": 100}), quiet)


def test_a_split_of_the_data_leaves_no_use_for_a_share(data: dict[str, str], tmp_path: Path) -> None:
    changes: Values = {**QUICK, "data.name": data["split"], "keep_weights": "best"}
    with pytest.raises(UsageError, match=r"'validation_share': it would be ignored, for .* has a validation split"):
        train(Request("convnet", tmp_path / "run", changes={**changes, "validation_share": 0.2}), quiet)

    said: list[str] = []
    run_dir = train(Request("convnet", tmp_path / "run", changes=changes), said.append)

    assert "validation: 8 examples of the data's own split say which weights are kept" in said
    counts = json.loads((run_dir / rundir.SUMMARY).read_text())["data"]
    assert [counts[key] for key in ("train_count", "validation_count", "held_out_count")] == [8, 8, 8]


@pytest.mark.parametrize("kind", ["pictures", "table", "text", "arrays", "split"])
def test_the_settings_that_a_run_wrote_are_those_of_the_next(kind: str, data: dict[str, str], tmp_path: Path) -> None:
    recipe = {"pictures": "lenet", "split": "convnet", "table": "mlp", "text": "bert-multilabel", "arrays": "mlp"}[kind]
    label: Values = {"data.label": "y"} if kind == "table" else {}
    changes: Values = {**QUICK, **label, "data.name": data[kind]}
    first = train(Request(recipe, tmp_path / "first", changes=changes), quiet)
    again = train(Request(recipe, tmp_path / "again", first / rundir.CONFIG), quiet)
    assert (first / rundir.WEIGHTS).read_bytes() == (again / rundir.WEIGHTS).read_bytes()


def test_a_file_of_settings_is_refused_for_what_it_changes_alone(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('epochs = 1\nvalidation_share = 0.1\n[data]\nname = "digits"\nhold_out = 0.2\n')
    train(Request("softmax", tmp_path / "run", tmp_path / "s.toml"), quiet)
    (tmp_path / "s.toml").write_text('epochs = 1\n[data]\nname = "digits"\nhold_out = 0.3\n')
    with pytest.raises(UsageError, match=r"setting 'data\.hold_out': it would be ignored"):
        train(Request("softmax", tmp_path / "run", tmp_path / "s.toml"), quiet)


def test_a_recipe_of_the_users_reads_no_settings_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("""
import torch
from torch import nn

def recipe():
    part = torch.randn(20, 3), torch.randn(20, 1)
    settings = {"epochs": 1, "compile": "off", "model.width": 3}
    return nn.Linear(3, 1), {"train": part, "test": part}, nn.MSELoss(), settings
""")
    for key, value in (("data.hold_out", 0.5), ("model.width", 5)):
        with pytest.raises(UsageError, match=f"setting '{key}': it would be ignored"):
            train(Request(str(tmp_path / "mine.py"), tmp_path / "run", changes={key: value}), quiet)
    train(Request(str(tmp_path / "mine.py"), tmp_path / "run", changes={}), quiet)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"patience": 3, "epochs": 3}, "patience"),
        ({"patience": 3, "log_every": 2}, "log_every"),
        ({"keep_weights": "best", "log_every": 2}, "log_every"),
        ({"validation_share": 0.2}, "validation_share"),
        ({"dampening": 0.5}, "dampening"),
        ({"optimizer": "rprop", "lr_schedule": "cosine"}, "lr_schedule"),
        ({"optimizer": "rprop", "lr_warmup_steps": 5}, "lr_warmup_steps"),
        ({"optimizer": "lbfgs", "compile": "step"}, "compile"),
    ],
)
def test_settings_without_effect_beside_others(settings: Values, key: str) -> None:
    config = RunConfig.from_flat({**RunConfig().to_flat(), **settings})
    with pytest.raises(UsageError, match=f"setting '{key}': it would be ignored, for "):
        check_effects(settings, config)
    check_effects(settings.keys() - {key}, config)


def test_settings_with_effect_pass() -> None:
    settings: Values = {"patience": 3, "validation_share": 0.2, "momentum": 0.5, "dampening": 0.1}
    settings |= {"micro_batch_size": 4, "lr_schedule": "cosine", "nesterov": False, "class_weights": "none"}
    check_effects(settings, RunConfig.from_flat({**RunConfig().to_flat(), **settings}))


def test_what_was_read_is_remembered() -> None:
    watch = Watch(RunConfig(data={"name": "x", "hold_out": 0.2}, model={"layers": 2, "size": 3}))
    assert watch.config.data["hold_out"] == 0.2
    assert watch.config.model.get("size") == 3
    assert watch.unread() == {"data.name", "model.layers"}
