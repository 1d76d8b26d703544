"""The user's pictures, decoded once: found again by content, never stale, and trained on to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fitserve_training import rundir
from fitserve_training.catalogue import PICTURE_SIZES, load_recipe
from fitserve_training.data.own.picture_rows import prepare_pictures
from fitserve_training.data.own.pictures import load_pictures
from fitserve_training.data.store import cache_folder, placing
from fitserve_training.data.store.array_file import open_arrays
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.runs import open_run

SIZE = 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FITSERVE_DATA_STORE", "disk")
    yield tmp_path / "cache/fitserve/rows"
    cache_folder._usable.cache_clear()


def picture(path: Path, seed: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def pictures(root: Path, count: int = 6, modes: tuple[str, str] = ("RGB", "RGB")) -> Path:
    for place, name in enumerate("ab"):
        for index in range(count):
            picture(root / name / f"{index}.png", 100 * place + index, modes[place])
    return root


def values(root: Path, size: int = SIZE, resample: int = 3) -> torch.Tensor:
    data = load_pictures(root, size, 0.25, 0, False, resample)
    return torch.cat((data.train.whole().inputs[0], data.held_out.whole().inputs[0]))


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.rows"))


@pytest.mark.parametrize("modes", [("RGB", "RGB"), ("L", "L"), ("L", "RGB"), ("RGB", "L")])
def test_a_file_holds_what_memory_holds(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, modes: tuple[str, str]
) -> None:
    root = pictures(tmp_path / "p", modes=modes)
    mapped = values(root)
    monkeypatch.setenv("FITSERVE_DATA_STORE", "memory")
    assert torch.equal(mapped, values(root))
    assert mapped.shape[1] == (1 if modes == ("L", "L") else 3)
    (path,) = stored(folder)
    arrays, _ = open_arrays(path)
    wide = arrays["pixels"].astype(np.int64)
    assert np.array_equal(arrays["sums"][..., 0], wide.sum(axis=(2, 3)))
    assert np.array_equal(arrays["sums"][..., 1], (wide**2).sum(axis=(2, 3)))


def test_decoded_pictures_are_used_again_and_only_the_same_ones(tmp_path: Path, folder: Path) -> None:
    root = pictures(tmp_path / "p")
    first = values(root)
    (path,) = stored(folder)
    made = path.stat().st_ino
    assert torch.equal(values(root), first)
    root.rename(tmp_path / "q")
    assert torch.equal(values(tmp_path / "q"), first)
    assert [each.stat().st_ino for each in stored(folder)] == [made], "found wherever the pictures lie, not decoded"
    values(tmp_path / "q", size=SIZE + 1)
    values(tmp_path / "q", resample=2)
    assert len(stored(folder)) == 3, "another size and another filter are other rows"


def test_rows_that_changed_are_decoded_again(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = pictures(tmp_path / "p")
    first = values(root)
    (path,) = stored(folder)
    content = bytearray(path.read_bytes())
    content[4096 + 5] ^= 1
    path.write_bytes(content)
    prepare_pictures(root, SIZE)
    assert "made anew" not in capsys.readouterr().err, "what is unreadable is said without reading all"
    assert torch.equal(values(root), first)
    assert "made anew" in capsys.readouterr().err


def test_a_changed_picture_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p")
    target = picture(root / "a/9.bmp", 9)
    first, before = values(root), target.stat()
    with Image.open(target) as image:
        changed = Image.fromarray(255 - np.asarray(image))
    changed.save(target)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (target.stat().st_size, target.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not torch.equal(values(root), first)


def test_unreadable_files_are_remembered_with_their_reasons(tmp_path: Path, folder: Path) -> None:
    root = pictures(tmp_path / "p")
    (root / "a/notes.txt").write_text("notes")
    (root / "b/gone.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "b/pipe.png")
    said = []
    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            load_pictures(root, SIZE, 0.25, 0, False)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "3 files are unreadable" in said[0]
    assert "a/notes.txt (no picture), b/gone.png (a link to nothing), b/pipe.png (no regular file)" in said[0]
    data = load_pictures(root, SIZE, 0.25, 0, True)
    assert len(data.train) + len(data.held_out) == 12
    assert len(stored(folder)) == 1
    (root / "b/gone.png").unlink()
    picture(root / "b/gone.png", 999)
    with pytest.raises(UsageError, match="2 files are unreadable"):
        load_pictures(root, SIZE, 0.25, 0, False)


def trained(root: Path, run_dir: Path, say: Callable[[str], None] = lambda _line: None, **changes: str) -> Path:
    settings = {"data.name": str(root), "data.image_size": SIZE, "compile": "off", "threads": 1, "batch_size": 4}
    request = Request("convnet", run_dir, changes={**settings, "epochs": 3, **changes})
    return train(request, say)


def figures(run_dir: Path) -> list[dict[str, float]]:
    rows = rundir.read_lines(run_dir / rundir.METRICS)
    return [{key: value for key, value in row.items() if key != "examples_per_s"} for row in rows]


@pytest.mark.parametrize("residence", ["disk", "staged"])
def test_losses_weights_and_exported_examples_are_those_of_memory_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residence: str
) -> None:
    root = pictures(tmp_path / "p")
    if residence == "staged":
        monkeypatch.setattr(placing, "_available_bytes", lambda: 0.0)
    found = trained(root, tmp_path / "mapped")
    run = open_run(found)
    examples = run.held_out()
    drawn = run.training_inputs(3, 0)["image"]
    monkeypatch.undo()
    monkeypatch.setenv("FITSERVE_DATA_STORE", "memory")
    expected = trained(root, tmp_path / "resident")
    assert figures(found) == figures(expected)
    assert (found / rundir.WEIGHTS).read_bytes() == (expected / rundir.WEIGHTS).read_bytes()
    summaries = [json.loads((place / rundir.SUMMARY).read_text()) for place in (found, expected)]
    assert summaries[0]["data"] == summaries[1]["data"]
    by_memory = open_run(expected)
    assert np.array_equal(examples.inputs["image"], by_memory.held_out().inputs["image"])
    assert examples.inputs["image"].dtype == np.float32
    assert np.array_equal(drawn, by_memory.training_inputs(3, 0)["image"])


def test_a_run_goes_on_in_a_file_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path / "p")
    whole = trained(root, tmp_path / "whole")

    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(root, tmp_path / "cut", stop)
    monkeypatch.setenv("FITSERVE_DATA_STORE", "memory")
    resumed = train(Request("convnet", tmp_path / "cut", is_resumed=True), lambda _line: None)
    assert figures(resumed) == figures(whole)
    assert (resumed / rundir.WEIGHTS).read_bytes() == (whole / rundir.WEIGHTS).read_bytes()


def test_the_command_decodes_before_torch_is_imported_and_only_once(tmp_path: Path, folder: Path) -> None:
    root = pictures(tmp_path / "p")
    code = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from fitserve_training.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, "--data", str(root), "--set", f"data.image_size={SIZE}"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    (path,) = stored(folder)
    values(root)
    assert stored(folder) == [path]


def test_the_command_knows_the_sizes_of_the_recipes() -> None:
    for name, size in PICTURE_SIZES.items():
        assert load_recipe(name).defaults["data.image_size"] == size
