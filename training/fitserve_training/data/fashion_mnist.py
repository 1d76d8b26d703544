"""Fashion-MNIST: 60,000 training and 10,000 test images, 28×28 grey, 10 classes.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms"
(2017), https://github.com/zalandoresearch/fashion-mnist. MIT licence.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.places import Places, check_files, download
from fitserve_training.errors import UsageError

FOLDER = "fashion-mnist"
BASE_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
CLASS_NAMES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_UBYTE = 0x08
"""Type code of unsigned bytes in an IDX file."""


def is_present(places: Places) -> bool:
    """Says whether all four files are in the data directory or the cache."""
    return places.find(FOLDER, CHECKSUMS) is not None


def load(places: Places) -> DataSet:
    """Reads the data, downloading it to the cache where no place has it.

    Raises:
        UsageError: a file is damaged, or the data is nowhere and cannot be fetched.
    """
    folder = places.find(FOLDER, CHECKSUMS) or _fetch(places)
    check_files(folder, CHECKSUMS)
    splits = {part: _read_split(folder, part) for part in ("train", "t10k")}
    return DataSet(
        name="fashion_mnist",
        source="Fashion-MNIST (60,000 training and 10,000 test images, zalandoresearch/fashion-mnist)",
        train=splits["train"],
        held_out=splits["t10k"],
        class_names=CLASS_NAMES,
        checksums=CHECKSUMS,
    )


def _fetch(places: Places) -> Path:
    folder = places.cache_dir / FOLDER
    print(f"downloading Fashion-MNIST (30 MB) from {BASE_URL} to {folder}", file=sys.stderr, flush=True)
    try:
        download(BASE_URL, folder, CHECKSUMS)
    except OSError as error:
        looked = " nor ".join(str(place / FOLDER) for place in (places.data_dir, places.cache_dir) if place)
        raise UsageError(
            f"fashion_mnist is not in {looked} and could not be downloaded ({_reason(error)}): put its four .gz files "
            f"into DIR/{FOLDER} and pass --data-dir DIR, or train on the bundled data with --data digits"
        ) from None
    return folder


def _reason(error: OSError) -> object:
    return getattr(error, "reason", None) or error


def _read_split(folder: Path, part: str) -> Split:
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
    return Split((images_from_bytes(images),), torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path, dimensions: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Reads a gzipped IDX file of unsigned bytes.

    Raises:
        UsageError: the file is not gzip, not IDX, or shorter or longer than its own header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, struct.error) as error:
        raise UsageError(f"data file {path}: not a gzipped IDX file: {error}") from None
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if (zeros, kind, rank) != (0, _UBYTE, dimensions) or values.size != int(np.prod(shape)):
        raise UsageError(
            f"data file {path}: expected IDX of unsigned bytes with {dimensions} dimensions, "
            f"got type {kind:#04x}, shape {shape} and {values.size} values"
        )
    return values.reshape(shape)


def images_from_bytes(images_NHW: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """Scales grey bytes (N, H, W) to float32 (N, 1, H, W) in 0..1."""
    return torch.from_numpy(images_NHW.astype(np.float32)).div_(255.0).unsqueeze(1)
