"""Checkpoints that are refused: one sentence, exit code 2, nothing published, no code run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoints import PREFIX, edit_json, save, sentence_checkpoint, text_checkpoint

from fitserve_exporters.cli import main


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **values)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_to_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def headless(folder: Path) -> None:
    """Leaves a base model under the name of a classifier: transformers would draw the head at random."""
    import transformers

    save(transformers.BertModel.from_pretrained(folder), folder)
    edit_json(folder / "config.json", architectures=["BertForSequenceClassification"])


def torn(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def no_tokenizer_but_code(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.Y", None]}}))


def more_words(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["w60"] = 60
    (folder / "tokenizer.json").write_text(json.dumps(document))


AUTO_MAP = {"AutoModelForSequenceClassification": "modeling.Net"}

SLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (without("config.json"), "expected config.json, found none"),
    "no weights": (without("model.safetensors"), "expected model.safetensors or model.safetensors.index.json, found"),
    "pickle": (pickled, "expected model.safetensors, got pytorch_model.bin, which may run code"),
    "missing shard": (broken_index, "expected the shard model-00001-of-00002.safetensors, found none"),
    "shard elsewhere": (index_to_elsewhere, "expected names of safetensors files beside it, got '../other"),
    "torn weights": (torn, "does not load it as text-classification"),
    "code": (with_config(auto_map=AUTO_MAP), "got code of its own (auto_map), which is never run"),
    "unknown architecture": (with_config(model_type="of-my-own"), "does not load it as text-classification"),
    "another task": (with_config(architectures=["BertForMaskedLM"]), "got architecture BertForMaskedLM"),
    "no architecture": (with_config(architectures=None), "got architecture none"),
    "no model type": (with_config(model_type=None), "expected a model_type, found none"),
    "quantized": (with_config(quantization_config={"bits": 4}), "got quantized ones (quantization_config)"),
    "no head": (headless, "missing classifier.bias, classifier.weight; they would be random"),
    "adapter": (adapter, "expected a whole model, got an adapter beside it"),
    "no tokenizer": (without("tokenizer.json"), "expected tokenizer.json or a vocabulary (vocab.txt, "),
    "another tokenizer": (more_words, "expected token ids below the vocab_size of the model, 60, got 60"),
    "code of a tokenizer": (no_tokenizer_but_code, "expected a tokenizer of transformers, got code of its own"),
    "other shapes": (with_config(hidden_size=32), "text-classification"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "config.json': expected JSON"),
    "labels": (with_config(id2label={"0": "a", "2": "b"}), "id2label: expected one name for each of the"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_end_with_a_sentence(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], slip: str
) -> None:
    change, expected = SLIPS[slip]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    assert main(["hf", str(folder), "--repository", str(tmp_path / "repository"), "--name", "m"]) == 2
    seen = capsys.readouterr()
    assert expected in seen.err
    assert seen.err.startswith("fitserve-export: ")
    assert len(seen.err.splitlines()) == 1
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("pooling", "others", "expected"),
    [
        ({"pooling_mode_lasttoken": True}, (), "expected a pooling of cls, max, mean"),
        ({}, (), "expected a pooling of cls, max, mean, mean_sqrt_len_tokens, got none"),
        ({"pooling_mode_mean_tokens": True}, ("WordWeights",), "expected Dense or Normalize behind the pooling"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "config.json': expected JSON, got"),
    ],
)
def test_sentence_models_of_other_modules_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pooling: dict[str, object],
    others: tuple[str, ...],
    expected: str,
) -> None:
    folder = sentence_checkpoint(tmp_path / "checkpoint", pooling, *others)
    assert main(["hf", str(folder), "--repository", str(tmp_path / "repository"), "--name", "m"]) == 2
    assert expected in capsys.readouterr().err


def test_a_module_of_other_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sentence_checkpoint(tmp_path / "checkpoint", {"pooling_mode_mean_tokens": True})
    modules = (folder / "modules.json").read_text().replace(f"{PREFIX}.Pooling", "my_code.Pooling")
    (folder / "modules.json").write_text(modules)
    assert main(["hf", str(folder), "--repository", str(tmp_path / "repository"), "--name", "m"]) == 2
    assert "got code of its own ('my_code.Pooling')" in capsys.readouterr().err


def test_what_is_not_there_is_not_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for source in ("someone/absent-checkpoint", str(tmp_path / "absent")):
        assert main(["hf", source, "--repository", str(tmp_path / "repository"), "--name", "m"]) == 2
        assert f"checkpoint '{source}': expected a directory, or the id" in capsys.readouterr().err
    assert main(["hf", __file__, "--repository", str(tmp_path / "repository"), "--name", "m"]) == 2
    assert "expected the directory of a checkpoint, got a file" in capsys.readouterr().err
    assert main(["hf", str(tmp_path), "--repository", str(tmp_path / "repository"), "--name", "../m"]) == 2
