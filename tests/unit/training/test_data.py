"""Data: found, checked, downloaded whole or not at all, and what the files claim to be."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fitserve_training.data import digits, fashion_mnist, images, synthetic
from fitserve_training.data.dataset import Split, split_sha256
from fitserve_training.data.places import Places, check_files, download
from fitserve_training.errors import UsageError


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def files_served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_download_is_checked_and_whole(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "a.gz").write_bytes(b"content")

    with files_served(tmp_path / "origin") as url:
        download(url, tmp_path / "cache", {"a.gz": sha256(b"content")})

    assert (tmp_path / "cache" / "a.gz").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.gz"]


def test_a_damaged_download_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "a.gz").write_bytes(b"conten")

    with files_served(tmp_path / "origin") as url, pytest.raises(UsageError, match=r"a\.gz: expected SHA-256"):
        download(url, tmp_path / "cache", {"a.gz": sha256(b"content")})

    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_origin_is_an_oserror_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()

    with files_served(tmp_path / "origin") as url, pytest.raises(OSError, match="404"):
        download(url, tmp_path / "cache", {"a.gz": sha256(b"content")})

    assert not list((tmp_path / "cache").iterdir())


def test_offline_is_one_sentence_with_two_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "BASE_URL", "http://127.0.0.1:9/nowhere")

    with pytest.raises(UsageError) as caught:
        images.load("fashion_mnist", Places(None, tmp_path))

    message = str(caught.value)
    assert "--data-dir DIR" in message
    assert "--data digits" in message
    assert "\n" not in message


def test_a_damaged_file_is_named_and_not_replaced_by_other_data(tmp_path: Path) -> None:
    folder = tmp_path / fashion_mnist.FOLDER
    folder.mkdir()
    for name in fashion_mnist.CHECKSUMS:
        (folder / name).write_bytes(b"damaged")
    places = Places(tmp_path, tmp_path / "cache")

    assert images.choose("auto", places) == "fashion_mnist"
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz: expected SHA-256"):
        images.load("fashion_mnist", places)


def test_the_data_directory_comes_before_the_cache(tmp_path: Path) -> None:
    places = Places(tmp_path / "mine", tmp_path / "cache")
    for place in (tmp_path / "mine", tmp_path / "cache"):
        (place / "set").mkdir(parents=True)
        (place / "set" / "a").write_bytes(b"")

    assert places.find("set", {"a": ""}) == tmp_path / "mine" / "set"
    assert Places(None, tmp_path / "cache").find("set", {"a": ""}) == tmp_path / "cache" / "set"
    assert places.find("set", {"a": "", "b": ""}) is None


def test_a_data_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: expected an existing directory, found none"):
        images.choose("auto", Places(tmp_path / "absent", tmp_path))


def test_places_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    assert Places.default() == Places(tmp_path / "data", tmp_path / "xdg" / "fitserve")
    assert Places.default(tmp_path / "named").data_dir == tmp_path / "named"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # a user of a container, whom no file of users knows
    assert Places.default().cache_dir == Path("/nonexistent/.cache/fitserve")


def test_nothing_at_hand_means_digits(tmp_path: Path) -> None:
    assert images.choose("auto", Places(None, tmp_path)) == "digits"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match=r"data file .*a: Is a directory"):
        check_files(tmp_path, {"a": ""})


def test_idx_gives_back_what_was_written(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x.gz").write_bytes(idx(values))

    np.testing.assert_array_equal(fashion_mnist.read_idx(tmp_path / "x.gz", dimensions=3), values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip at all",
        gzip.compress(b""),
        gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"),
        idx(np.zeros((2, 2), np.uint8)),
        idx(np.zeros(40, np.uint8))[:20],
    ],
    ids=["empty", "not gzip", "no header", "too short", "other rank", "cut short"],
)
def test_what_is_no_idx_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(content)

    with pytest.raises(UsageError, match=r"data file .*x\.gz"):
        fashion_mnist.read_idx(tmp_path / "x.gz", dimensions=1)


def test_digits_are_images_of_256_greys() -> None:
    data = digits.load()
    images_N1HW = torch.cat((data.train.inputs[0], data.held_out.inputs[0]))

    assert images_N1HW.shape == (1797, 1, 28, 28)
    assert (len(data.train), len(data.held_out)) == (1438, 359)
    assert torch.equal((images_N1HW * 255).round() / 255, images_N1HW)
    assert (images_N1HW.min().item(), images_N1HW.max().item()) == (0.0, 1.0)
    assert sorted(set(data.held_out.targets.tolist())) == list(range(10))


def test_synthetic_examples_follow_the_law() -> None:
    data = synthetic.load_linear((2.0, -3.4), 4.2, noise_sd=0.0, example_count=50, seed=1)
    x_ND = data.train.inputs[0]

    torch.testing.assert_close(data.train.targets, x_ND @ torch.tensor([[2.0], [-3.4]]) + 4.2)
    assert not torch.equal(x_ND, data.held_out.inputs[0])


def test_the_checksum_of_a_split_sees_every_change() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    changed = x.clone()
    changed[3, 1] = 1e-9
    splits = [Split((x,), y), Split((changed,), y), Split((x.reshape(4, 1, 2),), y), Split((x,), y.to(torch.int32))]

    assert len({split_sha256(split) for split in splits}) == len(splits)
    assert split_sha256(Split((x.clone(),), y.clone())) == split_sha256(splits[0])
