"""The user's texts with their labels, as lines of JSON or a table. Shapes: N texts, C labels.

A text has one label, {"text": "…", "label": "a"}, or any of several, {"text": "…", "labels": ["a", "b"]}; a table has a
column for each of text and label.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fitserve_contract.csv_table import FIRST_LINE
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import check_classes, check_present
from fitserve_training.data.own.table_settings import label_place
from fitserve_training.data.own.tables import read_rows
from fitserve_training.data.own.targets import AUTO, CLASSIFICATION, MULTI_LABEL, check_task, class_targets
from fitserve_training.data.sentences import Corpus, Sentences, multi_hot
from fitserve_training.errors import UsageError

LABELS = "labels"
_FEWEST = 4


@dataclass(frozen=True)
class _Row:
    where: str
    text: str
    labels: tuple[str, ...]
    is_single: bool


def load_texts(path: Path, text: str, label: str, task: str, held_out_share: float, seed: int) -> Corpus:
    """Reads a .jsonl or .csv file.

    Args:
        path: UTF-8.
        text: Key or column of the text.
        label: Key or column of its one label, a string or a whole number; space around it counts for nothing.
        task: `classification` (one of C), `multi-label` (any of C), or `auto`: one of C where every text has one label
            that is no list.
        held_out_share: Share of the texts held out.
        seed: Decides which.

    Raises:
        UsageError: a line is not as said above, or there are too few lines or labels; the message names the line.
    """
    check_present(path)
    check_task(task, (AUTO, CLASSIFICATION, MULTI_LABEL))
    rows = (_table_rows if path.suffix.lower() == ".csv" else _json_rows)(path, text, label)
    if len(rows) < _FEWEST:
        raise UsageError(f"data {path}: expected at least {_FEWEST} texts, got {len(rows)}")
    sentences, names, note = _labelled(path, rows, task)
    train, held_out = hold_out((torch.arange(len(rows)),), sentences.labels, held_out_share, seed)
    counted = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    return Corpus(
        name=str(path),
        source=f"{len(rows):,} texts of {path} with {len(names)} labels ({counted})",
        train=sentences.rows(train.inputs[0].tolist()),
        held_out=sentences.rows(held_out.inputs[0].tolist()),
        class_names=names,
        note=note,
    )


def _labelled(path: Path, rows: Sequence[_Row], task: str) -> tuple[Sentences, tuple[str, ...], str]:
    chosen, note = _task(rows) if task == AUTO else (task, f"task {task}, as data.task says")
    texts = tuple(row.text for row in rows)
    if chosen == MULTI_LABEL:
        counts = Counter(label for row in rows for label in row.labels)
        check_classes(path, dict(counts))
        names = tuple(sorted(counts))
        return Sentences(texts, multi_hot([row.labels for row in rows], names)), names, note
    for row in rows:
        if len(row.labels) != 1:
            raise UsageError(f"{row.where}: expected one label for data.task=classification, got {len(row.labels)}")
    targets, names = class_targets(path, [row.labels[0] for row in rows])
    return Sentences(texts, targets), names, note


def _task(rows: Sequence[_Row]) -> tuple[str, str]:
    if all(row.is_single for row in rows):
        change = f"--set data.task={MULTI_LABEL} for any of them"
        return CLASSIFICATION, f"task {CLASSIFICATION}, for every text has one label ({change})"
    change = f"--set data.task={CLASSIFICATION} for one of them"
    return MULTI_LABEL, f"task {MULTI_LABEL}, for texts have lists of labels ({change})"


def _table_rows(path: Path, text: str, label: str) -> list[_Row]:
    table = read_rows(path)
    header, rows = table.header, table.rows
    place = label_place(path, header, label)
    if text.strip() not in header:
        raise UsageError(f"data {path}: expected --set data.text=COLUMN, the columns are {', '.join(header)}")
    text_place = header.index(text.strip())
    return [
        _checked(f"{path} line {line}", row[text_place], [row[place]], True)
        for line, row in enumerate(rows, start=FIRST_LINE)
    ]


def _json_rows(path: Path, text: str, label: str) -> list[_Row]:
    try:
        # Not splitlines: JSON's strings may hold what Unicode calls a line's end.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data {path}: expected lines of JSON in UTF-8, got {error}") from None
    return [
        _json_row(f"{path} line {number}", line, text, label)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _json_row(where: str, line: str, text: str, label: str) -> _Row:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: expected JSON, got {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get(text), str):
        raise UsageError(f'{where}: expected an object with a "{text}", got {line[:80]}')
    found = row.get(LABELS, row.get(label))
    several: list[Any] | None = found if isinstance(found, list) else None
    labels = [_label_text(each) for each in ([found] if several is None else several)]
    if None in labels:
        raise UsageError(
            f'{where}: expected "{label}", a name or a whole number, or "{LABELS}", a list of them, got {line[:80]}'
        )
    return _checked(where, row[text], [each for each in labels if each is not None], several is None)


def _label_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return value if isinstance(value, str) else None


def _checked(where: str, text: str, labels: Sequence[str], is_single: bool) -> _Row:
    if not text.strip():
        raise UsageError(f"{where}: expected a text, got {text!r}")
    for part in (text, *labels):
        if part != (sound := part.encode(errors="replace").decode()):
            place = next(place for place, (found, other) in enumerate(zip(part, sound, strict=True)) if found != other)
            raise UsageError(
                f"{where}: expected characters of Unicode, got half a surrogate pair, {part[place]!r}, at character "
                f"{place + 1} of {part[max(0, place - 20) : place + 1]!r}; write the file anew in UTF-8"
            )
    trimmed = tuple(label.strip() for label in labels)
    if "" in trimmed:
        raise UsageError(f"{where}: expected a label, got {labels[trimmed.index('')]!r}")
    return _Row(where, text, trimmed, is_single)
