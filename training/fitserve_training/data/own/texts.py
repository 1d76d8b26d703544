"""Lines of JSON, each a text with its labels: {"text": "…", "labels": ["a", "b"]} or {"text": "…", "label": "a"}."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fitserve_training.data.own.kinds import check_classes, check_present
from fitserve_training.data.sentences import Corpus, Sentences, multi_hot
from fitserve_training.errors import UsageError
from fitserve_training.seeding import generator

_FEWEST = 4


def load_texts(path: Path, held_out_share: float, seed: int) -> Corpus:
    """Reads a .jsonl file; labels are named in alphabetical order.

    Raises:
        UsageError: a line is not as said above, or there are too few lines or labels; the message names the line.
    """
    check_present(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data {path}: expected lines of JSON in UTF-8, got {error}") from None
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(rows) < _FEWEST:
        raise UsageError(f"data {path}: expected at least {_FEWEST} texts, got {len(rows)}")
    counts = Counter(label for _, labels in rows for label in labels)
    check_classes(path, dict(counts))
    names = tuple(sorted(counts))
    sentences = Sentences(tuple(text for text, _ in rows), multi_hot([labels for _, labels in rows], names))
    order = torch.randperm(len(rows), generator=generator(seed, "data", "hold_out")).tolist()
    held_out_count = min(max(1, round(len(rows) * held_out_share)), len(rows) - 1)
    held_out, train = (sorted(part) for part in (order[:held_out_count], order[held_out_count:]))
    counted = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    return Corpus(
        name=str(path),
        source=f"{len(rows):,} texts of {path} with {len(names)} labels ({counted})",
        train=sentences.rows(train),
        held_out=sentences.rows(held_out),
        class_names=names,
    )


def _row(path: Path, line_number: int, line: str) -> tuple[str, list[str]]:
    where = f"{path} line {line_number}"
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: expected JSON, got {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise UsageError(f'{where}: expected an object with a "text", got {line[:80]}')
    labels = row.get("labels", [row["label"]] if "label" in row else None)
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise UsageError(f'{where}: expected "labels", a list of names, or one "label", got {line[:80]}')
    return row["text"], labels
