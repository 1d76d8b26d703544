"""`lenet` and `softmax` on the user's pictures and arrays, and unchanged on their own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.recipes import lenet, softmax
from fitserve_training.runs import TrainedRun, open_run


def trained(recipe: str, data: Path | str, run_dir: Path, **changes: Any) -> TrainedRun:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    settings = {"data.name": str(data), "compile": "off", "threads": 1, "batch_size": 8, "epochs": 1, **dotted}
    return open_run(train(Request(recipe, run_dir, changes=settings), lambda _line: None))


def shades(root: Path, mode: str = "L", side: int = 30) -> Path:
    for shade, name in ((40, "dark"), (200, "light")):
        (root / name).mkdir(parents=True)
        for index in range(8):
            pixels = np.full((side, side), shade + index, np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize("recipe", ["lenet", "softmax"])
@pytest.mark.parametrize(("mode", "size", "channels"), [("L", None, 1), ("RGB", 20, 3)])
def test_own_pictures_train_and_open_again(
    recipe: str, mode: str, size: int | None, channels: int, tmp_path: Path
) -> None:
    changes = {} if size is None else {"data__image_size": size}
    run = trained(recipe, shades(tmp_path / "p", mode), tmp_path / "run", **changes, epochs=25 if channels == 1 else 1)
    side = size or 28
    assert run.inputs[0].shape == ("batch", channels, side, side)
    assert run.task.class_names == ("dark", "light")
    held_out = run.held_out()
    found = run.module(torch.from_numpy(held_out.inputs["image"])).argmax(dim=1).numpy()
    assert channels == 3 or (found == held_out.labels).all(), "scalings are inside the served model"


@pytest.mark.parametrize("recipe", ["lenet", "softmax"])
def test_own_arrays_of_bytes_train_without_scaling_them(recipe: str, tmp_path: Path) -> None:
    labels = np.arange(60) % 2
    pixels = np.random.default_rng(0).integers(0, 60, (60, 1, 14, 16)) + 90 * labels[:, None, None, None]
    np.savez(tmp_path / "a.npz", image=pixels.astype(np.uint8), labels=labels)
    run = trained(recipe, tmp_path / "a.npz", tmp_path / "run", epochs=15, lr=0.01)
    assert run.inputs[0].shape == ("batch", 1, 14, 16)
    held_out = run.held_out()
    found = run.module(torch.from_numpy(held_out.inputs["image"])).argmax(dim=1).numpy()
    assert (found == held_out.labels).mean() > 0.9


def test_softmax_takes_rows_of_numbers_and_lenet_does_not(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 5))
    np.savez(tmp_path / "a.npz", image=x, labels=(x[:, 0] > 0))
    assert trained("softmax", tmp_path / "a.npz", tmp_path / "run").inputs[0].shape == ("batch", 5)
    with pytest.raises(
        UsageError, match=r"expected pictures \(N, C, H, W\) of at least 12 pixels a side, got \(N, 5\)"
    ):
        trained("lenet", tmp_path / "a.npz", tmp_path / "other")
    with pytest.raises(UsageError, match="of at least 12 pixels a side"):
        trained("lenet", shades(tmp_path / "p"), tmp_path / "other", data__image_size=11)
    assert trained("lenet", tmp_path / "p", tmp_path / "other", data__image_size=12).inputs[0].shape[2:] == (12, 12)


def test_what_has_no_classes_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.ones((40, 1, 14, 14)), labels=np.arange(40) / 3)
    with pytest.raises(UsageError, match="expected one class for each example, got task regression"):
        trained("softmax", tmp_path / "a.npz", tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value"), [("data.image_size", 20), ("data.task", "regression"), ("data.skip_bad", True)]
)
def test_settings_for_own_data_are_refused_beside_other_data(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"setting '{key}': it would be ignored"):
        trained("softmax", "digits", tmp_path / "run", **{key: value})


def test_the_networks_of_the_published_data_are_the_published_ones(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run = trained("softmax", "digits", run_dir)
    (run_dir / "form.json").unlink()
    again = open_run(run_dir)
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(again.module(image), run.module(image)), "runs of earlier versions have no form"
    assert sum(p.numel() for p in lenet.build_network((1, 28, 28), 10).parameters()) == 61_706
    layers = softmax.build_network((1, 28, 28), 10).children()
    assert [type(layer).__name__ for layer in layers] == ["Flatten", "Linear"]
