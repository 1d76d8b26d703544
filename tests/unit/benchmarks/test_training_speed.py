"""The textbook's loop trains the same model on the same examples, and a measurement says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fitserve_benchmarks.training_speed import SpeedPlan, measure_speed, plain_model
from fitserve_benchmarks.training_textbook import TransformedImages
from fitserve_training.catalogue import load_recipe
from fitserve_training.config import RunConfig


@pytest.mark.parametrize("transform", ["picture", "tensor"])
def test_an_example_is_the_image_in_0_to_1(transform: str) -> None:
    images = torch.arange(2 * 4 * 4, dtype=torch.uint8).reshape(2, 4, 4)
    image, label = TransformedImages(images, torch.tensor([3, 5]), transform)[1]
    assert label == 5
    assert torch.equal(image, images[1:].to(torch.float32) / 255)


@pytest.mark.parametrize("name", ["softmax", "lenet"])
def test_the_textbook_has_the_same_model_of_plain_layers(name: str) -> None:
    recipe = load_recipe(name)
    torch.manual_seed(0)
    model = recipe.build_model(RunConfig())
    torch.manual_seed(0)
    plain = plain_model(recipe, RunConfig())
    images = torch.rand(3, 1, 28, 28)
    assert all(type(layer).__module__.startswith("torch.nn") for layer in plain.children())
    torch.testing.assert_close(model.train()(images), plain(images))


def test_a_measurement_counts_the_arithmetic(tmp_path: Path) -> None:
    result = measure_speed(SpeedPlan("lenet", trials=1, example_count=128, threads=1))
    result.save(tmp_path / "lenet.json")
    # Products of the forward pass, and twice as many backward but for the first layer's input.
    forward = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert result.flops_per_example == 2 * (3 * forward - 28 * 28 * 6 * 25)
    assert json.loads((tmp_path / "lenet.json").read_text())["ratio"] == result.ratio > 0
    assert len(result.ours) == len(result.textbook) == 1


def test_other_recipes_have_no_textbook_loop() -> None:
    with pytest.raises(ValueError, match="expected a recipe of softmax, lenet"):
        measure_speed(SpeedPlan("linreg"))
