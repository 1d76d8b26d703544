"""Pretrained encoders the whole way: fine-tuned, exported, served, predicted and evaluated with torch's own counts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.checkpoints import picture_checkpoint, save, text_checkpoint
from tests.wire.serving import serving, url

from fitserve_client import Client
from fitserve_client import cli as client
from fitserve_contract.manifest import read_manifest
from fitserve_exporters import cli as exporter
from fitserve_training import cli as trainer
from fitserve_training.runs import open_run

QUICK = ["--set", "threads=1", "--set", "batch_size=4"]


def check_answers(server_url: str, name: str, run_dir: Path) -> None:
    """Holds what is served to be what torch says of the held-out set, example by example and counted."""
    run = open_run(run_dir)
    held_out = run.held_out()
    with torch.inference_mode():
        logits = run.module(*(torch.from_numpy(array) for array in held_out.inputs.values())).numpy()
    right = int((logits.argmax(axis=1) == held_out.labels).sum())
    with Client(server_url) as open_client:
        served = open_client.predict(name, held_out.inputs).array
        sent = open_client.evaluate(name, held_out.inputs, held_out.labels, batch_size=3)
        carried = open_client.evaluate_held_out(name)
    np.testing.assert_allclose(served, logits, rtol=1e-4, atol=1e-4)
    for evaluation in (sent, carried):
        assert round(evaluation.figures["accuracy"] * len(logits)) == right
        assert evaluation.figures["loss"] == pytest.approx(
            torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(held_out.labels)).item(),
            rel=1e-4,
        )


def test_an_encoder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(10):
            pixels = random.integers(0, 100, (40, 30, 3)).astype(np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    weights, run, repository = picture_checkpoint(tmp_path / "vit"), tmp_path / "run", tmp_path / "repository"
    settings = ["--set", f"model.weights={weights}", "--set", "lr=1e-3", "--set", "epochs=4", *QUICK]

    assert trainer.main(["--data", str(tmp_path / "pictures"), "--run-dir", str(run), *settings]) == 0
    assert "encoder vit, pictures resized to 16 x 16 (bilinear)" in capsys.readouterr().out
    assert exporter.main([str(run), "--repository", str(repository), "--name", "colours"]) == 0

    manifest = read_manifest(repository / "colours" / "1")
    assert manifest is not None
    assert [spec.shape for spec in manifest.inputs] == [("batch", 3, 16, 16)]
    assert manifest.files_for_callers == ("encoder.json", "preprocessor_config.json")
    with serving(repository) as server:
        check_answers(url(server), "colours", run)
        file = tmp_path / "noise.png"
        Image.fromarray(random.integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(file)
        capsys.readouterr()
        assert client.main(["predict", "colours", str(file), "--server", url(server), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)["answers"][0]
    shares = {}
    for filter_ in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        pixels_CHW = np.asarray(Image.open(file).resize((16, 16), filter_)).transpose(2, 0, 1).astype(np.float32) / 255
        shares[filter_] = float(open_run(run).module(torch.from_numpy(pixels_CHW[None])).softmax(dim=1).max())
    assert answer[0]["probability"] == pytest.approx(shares[Image.Resampling.BILINEAR], abs=1e-5)
    assert abs(shares[Image.Resampling.BICUBIC] - shares[Image.Resampling.BILINEAR]) > 1e-4


@pytest.mark.slow
def test_an_encoder_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    torch.manual_seed(0)
    weights, run, repository = text_checkpoint(tmp_path / "encoder", "BertModel"), tmp_path / "run", tmp_path / "models"
    config = transformers.RobertaConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=22,
    )
    save(transformers.RobertaForMaskedLM(config), weights)
    with (tmp_path / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(i, f"w{40 + i % 4} " * (i % 5) + f"w{20 + i % 3}", f"mood {i % 3}") for i in range(45)]
        csv.writer(file).writerows([("id", "review", "mood"), *rows])
    settings = ["--set", "data.text=review", "--set", "data.label=mood", "--set", f"model.weights={weights}"]
    settings += ["--set", "data.max_length=16", "--set", "lr=3e-3", "--set", "epochs=25", *QUICK]

    assert trainer.main(["--data", str(tmp_path / "reviews.csv"), "--run-dir", str(run), *settings]) == 0
    assert exporter.main([str(run), "--repository", str(repository), "--name", "moods"]) == 0

    manifest = read_manifest(repository / "moods" / "1")
    assert manifest is not None
    assert manifest.files_for_callers == ("encoder.json", "tokenizer.json")
    with serving(repository) as server:
        check_answers(url(server), "moods", run)
        capsys.readouterr()
        texts = ["w41 w42 w20", "w21", "w43 w43 w40 w22"]
        arguments = ["predict", "moods", "--server", url(server), "--json"]
        assert client.main([*arguments, *(part for text in texts for part in ("--text", text))]) == 0
        answers = json.loads(capsys.readouterr().out)["texts"]
    assert [answer["labels"][0]["name"] for answer in answers] == ["mood 0", "mood 1", "mood 2"]
