"""bert-multilabel with encoders other than BERT: one label each, any of several, frozen or not, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import edit_json, picture_checkpoint, save, text_checkpoint

from fitserve_training.cli import main
from fitserve_training.encoders.networks import TEXTS, find_heads
from fitserve_training.encoders.text_classifier import TextClassifier, _check_padding
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.runs import TrainedRun, open_run


def encoder(folder: Path, kind: str = "roberta") -> Path:
    import transformers

    torch.manual_seed(0)
    text_checkpoint(folder, "BertModel")
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    if kind == "roberta":
        config = transformers.RobertaConfig(vocab_size=60, max_position_embeddings=22, **layers)
        return save(transformers.RobertaForMaskedLM(config), folder)
    if kind == "fnet":
        del layers["num_attention_heads"]
        return save(transformers.FNetModel(transformers.FNetConfig(vocab_size=60, **layers)), folder)
    distil = {"n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 16, "max_position_embeddings": 20}
    return save(transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=60, **distil)), folder)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "mood"])
        for i in range(24):
            words = " ".join(f"w{40 + (i * 7 + place) % 15}" for place in range(i % 5))
            writer.writerow([i, f"{words} w{20 + i % 2} w30", ("good", "bad")[i % 2]])
    return path


def trained(weights: Path, reviews: Path, run_dir: Path, **changes: Any) -> TrainedRun:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    values = {"data.name": str(reviews), "data.text": "review", "data.label": "mood", "data.max_length": 12}
    values |= {"model.weights": str(weights), "threads": 1, "batch_size": 4, "epochs": 2, "lr": 1e-3}
    return open_run(train(Request("bert-multilabel", run_dir, changes={**values, **dotted}), lambda _line: None))


@pytest.mark.parametrize(("kind", "length"), [("roberta", 20), ("distilbert", 20)])
def test_one_label_each_is_learned_and_the_run_opens_alone(
    kind: str, length: int, reviews: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    weights = encoder(tmp_path / "weights", kind)
    with pytest.raises(UsageError, match=rf"data\.max_length': expected at most the {length} tokens that .* got 21"):
        trained(weights, reviews, tmp_path / "run", data__max_length=21)

    run = trained(weights, reviews, tmp_path / "run", lr=1e-2, epochs=12, clip_norm=1.0, precision="bfloat16")
    shutil.rmtree(weights)

    held_out = run.held_out()
    logits = run.module(*(torch.from_numpy(array) for array in held_out.inputs.values()))
    assert (logits.argmax(dim=1).numpy() == held_out.labels).all()
    assert run.output_names == ("logits",)
    assert run.task.class_names == ("bad", "good")
    assert set(run.extra_files) == {"tokenizer.json", "encoder.json"}
    tokens = Tokenizer.from_buffer(run.extra_files["tokenizer.json"]).encode_batch(["w20 " * 30, "w21"])
    assert [len(each.ids) for each in tokens] == [12, 12]


def test_frozen_trains_the_head_alone_all_of_it(reviews: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = encoder(tmp_path / "weights", "distilbert")
    start = {f"network.distilbert.{name}": value for name, value in load_file(weights / "model.safetensors").items()}

    frozen = trained(weights, reviews, tmp_path / "frozen", model__frozen=True).module.state_dict()
    tuned = trained(weights, reviews, tmp_path / "tuned").module.state_dict()

    encoders = [{name: value for name, value in state.items() if ".distilbert." in name} for state in (frozen, tuned)]
    assert encoders[0].keys() == start.keys()
    assert all(torch.equal(value, start[name]) for name, value in encoders[0].items())
    assert not all(torch.equal(value, start[name]) for name, value in encoders[1].items())
    assert find_heads("here", {"model_type": "distilbert"}, TEXTS) == ("pre_classifier", "classifier")
    for name in ("pre_classifier", "classifier"):
        assert not torch.equal(frozen[f"network.{name}.weight"], tuned[f"network.{name}.weight"])


def test_several_labels_are_served_as_probabilities(tmp_path: Path) -> None:
    rows = [{"text": f"w{20 + i % 3}", "labels": [["a", "b"], ["b"], []][i % 3]} for i in range(12)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = trained(
        encoder(tmp_path / "weights"), tmp_path / "t.jsonl", tmp_path / "run", data__text="text", data__label="labels"
    )
    found = run.module(torch.tensor([[20, 30]]), torch.ones(1, 2, dtype=torch.int64))
    assert run.output_names == ("probabilities",)
    assert ((found > 0) & (found < 1)).all()


def test_texts_that_are_cut_are_counted(reviews: Path, tmp_path: Path) -> None:
    said: list[str] = []
    values = {"data.name": str(reviews), "data.text": "review", "data.label": "mood", "data.max_length": 4}
    values |= {"model.weights": str(encoder(tmp_path / "weights")), "threads": 1, "epochs": 1}
    train(Request("bert-multilabel", tmp_path / "cut", changes=values), said.append)
    assert "9 of 24 texts are cut at 4 tokens (--set data.max_length=… for more of them)" in said[0]
    train(Request("bert-multilabel", tmp_path / "whole", changes=values | {"data.max_length": 6}), said.append)
    assert sum("are cut at" in line for line in said) == 1


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def of_pictures(folder: Path) -> None:
    shutil.rmtree(folder)
    picture_checkpoint(folder)


def sums_of_tokens(folder: Path) -> None:
    shutil.rmtree(folder)
    encoder(folder, "fnet")


def more_words(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["w60"] = 60
    (folder / "tokenizer.json").write_text(json.dumps(document))


def no_padding(folder: Path) -> None:
    edit_json(folder / "config.json", pad_token_id=None)


SLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, "expected model.safetensors, got pytorch_model.bin, which may run code"),
    "code": (lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "x.Net"}), "code of its own (auto_map)"),
    "pictures": (of_pictures, "got model_type 'vit', which is for pictures"),
    "no mask": (sums_of_tokens, "expected an encoder of texts with an attention mask"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "expected tokenizer.json or a vocabulary (vocab.txt, "),
    "another tokenizer": (more_words, "expected token ids below the vocab_size of the model, 60, got 60"),
    "no padding": (no_padding, "expected a tokenizer with a token for padding, found none"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_what_cannot_be_used_is_refused_with_a_sentence(
    slip: str, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = SLIPS[slip]
    weights = encoder(tmp_path / "weights")
    change(weights)
    arguments = ["--data", str(reviews), "--set", "data.text=review", "--set", "data.label=mood"]
    arguments += ["--set", "data.max_length=12", "--set", f"model.weights={weights}"]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("run*"))


def test_an_encoder_whose_answers_depend_on_padding_is_refused() -> None:
    class Answer:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    class Mean(torch.nn.Module):
        """Forgets its mask."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.config = type("Config", (), {"pad_token_id": 0, "vocab_size": 60})()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Answer:
            kept = input_ids * attention_mask if self.is_right else input_ids + attention_mask
            return Answer(kept.float().sum(dim=1, keepdim=True) * self.weight)

        is_right = True

    network = Mean()
    _check_padding("here", TextClassifier(network, (), False))
    network.is_right = False
    network.config.pad_token_id = 3
    with pytest.raises(UsageError, match="do not depend on padding, got logits that move by"):
        _check_padding("here", TextClassifier(network, (), False))
