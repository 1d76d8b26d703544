"""Which images an image recipe trains on: Fashion-MNIST where it is at hand, else the bundled digits."""

from __future__ import annotations

from fitserve_training.data import digits, fashion_mnist
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places

NAMES = ("auto", "digits", "fashion_mnist")


def choose(name: str, places: Places) -> str:
    """Resolves `auto`: Fashion-MNIST where the data directory or the cache has it, else digits."""
    if name != "auto":
        return name
    return "fashion_mnist" if fashion_mnist.is_present(places) else "digits"


def load(name: str, places: Places) -> DataSet:
    """Loads the data that `choose` named."""
    return digits.load() if name == "digits" else fashion_mnist.load(places)
