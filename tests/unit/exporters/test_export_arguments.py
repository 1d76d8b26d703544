"""Arguments of export() beside module and example: what cannot be published is one sentence."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import fitserve_exporters
from fitserve_contract.repository import MODEL_FILE
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.surroundings import own_surroundings
from fitserve_exporters.errors import ExportError
from fitserve_exporters.module_export import drawn_inputs

X = torch.arange(16.0).reshape(4, 4) / 16 - 0.3
DEEP: dict[str, Any] = {}
for _ in range(5000):
    DEEP = {"a": DEEP}


def classes(names: Any, scores: Scores = Scores.LOGITS) -> Task:
    return Task(TaskKind.CLASSIFICATION, "output", scores, names)


SLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "a file above": ({"extra_files": {"../x": b""}}, "plain file name"),
    "a file in a folder": ({"extra_files": {"a/b": b""}}, "plain file name"),
    "a hidden file": ({"extra_files": {".x": b""}}, "plain file name"),
    "a file of two lines": ({"extra_files": {"a\nb": b""}}, "plain file name"),
    "a file without a name": ({"extra_files": {"": b""}}, "plain file name"),
    "a file by number": ({"extra_files": {1: b""}}, "plain file name"),
    "a file with a lone surrogate": ({"extra_files": {"\ud800": b""}}, "plain file name"),
    "a file with a long name": ({"extra_files": {"a" * 300: b""}}, "plain file name"),
    "the model itself": ({"extra_files": {"model.onnx": b""}}, "no file of a version has"),
    "another model": ({"extra_files": {"other.onnx": b""}}, "no file of a version has"),
    "the manifest in capitals": ({"extra_files": {"Manifest.json": b""}}, "no file of a version has"),
    "the checksums": ({"extra_files": {"SHA256SUMS": b""}}, "no file of a version has"),
    "the probe": ({"extra_files": {"probe.safetensors": b""}}, "no file of a version has"),
    "text in place of bytes": ({"extra_files": {"a.txt": "text"}}, r"expected bytes, got str; encode\(\) it"),
    "a path in place of bytes": ({"extra_files": {"a.txt": Path("a")}}, "expected bytes, got PosixPath; .*read_bytes"),
    "a list of files": ({"extra_files": ["a"]}, "expected a mapping of file name to bytes, got list"),
    "a huge integer": ({"training": {"a": 10**5000}}, r"training\['a'\]: expected an integer of 64 bits"),
    "a lone surrogate": ({"training": {"a": "\ud800"}}, r"training\['a'\]: expected text that UTF-8 can hold"),
    "a lone surrogate as key": ({"training": {"\ud800": 1}}, "expected text that UTF-8 can hold"),
    "a deep record": ({"training": DEEP}, "at most 32 levels"),
    "classes by number": ({"task": classes((1, 2, 3, 4))}, "class_names to be a tuple of texts"),
    "classes as one text": ({"task": classes("abcd")}, "class_names to be a tuple of texts"),
    "logits called probabilities": (
        {"task": classes(("a", "b", "c", "d"), Scores.PROBABILITIES)},
        r"expected probabilities, .*got numbers from -.* to .*; say Scores\.LOGITS",
    ),
    "sigmoids called one of n": (
        {"task": classes(("a", "b", "c", "d"), Scores.PROBABILITIES), "module": nn.Sigmoid()},
        "got rows that sum to",
    ),
    "logits called any of n": (
        {"task": Task(TaskKind.MULTI_LABEL, "output", Scores.PROBABILITIES, ("a", "b", "c", "d"))},
        r"return torch\.sigmoid of the logits",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slip_is_one_sentence(tmp_path: Path, name: str) -> None:
    settings, message = SLIPS[name]
    with pytest.raises(ExportError, match=message) as found:
        fitserve_exporters.export(
            settings.get("module", nn.Identity()),
            X,
            tmp_path / "repository",
            "m",
            **{key: value for key, value in settings.items() if key != "module"},
        )
    assert "unexpected" not in str(found.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("repository", ["a\0b", "x" * 300])
def test_repository_that_cannot_be_is_one_sentence(tmp_path: Path, repository: str) -> None:
    with pytest.raises(ExportError, match="repository: expected the path of a folder"):
        fitserve_exporters.export(nn.Identity(), X, f"{tmp_path}/{repository}", "m")


def test_threads_take_turns(tmp_path: Path) -> None:
    """torch.export patches torch for all threads: exports side by side failed on each other's state."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(fitserve_exporters.export(nn.Linear(4, 2), X, tmp_path, "m").version)
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3]


class Constants(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(4) + torch.linspace(0, 1, 4)


def test_default_device_of_the_caller_does_not_matter(tmp_path: Path) -> None:
    module = Constants()
    with torch.device("meta"):
        published = fitserve_exporters.export(module, X, tmp_path, "m")
        assert torch.empty(1).device.type == "meta"
    session = onnxruntime.InferenceSession(str(published.folder / MODEL_FILE))
    np.testing.assert_allclose(session.run(None, {"x": X.numpy()})[0], module(X).numpy(), rtol=1e-6)


def test_surroundings_are_put_back() -> None:
    state = torch.get_rng_state()
    with torch.no_grad(), own_surroundings():
        torch.rand(3)
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_drawn_rows_hold_no_element_twice() -> None:
    drawn = drawn_inputs({"x": np.arange(32, dtype=np.float32).reshape(4, 8)}, 0)["x"]
    assert drawn.shape == (68, 8)
    assert {len(set(row)) for row in drawn.tolist()} == {8}
    assert len({tuple(row) for row in drawn.tolist()}) > 60
