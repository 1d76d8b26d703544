"""What config.json and preprocessor_config.json say is checked, and each refusal names a cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import edit_json, save, text_checkpoint

from fitserve_contract.checkpoints import max_token_count, open_checkpoint
from fitserve_contract.tasks import TaskKind
from fitserve_exporters.errors import ExportError
from fitserve_exporters.huggingface.loading import CheckpointTask, load
from fitserve_exporters.huggingface.picture_check import check_preprocessing
from fitserve_exporters.huggingface.publish_checkpoint import publish_checkpoint

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a list of names": ({"id2label": ["a", "b"]}, "id2label: expected a mapping of class index to name"),
    "a name that is none": ({"id2label": {"0": None, "1": "b"}}, "id2label: expected a mapping.*name every class"),
    "names by name": ({"id2label": {"good": "0", "bad": "1"}}, "id2label: expected a mapping of class index"),
    "a gap": ({"id2label": {"0": "a", "2": "b"}}, "number them without a gap"),
    "more names": ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "other sizes than the weights: look at num_labels"),
    "fewer words": ({"vocab_size": 50}, "other sizes than the weights: look at num_labels, id2label and vocab_size"),
    "a model of tomorrow": ({"model_type": "of-tomorrow"}, "pip install --upgrade transformers"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path) -> Path:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_config_that_does_not_fit_is_refused_with_a_cure(folder: Path, name: str) -> None:
    values, message = CONFIGS[name]
    edit_json(folder / "config.json", **values)
    with pytest.raises(ExportError, match=message):
        load(open_checkpoint(folder), CheckpointTask.TEXT)


@pytest.mark.parametrize("keep", [0, 0.5])
def test_weights_that_are_cut_short_are_fetched_again(folder: Path, keep: float) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ExportError, match="fetch all files of it again"):
        load(open_checkpoint(folder), CheckpointTask.TEXT)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (None, TaskKind.REGRESSION),
        ("regression", TaskKind.REGRESSION),
        ("multi_label_classification", TaskKind.MULTI_LABEL),
    ],
)
def test_one_class_is_what_the_problem_type_says(tmp_path: Path, problem: str | None, kind: TaskKind) -> None:
    folder = text_checkpoint(tmp_path, num_labels=1, problem_type=problem)
    task = load(open_checkpoint(folder), CheckpointTask.TEXT).task
    assert task is not None
    assert task.kind is kind


def test_decoder_without_a_padding_token_is_told_which_key(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=20)
    text_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save(transformers.GPT2ForSequenceClassification(config), tmp_path)
    assert max_token_count(open_checkpoint(tmp_path)) == 20
    with pytest.raises(ExportError, match=r"set pad_token_id in config\.json"):
        publish_checkpoint(tmp_path, tmp_path / "repository", "m")


FACTS = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3}
PICTURES: dict[str, tuple[dict[str, Any], str]] = {
    "no deviation": ({"image_std": [0, 0, 0]}, "image_std: expected a number above 0, got '0'"),
    "one mean of three": ({"image_mean": [0.5, 0.5]}, "image_mean: expected 3 numbers, one per channel"),
    "no mean": ({"image_mean": None}, "image_mean: expected 3 numbers"),
    "a mean in words": ({"image_mean": "half"}, "image_mean: expected 3 numbers"),
    "a factor in words": ({"rescale_factor": "1/255"}, "rescale_factor: expected a number above 0, got '1/255'"),
    "another size": (
        {"do_resize": True, "size": {"height": 64, "width": 64}},
        "size: expected 32 by 32, the pictures of the model, got 64 by 64",
    ),
    "another crop": (
        {"do_center_crop": True, "crop_size": {"height": 30, "width": 32}},
        "crop_size: expected 32 by 32, .* got 30 by 32",
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_preprocessing_that_does_not_fit_is_refused(name: str) -> None:
    values, message = PICTURES[name]
    with pytest.raises(ExportError, match=message):
        check_preprocessing(FACTS | {"image_std": [0.5] * 3} | values, 3, (32, 32))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image_mean": 0.5, "image_std": [0.5]},
        {"do_normalize": False, "image_std": None},
        {"do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32},
        {"do_resize": True, "size": {"height": 40, "width": 40}, "do_center_crop": True,
         "crop_size": {"height": 32, "width": 32}},
    ],
)  # fmt: skip
def test_preprocessing_that_fits_is_taken(values: dict[str, Any]) -> None:
    check_preprocessing(json.loads(json.dumps(FACTS | {"image_std": [0.5] * 3} | values)), 3, (32, 32))
