"""The user's texts: one label each or lists of them, as lines of JSON or a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.tasks import Scores, TaskKind
from fitserve_training.catalogue import recipe_for_data
from fitserve_training.cli import main
from fitserve_training.data.own.kinds import kind_of
from fitserve_training.data.own.texts import load_texts
from fitserve_training.data.sentences import Corpus
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.runs import TrainedRun, open_run

SMALL = {"model.layers": 1, "model.hidden_size": 32, "epochs": 1}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def of_labels(path: Path, labels: list[Any], key: str = "label") -> Path:
    return lines(path, [{"text": f"text {i}", key: label} for i, label in enumerate(labels)])


def loaded(path: Path, task: str = "auto", text: str = "text", label: str = "label") -> Corpus:
    return load_texts(path, text, label, task, 0.25, 0)


def trained(data: Path, run_dir: Path) -> TrainedRun:
    recipe = recipe_for_data(str(data))
    assert recipe == "bert-multilabel"
    return open_run(train(Request(recipe, run_dir, changes={"data.name": str(data), **SMALL}), lambda _line: None))


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "T.CSV"])
def test_texts_of_one_label_train_one_of_n(tmp_path: Path, name: str) -> None:
    rows = [(f"{word} day, {i}", label) for i in range(8) for word, label in (("good", 1), ("bad", 0), ("odd", 2))]
    path = tmp_path / name
    if name.lower().endswith(".csv"):
        path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    else:
        lines(path, [{"text": text, "label": label} for text, label in rows])

    run = trained(path, tmp_path / "run")

    assert (run.task.kind, run.task.scores, run.task.class_names) == (
        TaskKind.CLASSIFICATION,
        Scores.LOGITS,
        ("0", "1", "2"),
    )
    held_out = run.held_out()
    assert sorted(set(held_out.labels.tolist())) == [0, 1, 2], "every class is held out"
    outputs = run.module(*(torch.from_numpy(array) for array in held_out.inputs.values()))
    assert outputs.shape == (len(held_out.labels), 3)
    assert (outputs < 0).any(), "logits, which the softmax of whoever asks turns into probabilities"


def test_lists_of_labels_train_any_of_n(tmp_path: Path) -> None:
    run = trained(of_labels(tmp_path / "t.jsonl", [["a"], ["b"], ["a", "b"], []] * 4, "labels"), tmp_path / "run")
    assert (run.task.kind, run.output_names) == (TaskKind.MULTI_LABEL, ("probabilities",))
    assert run.held_out().labels.shape == (3, 2)
    outputs = run.module(*(torch.from_numpy(array) for array in run.held_out().inputs.values()))
    assert ((outputs > 0) & (outputs < 1)).all()


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=20), st.integers(0, 9))
def test_every_text_keeps_its_label(labels: list[str], seed: int) -> None:
    import tempfile

    every = [*labels, "a", "a", "b", "b", "c", "c"]
    with tempfile.TemporaryDirectory() as folder:
        path = of_labels(Path(folder) / "t.jsonl", [f" {label} " for label in every])
        corpus = load_texts(path, "text", "label", "auto", 0.3, seed)
    assert corpus.class_names == ("a", "b", "c")
    found = {
        text: corpus.class_names[int(target)]
        for part in (corpus.train, corpus.held_out)
        for text, target in zip(part.texts, part.labels, strict=True)
    }
    assert found == {f"text {i}": label for i, label in enumerate(every)}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 10, 9], ("9", "10")),
        ([1, "1", 2.0, " 2"], ("1", "2")),
        ([True, False, True, False], ("false", "true")),
        (["yes", "yes ", "no", " no"], ("no", "yes")),
    ],
)
def test_labels_are_words_or_whole_numbers(tmp_path: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    corpus = loaded(of_labels(tmp_path / "t.jsonl", labels))
    assert corpus.class_names == names
    assert (
        corpus.note == "task classification, for every text has one label (--set data.task=multi-label for any of them)"
    )


def test_the_task_that_is_set_is_followed(tmp_path: Path) -> None:
    single = of_labels(tmp_path / "s.jsonl", ["a", "b"] * 4)
    lists = of_labels(tmp_path / "l.jsonl", [["a"], ["b"]] * 4, "labels")
    assert loaded(single, "multi-label").train.labels.shape == (6, 2)
    assert loaded(lists, "classification").train.labels.shape == (6,)
    assert loaded(lists).train.labels.shape == (6, 2)
    several = of_labels(tmp_path / "m.jsonl", [["a"], ["a", "b"]] * 4, "labels")
    with pytest.raises(UsageError, match=r"m\.jsonl line 2: expected one label for data\.task=classification, got 2"):
        loaded(several, "classification")
    with pytest.raises(UsageError, match=r"'data\.task': expected one of auto, classification, multi-label"):
        loaded(single, "regression")


def test_line_separators_in_a_text_and_a_byte_order_mark_are_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [json.dumps({"text": f"one\u2028two {i}", "label": i % 2}, ensure_ascii=False) for i in range(6)]
    path.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    assert len(loaded(path).train.texts) == 4


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("text,label", "text"),
        (" label , text ", "text"),
        ("id,text,label", "text"),
        (",text,label", "text"),
        ("text,label,stars", "table"),
        ("a,label", "table"),
        ("", "table"),
    ],
)
def test_a_table_of_text_and_label_alone_is_texts(tmp_path: Path, header: str, kind: str) -> None:
    (tmp_path / "t.csv").write_text("\ufeff" + header + "\n1,2,3\n", encoding="utf-8")
    assert kind_of(tmp_path / "t.csv") == kind


def test_other_columns_are_named_by_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("review,stars,mood\n" + "".join(f"nice {i},{i},{'ab'[i % 2]}\n" for i in range(8)))
    columns = ["--set", "data.text=review", "--set", "data.label=mood"]
    small = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    assert main(["--data", str(path), "--run-dir", str(tmp_path / "run"), *columns, *small]) == 0
    assert "8 texts of" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"expected --set data\.text=COLUMN, the columns are review, stars, mood"):
        loaded(path, label="mood")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a", "label": null}', 'line 5: expected "label", a name or a whole number, or "labels", a list'),
        ('{"text": "a", "label": 1.5}', "line 5: expected"),
        ('{"text": "a", "label": {}}', "line 5: expected"),
        ('{"text": "a"}', "line 5: expected"),
        ('{"text": "a", "label": " "}', "line 5: expected a label, got ' '"),
        ('{"text": " ", "label": "a"}', "line 5: expected a text, got ' '"),
        ('{"text": 3, "label": "a"}', 'line 5: expected an object with a "text"'),
        ('{"text"', "line 5: expected JSON"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = of_labels(tmp_path / "t.jsonl", ["a", "b"] * 2)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UsageError) as caught:
        loaded(path)
    assert expected in str(caught.value)


def test_a_label_of_one_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="class 'c': expected at least two examples, got 1"):
        loaded(of_labels(tmp_path / "t.jsonl", ["a", "a", "b", "b", "c"]))


@pytest.mark.parametrize(
    "row", [{"text": "bad \ud800 half", "label": "a"}, {"text": "bad", "labels": ["a", "n\udfff"]}]
)
def test_half_a_character_is_named_with_its_line(tmp_path: Path, row: dict[str, Any]) -> None:
    path = of_labels(tmp_path / "t.jsonl", ["a", "b"] * 4)
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=r"line 9: expected characters of Unicode, got half a surrogate pair, '\\ud"):
        loaded(path)


def test_json_that_is_nested_too_deep_is_named_with_its_line(tmp_path: Path) -> None:
    path = of_labels(tmp_path / "t.jsonl", ["a", "b"] * 4)
    path.write_text(path.read_text() + "[" * 100_000 + "\n")
    with pytest.raises(UsageError, match="line 9: expected JSON, got "):
        loaded(path)
