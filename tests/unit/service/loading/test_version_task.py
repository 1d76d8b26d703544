"""The task that model.toml gives a bare ONNX file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests import builders
from tests.loader_world import load, refusal

from fitserve_contract.tasks import Scores, Task, TaskKind

CLASSES = {"task": "classification", "task_scores": "logits", "class_names": ("a", "b")}


def test_a_bare_file_has_the_task_of_model_toml(tmp_path: Path) -> None:
    served = load(builders.bare_version(tmp_path, "m", 1, builders.scaled()), **CLASSES)

    assert served.task == Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b"))
    assert 'class_names = ["a", "b"]  # model.toml\n' in served.effective_toml


def test_the_task_of_a_manifest_holds_and_is_said_to(tmp_path: Path) -> None:
    served = load(builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task()), **CLASSES)

    assert served.task == builders.classes_task()
    assert 'task = ""  # the manifest\'s task holds, classification' in served.effective_toml


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (builders.scaled(), {"task_output": "z"}, "model.toml: task_output: expected one of the outputs y, got 'z'"),
        (builders.two_in_two_out(), {}, "model.toml: task_output: expected one of the outputs "),
        (builders.scaled(width=3), {}, r"model.toml: output 'y': expected shape \(B, 2\) .*, got \(B, 3\); give one"),
        (
            builders.identity("INT64"),
            {},
            "task_output: expected an output of real scores, got 'y' of INT64",
        ),
        (
            builders.identity("FP32", ("B", 2, 2)),
            {},
            r"model.toml: output 'y': expected shape \(B, 2\) .*, got \(B, 2, 2\); .* by the task token_classification",
        ),
        (
            builders.identity("FP32", ("B", 2, 3)),
            {"task": "token_classification"},
            r"output 'y': expected shape \(B, S, 2\) .*, got \(B, 2, 3\); move the classes to the last axis",
        ),
    ],
)
def test_a_task_that_does_not_fit_the_file_is_refused(
    tmp_path: Path, content: bytes, keys: dict[str, str], message: str
) -> None:
    assert re.search(message, refusal(builders.bare_version(tmp_path, "m", 1, content), **CLASSES | keys))
