"""Labelled sentences: GoEmotions, the bundled sample, or the user's own lines. Shapes: N sentences, C labels.

Source of GoEmotions: Demszky et al., "GoEmotions: A Dataset of Fine-Grained Emotions" (ACL 2020). Apache-2.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from fitserve_training.data.places import Places, check_files
from fitserve_training.errors import UsageError

FOLDER = "goemotions"
CHECKSUMS = {
    "train.tsv": "1c254a142be5c00e80d819b9ae1bbd36d94b2eeb8f4b1271846508d57e57d9c5",
    "test.tsv": "0587b2dd8b27b97352adbfc3fb083d46005c8946657fdc2b1ca8b1cc7f1f8be4",
}
EMOTIONS = (
    *("admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire"),
    *("disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy"),
    *("love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral"),
)
NAMES = ("auto", "bundled", "goemotions")
ANCHORS = "published macro-F1 at threshold 0.5: BERT-base 0.46 (paper) and 0.503, RoBERTa-base 0.450"
_HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Sentences:
    """Sentences with the labels that each carries: any of C, bool (N, C), or one of them, its index int64 (N,)."""

    texts: tuple[str, ...]
    labels: Tensor

    def rows(self, indices: Sequence[int]) -> Sentences:
        """Picks some."""
        return Sentences(tuple(self.texts[i] for i in indices), self.labels[list(indices)])


@dataclass(frozen=True)
class Corpus:
    """Sentences to train on and held out, with what `DataSet` says of them."""

    name: str
    source: str
    train: Sentences
    held_out: Sentences
    class_names: tuple[str, ...]
    checksums: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def choose(name: str, places: Places) -> str:
    """Resolves `auto`: GoEmotions where the data directory or the cache has it, else the bundled sentences."""
    if name != "auto":
        return name
    return "goemotions" if places.find(FOLDER, CHECKSUMS) else "bundled"


def load_bundled() -> Corpus:
    """Reads the sentences written for this project; every fifth is held out."""
    file = resources.files("fitserve_training.data") / "bundled_sentences.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sentences = Sentences(tuple(row["text"] for row in rows), multi_hot([row["labels"] for row in rows], EMOTIONS))
    is_held_out = [i % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1 for i in range(len(rows))]
    train, held_out = (
        sentences.rows([i for i, is_held in enumerate(is_held_out) if is_held == wanted]) for wanted in (False, True)
    )
    return Corpus(
        name="bundled",
        source=f"{len(rows)} bundled sentences with GoEmotions' 28 labels ({len(held_out.texts)} of them held out)",
        train=train,
        held_out=held_out,
        class_names=EMOTIONS,
        note="the published figures belong to GoEmotions: no published band for the bundled sentences",
    )


def load_goemotions(places: Places, example_count: int) -> Corpus:
    """Reads GoEmotions' train and test files.

    Args:
        places: Where the files may be.
        example_count: How many training sentences are taken, from the first; 0 means all.

    Raises:
        UsageError: a file is missing or damaged.
    """
    folder = places.find(FOLDER, CHECKSUMS)
    if folder is None:
        names = " and ".join(CHECKSUMS)
        raise UsageError(
            f"goemotions is not at hand: put {names} into DIR/{FOLDER} and pass --data-dir DIR, or train on the "
            "bundled sentences with --data bundled"
        )
    check_files(folder, CHECKSUMS)
    train, held_out = (_read_tsv(folder / name) for name in CHECKSUMS)
    count = min(example_count or len(train.texts), len(train.texts))
    return Corpus(
        name="goemotions",
        source=f"GoEmotions ({count:,} of {len(train.texts):,} training and {len(held_out.texts):,} test sentences)",
        train=train.rows(range(count)),
        held_out=held_out,
        class_names=EMOTIONS,
        checksums=CHECKSUMS,
        note=ANCHORS,
    )


def multi_hot(labels: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    """Turns lists of label names into bool (N, C)."""
    place = {name: i for i, name in enumerate(names)}
    hot_NC = torch.zeros(len(labels), len(names), dtype=torch.bool)
    for row, present in enumerate(labels):
        hot_NC[row, [place[name] for name in present]] = True
    return hot_NC


def _read_tsv(path: Path) -> Sentences:
    texts, labels = [], []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            text, indices, _ = line.rsplit("\t", 2)
            texts.append(text)
            labels.append([EMOTIONS[int(index)] for index in indices.split(",")])
    return Sentences(tuple(texts), multi_hot(labels, EMOTIONS))
