"""From the user's own data to answers, by commands alone: pictures to a class, texts to labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.wire.serving import serving, url

from fitserve_client import Client, NotFoundError
from fitserve_client import cli as client
from fitserve_contract.manifest import read_manifest
from fitserve_exporters import cli as exporter
from fitserve_training import cli as trainer


def test_a_folder_of_pictures_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shade, name in enumerate(("dark", "light")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(8):
            pixels = np.full((10, 10), 30 + 180 * shade + index, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    run, repository = str(tmp_path / "run"), tmp_path / "repository"
    settings = ["--set", "data.image_size=8", "--set", "epochs=12", "--set", "threads=1", "--set", "batch_size=4"]

    assert trainer.main(["--data", str(tmp_path / "pictures"), "--run-dir", run, *settings]) == 0
    assert exporter.main([run, "--repository", str(repository), "--name", "shades"]) == 0
    with serving(repository) as server:
        capsys.readouterr()
        for name in ("dark", "light"):
            file = str(tmp_path / "pictures" / name / "3.png")
            assert client.main(["predict", "shades", file, "--server", url(server), "--json"]) == 0
            answer = json.loads(capsys.readouterr().out)
            assert answer["answers"][0][0]["name"] == name


@pytest.mark.slow
def test_texts_are_answered_by_the_tokenizer_that_travels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"{word} day number {i}", label) for i in range(20) for word, label in (("good", "up"), ("bad", "down"))]
    lines = [json.dumps({"text": text, "labels": [label]}) for text, label in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    run, repository = str(tmp_path / "run"), tmp_path / "repository"
    settings = ["--set", "model.layers=1", "--set", "model.hidden_size=32", "--set", "epochs=30", "--set", "lr=3e-3"]

    assert trainer.main(["--data", str(tmp_path / "t.jsonl"), "--run-dir", run, *settings]) == 0
    assert exporter.main([run, "--repository", str(repository), "--name", "days"]) == 0

    manifest = read_manifest(repository / "days" / "1")
    assert manifest is not None
    assert manifest.files_for_callers == ("bert_config.json", "tokenizer.json")
    assert [spec.shape for spec in manifest.inputs] == [("batch", "sequence")] * 2
    with serving(repository) as server:
        capsys.readouterr()
        texts = ["good day", "a bad day, and what is more a long sentence"]
        arguments = ["predict", "days", "--server", url(server), *(part for text in texts for part in ("--text", text))]
        assert client.main([*arguments, "--json"]) == 0
        answers = json.loads(capsys.readouterr().out)["texts"]
        assert [answer["text"] for answer in answers] == texts
        assert [answer["labels"][0]["name"] for answer in answers] == ["up", "down"]
        assert answers[0]["labels"][0]["is_predicted"]
        assert client.main(arguments) == 0
        assert "predicted" in capsys.readouterr().out
        with Client(url(server)) as open_client:
            tokenizer = open_client.version_file("days", "tokenizer.json")
            for name in ("probe.safetensors", "model.onnx", "../../labels.json", "SHA256SUMS"):
                with pytest.raises(NotFoundError, match=r"expected a file of bert_config\.json, tokenizer\.json"):
                    open_client.version_file("days", name)
            alone = open_client.predict("days", {"input_ids": [[2, 3]], "attention_mask": [[1, 1]]}).array
            padded = open_client.predict("days", {"input_ids": [[2, 3, 0, 0]], "attention_mask": [[1, 1, 0, 0]]}).array
        np.testing.assert_allclose(padded, alone, rtol=1e-5, atol=1e-6)
    assert tokenizer == (repository / "days" / "1" / "tokenizer.json").read_bytes()
