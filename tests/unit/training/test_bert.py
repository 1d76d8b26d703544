"""bert-multilabel: tokens, buckets, padding, frozen or not, weights from a directory, and what travels with a run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fitserve_training.config import Scalar, Values
from fitserve_training.data import sentences
from fitserve_training.data.buckets import WIDTH, bucketed_batches
from fitserve_training.data.places import Places
from fitserve_training.data.tokens import own_tokenizer
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.launch import Request, train
from fitserve_training.objectives import MultiLabel
from fitserve_training.runs import open_run

TINY: Values = {"data.name": "bundled", "epochs": 4, "lr": 1e-2, "model.layers": 1, "model.hidden_size": 32}


def trained(run_dir: Path, **changes: Scalar) -> Path:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    # A checkpoint says how large it is; settings that would be ignored are refused.
    small = {key: value for key, value in TINY.items() if "model.weights" not in dotted or key[:6] != "model."}
    return train(Request("bert-multilabel", run_dir, changes={**small, **dotted}), lambda _line: None)


def small_checkpoint(folder: Path) -> Path:
    """A BERT of random weights with its tokenizer, as transformers saves one."""
    from transformers import BertConfig, BertModel

    tokenizer = own_tokenizer(sentences.load_bundled().train.texts, 500, 64)
    torch.manual_seed(3)
    network = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(network).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(0, 2**31),
)
def test_every_example_is_in_one_batch_and_only_the_last_is_short(lengths: list[int], size: int, seed: int) -> None:
    batches = bucketed_batches(torch.tensor(lengths), size, torch.Generator().manual_seed(seed))

    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= size
    buckets = [{(lengths[i] - 1) // WIDTH for i in batch.tolist()} for batch in batches]
    assert sum(len(found) > 1 for found in buckets) <= -(-50 // WIDTH)


def test_the_bundled_sentences_are_clean() -> None:
    corpus = sentences.load_bundled()
    texts = corpus.train.texts + corpus.held_out.texts
    assert len(set(texts)) == len(texts) >= 300
    for part in (corpus.train, corpus.held_out):
        assert part.labels.any(dim=1).all()
        assert part.labels.any(dim=0).all(), "every label is on both sides"
    assert (torch.cat((corpus.train.labels, corpus.held_out.labels)).sum(dim=1) > 1).any()


def test_padding_never_changes_an_answer(tmp_path: Path) -> None:
    run = open_run(trained(tmp_path / "run"))
    ids_BS, mask_BS = (torch.from_numpy(array[:8]) for array in run.held_out().inputs.values())
    longest = int(mask_BS.sum(dim=1).max())

    def padded(length: int, token: int) -> Tensor:
        extra = (8, length - longest)
        ids = torch.cat((ids_BS[:, :longest], torch.full(extra, token)), dim=1)
        return run.module(ids, torch.cat((mask_BS[:, :longest], torch.zeros(extra, dtype=torch.int64)), dim=1))

    plain = padded(longest, 0)
    torch.testing.assert_close(padded(longest + 30, 0), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(padded(longest + 30, 7), plain, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(run.module(ids_BS, torch.ones_like(mask_BS)), plain, atol=1e-6)
    assert ((plain > 0) & (plain < 1)).all()


def test_the_run_opens_alone_and_its_tokenizer_travels(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    weights = small_checkpoint(tmp_path / "weights")
    run_dir = trained(tmp_path / "run", model__weights=str(weights), data__max_length=20)
    for path in weights.iterdir():
        path.unlink()

    run = open_run(run_dir)

    assert set(run.extra_files) == {"tokenizer.json", "bert_config.json"}
    encoded = Tokenizer.from_buffer(run.extra_files["tokenizer.json"]).encode_batch(["Thank you", "so much " * 30])
    assert [len(each.ids) for each in encoded] == [20, 20]
    assert sum(encoded[0].attention_mask) == 4
    assert run.task.class_names == sentences.EMOTIONS


def test_frozen_trains_the_last_layer_alone(tmp_path: Path) -> None:
    from transformers import BertModel

    weights = small_checkpoint(tmp_path / "weights")
    start = dict(BertModel.from_pretrained(weights).state_dict())

    def encoder_of(run_dir: Path) -> dict[str, Tensor]:
        state = open_run(run_dir).module.state_dict()
        return {name.removeprefix("model.encoder."): value for name, value in state.items() if ".encoder." in name}

    frozen = encoder_of(trained(tmp_path / "frozen", model__weights=str(weights), model__frozen=True))
    tuned = encoder_of(trained(tmp_path / "tuned", model__weights=str(weights), lr=1e-3))

    assert all(torch.equal(frozen[name], value) for name, value in start.items())
    assert not all(torch.equal(tuned[name], value) for name, value in start.items())


def test_a_small_bert_says_what_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    train(Request("bert-multilabel", tmp_path / "run", changes=TINY), said.append)
    assert "a small BERT from scratch, 1 layers of hidden size 32, which is not a pretrained one" in said[0]
    assert "309 bundled sentences" in said[0]
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    held_out = sentences.load_bundled().held_out.texts
    assert any(f"<td>{text.lower()}</td>" in report for text in held_out if text.replace(" ", "").rstrip(".").isalpha())
    assert "[CLS]" not in report


@pytest.mark.slow
def test_a_hub_id_is_taken_from_the_hubs_cache_without_a_network(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "home" / "hub" / "models--team--small-bert"
    small_checkpoint(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    command = [sys.executable, "-m", "fitserve_training.cli", "bert-multilabel", "--data", "bundled"]
    command += ["--set", "epochs=4", "--set", "lr=1e-2", "--device", "cpu"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def run(weights: str, name: str) -> subprocess.CompletedProcess[str]:
        given = [*command, "--set", f"model.weights={weights}", "--run-dir", str(tmp_path / name)]
        return subprocess.run(given, env=environment, capture_output=True, text=True, check=False)

    found, missing = run("team/small-bert", "run"), run("team/other-bert", "other")

    assert (found.returncode, found.stderr) == (0, "")
    assert open_run(tmp_path / "run").module.state_dict()["model.linear.weight"].shape == (28, 32)
    cache = tmp_path / "home" / "hub"
    assert missing.returncode == 2
    assert missing.stderr == (
        f"fitserve-train: model.weights team/other-bert: no directory here, its checkpoint is not in the hub's cache "
        f"{cache}, and the hub did not give it: HF_HUB_OFFLINE is set\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run"]


@pytest.mark.parametrize("weights", ["./nowhere", "/nowhere", "a/b/c", "two words", "file"])
def test_a_path_without_a_checkpoint_is_no_hub_id(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(UsageError, match=r"expected a checkpoint's directory or a hub id \(OWNER/NAME\)"):
        trained(tmp_path / "run", model__weights=weights)


def test_a_checkpoint_lacks_no_weight_but_its_poolers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = small_checkpoint(tmp_path / "bert")
    file = checkpoint / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if not name.startswith("pooler.")}
    save_file(weights, file, metadata={"format": "pt"})

    trained(tmp_path / "run", model__weights=str(checkpoint))

    assert "has no pooler, which starts from random weights\n" in capsys.readouterr().err
    save_file({name: value for name, value in weights.items() if "word" not in name}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"embeddings\.word_embeddings\.weight is not there"):
        trained(tmp_path / "other", model__weights=str(checkpoint))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"bert: its weights cannot be read: "):
        trained(tmp_path / "other", model__weights=str(checkpoint))
    assert not list(tmp_path.glob("other*"))


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"model\.weights .*empty: ") as caught:
        trained(tmp_path / "run", model__weights=str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    other = small_checkpoint(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(
        UsageError, match=r"expected an encoder of texts with an attention mask, .* got model type gpt2"
    ):
        trained(tmp_path / "run", model__weights=str(other))
    assert not (tmp_path / "run.unfinished").exists()


def test_goemotions_is_read_from_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / sentences.FOLDER
    folder.mkdir()
    rows = "I like it\t0,17\tab\nA text with a\ttab\t27\tcd\n"
    for name in sentences.CHECKSUMS:
        (folder / name).write_text(rows)
    digest = hashlib.sha256(rows.encode()).hexdigest()
    monkeypatch.setattr(sentences, "CHECKSUMS", dict.fromkeys(sentences.CHECKSUMS, digest))
    places = Places(tmp_path, tmp_path / "cache")

    assert sentences.choose("auto", places) == "goemotions"
    corpus = sentences.load_goemotions(places, 1)

    assert corpus.train.texts == ("I like it",)
    assert corpus.held_out.texts[1] == "A text with a\ttab"
    assert corpus.train.labels[0].nonzero().flatten().tolist() == [0, 17]
    with pytest.raises(UsageError, match="goemotions is not at hand"):
        sentences.load_goemotions(Places(None, tmp_path / "cache"), 0)


def test_multi_label_figures_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    stream = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 5, generator=stream), torch.rand(60, 5, generator=stream) > 0.6
    objective = MultiLabel(5)
    sums = sum(
        objective.sums(logits[rows], labels[rows], objective.loss(logits[rows], labels[rows]))
        for rows in (slice(0, 25), slice(25, 60))
    )
    assert isinstance(sums, Tensor)
    found = objective.metrics(sums.tolist(), 60)

    predicted = logits >= 0
    assert found["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["exact_match"] == (predicted == labels).all(dim=1).double().mean().item()


def test_form_survives_its_file(tmp_path: Path) -> None:
    form = Form(("a", "b"), ((50,), (50,)), (torch.int64, torch.int64), (2,), {"tokenizer.json": b"{}"})
    form.write(tmp_path)
    assert Form.read(tmp_path) == form
    (tmp_path / "files" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"form\.json: cannot be read"):
        Form.read(tmp_path)
