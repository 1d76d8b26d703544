"""`fitserve-client` against a running server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fitserve_client import cli
from fitserve_contract.manifest import Manifest
from fitserve_contract.repository import MANIFEST_FILE, MODEL_FILE, publish, publishing
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings

QUADRANTS = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, ("upper left", "upper right", "lower left", "靴"))


def _quadrant_model() -> bytes:
    """image FP32 (B, 1, 4, 4) -> logits FP32 (B, 4): ten times the mean light of each quadrant."""
    kernel = numpy_helper.from_array(np.full((1, 1, 2, 2), 2.5, np.float32), "kernel")
    shape = numpy_helper.from_array(np.array([-1, 4], np.int64), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["means"], strides=[2, 2]),
            helper.make_node("Reshape", ["means", "shape"], ["logits"]),
        ],
        "quadrants",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 4])],
        [kernel, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _publish(root: Path, name: str, content: bytes, task: Task | None) -> None:
    with publishing(root, name) as aside:
        (aside / MODEL_FILE).write_bytes(content)
        (aside / MANIFEST_FILE).write_bytes(Manifest(name, "2026-01-01T00:00:00Z", (), (), task).to_bytes())
        publish(root, name, aside)


@contextmanager
def _serving(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of one model `quadrants`, where the commands look for it."""
    _publish(root, "quadrants", _quadrant_model(), QUADRANTS)
    with running_server(ServerSettings(root, port=0, metrics_port=None, device="cpu", poll_interval_s=0.05)) as server:
        monkeypatch.setenv(cli.SERVER_VARIABLE, f"127.0.0.1:{server.port}")
        yield


def _lit(index: int) -> np.ndarray[Any, Any]:
    """A picture (4, 4) whose one quadrant is light."""
    pixels = np.zeros((2, 2, 2, 2), np.uint8)
    pixels[index // 2, :, index % 2, :] = 255
    return pixels.reshape(4, 4)


def _said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_models_and_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with _serving(tmp_path, monkeypatch):
        assert cli.main(["models"]) == cli.DONE
        header, row = _said(capsys)
        assert header.split()[:3] == ["model", "version", "state"]
        assert row.split() == ["quadrants", "1", "READY", "classification", "CPU", "no", "joinable"]
        assert cli.main(["models", "--json"]) == cli.DONE
        assert json.loads(capsys.readouterr().out)["models"][0]["versions"][0]["state"] == "READY"
        assert cli.main(["show", "quadrants"]) == cli.DONE
        shown = _said(capsys)
        assert shown[0] == "quadrants version 1 is READY: CPUExecutionProvider, unverified: no certificate"
        assert "input   image   FP32      (B, 1, 4, 4)" in shown
        assert any(line.startswith("max_batch_size") for line in shown)
        assert cli.main(["show", "quadrants", "--json"]) == cli.DONE
        assert json.loads(capsys.readouterr().out)["task"]["class_names"][3] == "靴"


def test_a_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(_lit(2)).resize((40, 40), Image.Resampling.NEAREST).convert("RGB").save(tmp_path / "x.png")
    Image.fromarray(255 - _lit(1)).save(tmp_path / "ink.png")
    with _serving(tmp_path / "repository", monkeypatch):
        assert cli.main(["predict", "quadrants", str(tmp_path / "x.png")]) == cli.DONE
        out, err = capsys.readouterr()
        assert "resized from 40x40 to 4x4" in err
        assert out.splitlines()[0] == "quadrants version 1"
        assert out.splitlines()[2].split()[:3] == ["0", "lower", "left"]
        assert cli.main(["predict", "quadrants", str(tmp_path / "ink.png"), "--invert"]) == cli.DONE
        out, err = capsys.readouterr()
        assert (out.splitlines()[2].split()[:3], err) == (["0", "upper", "right"], "")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_more_arrays_than_one_batch_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
):
    images = np.stack([_lit(index % 4) / 255 for index in range(50)])[:, None]
    if name == "x.npy":
        np.save(tmp_path / name, images)
    else:
        np.savez(tmp_path / name, image=images, labels=np.zeros(50))
    model = tmp_path / "repository" / "quadrants"
    model.mkdir(parents=True)
    (model / "model.toml").write_text("max_batch_size = 8\n")
    with _serving(tmp_path / "repository", monkeypatch):
        assert cli.main(["predict", "quadrants", str(tmp_path / name), "--rows", "3"]) == cli.DONE
        lines = _said(capsys)
        assert lines[-1].startswith("… and 47 more")
        assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
        assert cli.main(["predict", "quadrants", str(tmp_path / name), "--json"]) == cli.DONE
        document = json.loads(capsys.readouterr().out)
        assert document["outputs"]["logits"]["shape"] == [50, 4]
        assert [answer[0]["name"] for answer in document["answers"][:4]] == list(QUADRANTS.class_names)
        assert document["answers"][0][0]["probability"] == pytest.approx(1 / (1 + 3 * np.exp(-10)))


def test_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    images = np.stack([_lit(index % 4) / 255 for index in range(40)])[:, None]
    labels = np.arange(40) % 4
    labels[:10] = 3
    np.savez(tmp_path / "x.npz", image=images, labels=labels)
    np.savez(tmp_path / "bare.npz", image=images)
    with _serving(tmp_path / "repository", monkeypatch):
        assert cli.main(["evaluate", "quadrants", str(tmp_path / "x.npz"), "--batch-size", "16"]) == cli.DONE
        lines = _said(capsys)
        assert lines[0] == "quadrants version 1, 40 examples in 3 calls"
        assert lines[1].startswith("accuracy           0.8000  (32 of 40; 95 % interval ")
        assert (
            cli.main(["evaluate", "quadrants", str(tmp_path / "x.npz"), "--json", "--model-version", "1"]) == cli.DONE
        )
        document = json.loads(capsys.readouterr().out)
        assert (document["figures"]["accuracy"], document["sums"]["correct_count"]) == (0.8, 32)
        assert cli.main(["evaluate", "quadrants", str(tmp_path / "bare.npz")]) == cli.UNUSABLE
        assert "found no 'labels'" in capsys.readouterr().err


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    images = np.stack([_lit(index % 4) / 255 for index in range(40)])[:, None]
    np.savez(tmp_path / "x.npz", image=images, labels=np.arange(40) % 4)
    repository = tmp_path / "repository"
    _publish(repository, "quadrants", _quadrant_model(), QUADRANTS)
    (repository / "quadrants" / "model.toml").write_text("versions = [1, 2]\n")
    with _serving(repository, monkeypatch):
        assert cli.main(["compare", "quadrants", "--versions", "1,2", str(tmp_path / "x.npz")]) == cli.DONE
        lines = _said(capsys)
        assert lines[0] == "quadrants version 1 against quadrants version 2, 40 examples"
        assert "right: both 40, first alone 0, second alone 0, neither 0" in lines
        assert lines[-1] == "answered differently: 0"
        assert cli.main(["compare", "quadrants", "--versions", "1,2", "--held-out"]) == cli.REFUSED
        assert "model 'quadrants' version 1: expected held-out examples" in capsys.readouterr().err
        assert cli.main(["evaluate", "quadrants", "--held-out"]) == cli.REFUSED
        assert "expected held-out examples in its folder, found none" in capsys.readouterr().err


def test_unload_load_and_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with _serving(tmp_path, monkeypatch):
        assert [cli.main(["wait"]), cli.main(["wait", "quadrants", "--model-version", "1"])] == [cli.DONE] * 2
        assert _said(capsys) == ["the server is ready", "quadrants is ready"]
        assert cli.main(["unload", "quadrants"]) == cli.DONE
        assert cli.main(["wait", "quadrants", "--timeout", "0.05"]) == cli.REFUSED
        assert "model 'quadrants': expected to be READY" in capsys.readouterr().err
        assert cli.main(["load", "quadrants"]) == cli.DONE
        assert _said(capsys)[-1].split()[:3] == ["quadrants", "1", "READY"]


def test_an_error_is_one_sentence_and_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    np.save(tmp_path / "bad.npy", np.zeros((1, 3)))
    with _serving(tmp_path / "repository", monkeypatch):
        for arguments, code, text in (
            (["predict", "nobody", str(tmp_path / "bad.npy")], cli.REFUSED, "model 'nobody'"),
            (["predict", "quadrants", str(tmp_path / "bad.npy")], cli.REFUSED, "input 'image': expected"),
            (["predict", "quadrants", str(tmp_path / "none.npy")], cli.UNUSABLE, "expected a file, found none"),
            (["show", "quadrants", "--label", "canary"], cli.REFUSED, "canary"),
        ):
            assert cli.main(arguments) == code
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert err.startswith("fitserve-client: ")
            assert text in err


def test_an_empty_server_says_how_to_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with running_server(ServerSettings(tmp_path, port=0, metrics_port=None, device="cpu")) as server:
        monkeypatch.setenv(cli.SERVER_VARIABLE, f"127.0.0.1:{server.port}")
        assert cli.main(["models"]) == cli.DONE
        assert "fitserve-export" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in `fitserve-client models | head -0`: the pipe is closed before anything is written."""
    with _serving(tmp_path, monkeypatch):
        reader, writer = os.pipe()
        os.close(reader)
        code = "import sys; from fitserve_client.cli import main; sys.exit(main(['models']))"
        with os.fdopen(writer, "wb") as pipe:
            done = subprocess.run([sys.executable, "-c", code], stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (cli.DONE, b"")
