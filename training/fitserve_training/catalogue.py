"""The recipes by name, and the user's own by file. Holds no torch, so that `--list` and `--help` answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fitserve_training.data.own.kinds import TABLE, TEXT, is_path, kind_of
from fitserve_training.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from fitserve_training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe's name, what it is, and the module whose `RECIPE` it is."""

    name: str
    summary: str
    module: str


ENTRIES = (
    Entry(
        "linreg-scratch",
        "y = Xw + b on 1,000 synthetic examples, by hand: half the squared error, plain descent",
        "fitserve_training.recipes.linreg_scratch",
    ),
    Entry(
        "linreg",
        "y = Xw + b on 1,000 synthetic examples, minibatch SGD, mean squared loss",
        "fitserve_training.recipes.linreg",
    ),
    Entry(
        "line",
        "a line through three points, and how eight optimizers get there",
        "fitserve_training.recipes.line",
    ),
    Entry(
        "thermometer",
        "Celsius from 11 readings of an unknown thermometer, full-batch SGD",
        "fitserve_training.recipes.thermometer",
    ),
    Entry(
        "two-layer",
        "1000 -> 100 -> 10 with ReLU on noise, with its gradients three ways",
        "fitserve_training.recipes.two_layer",
    ),
    Entry(
        "softmax", "softmax regression on Fashion-MNIST (or scikit-learn's digits)", "fitserve_training.recipes.softmax"
    ),
    Entry("lenet", "LeNet on Fashion-MNIST (or scikit-learn's digits)", "fitserve_training.recipes.lenet"),
    Entry(
        "bert-multilabel",
        "BERT for any of 28 emotions on GoEmotions (or 300 bundled sentences), or your own texts (.jsonl, .csv)",
        "fitserve_training.recipes.bert_multilabel",
    ),
    Entry(
        "convnet",
        "your own pictures (--data FOLDER with a folder per class, or .npz): three convolutions",
        "fitserve_training.recipes.convnet",
    ),
    Entry(
        "mlp",
        "your own tables (--data TABLE.csv --set data.label=COLUMN) or numbers (.npz): fully connected layers",
        "fitserve_training.recipes.mlp",
    ),
    Entry(
        "picture-encoder",
        "your own pictures, with a pretrained encoder (--set model.weights=DIR_OR_ID) and a new head",
        "fitserve_training.recipes.picture_encoder",
    ),
)

PUBLISHED = tuple(entry.name for entry in ENTRIES[:8])
"""Those that hold published figures, and train on data that is there already."""

DATA_NAMES = ("auto", "digits", "fashion_mnist", "bundled", "goemotions")
"""Data that recipes name themselves: no path, even where a folder is called so."""

PICTURE_SIZES = {"softmax": 28, "lenet": 28, "convnet": 32, "picture-encoder": 0}
"""Recipes that a folder of the user's pictures trains, with their `data.image_size`; 0 is the checkpoint's."""

TAKE_PICTURES = tuple(PICTURE_SIZES)

_FOR_OWN_DATA = {"images": "convnet", "table": "mlp", "arrays": "mlp", "text": "bert-multilabel"}
_PRETRAINED = {"images": "picture-encoder", "text": "bert-multilabel"}


def names() -> list[str]:
    """Gives the names of all recipes, simplest first."""
    return [entry.name for entry in ENTRIES]


def recipe_for_data(name: str, is_text: bool = False, is_pretrained: bool = False) -> str | None:
    """Gives the recipe that takes the user's own data of this name; None where it is not a path.

    Args:
        name: Of the data.
        is_text: A table has a column of texts, though its columns do not say so.
        is_pretrained: A pretrained encoder is to be fine-tuned.

    Raises:
        UsageError: no recipe takes such data, or none with a pretrained encoder.
    """
    if not is_path(name):
        return None
    kind = kind_of(Path(name))
    kind = TEXT if is_text and kind == TABLE else kind
    if is_pretrained and kind not in _PRETRAINED:
        cure = "name the column of texts (--set data.text=COLUMN)" if kind == TABLE else "leave it out"
        raise UsageError(f"setting 'model.weights': expected a folder of pictures or texts, got {kind}; {cure}")
    return (_PRETRAINED if is_pretrained else _FOR_OWN_DATA)[kind]


def load_recipe(name: str, source: bytes | None = None) -> Recipe:
    """Imports the recipe called `name`, or runs the user's file of this name; torch is imported with it.

    Args:
        name: Of the catalogue, or a file's.
        source: What the file held when the run began, where that counts and not what it holds now.

    Raises:
        UsageError: there is no such recipe; the message suggests the nearest one.
    """
    if name.endswith(".py"):
        from fitserve_training.own_recipe import load_own_recipe

        return load_own_recipe(Path(name), source)
    for entry in ENTRIES:
        if entry.name == name:
            recipe: Recipe = import_module(entry.module).RECIPE
            return recipe
    raise unknown_name("recipe", name, names())
