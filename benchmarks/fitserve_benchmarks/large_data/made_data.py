"""Data that a drill makes by seeded chance: pictures and a table. Shapes: N rows, D columns."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

_CLASSES: Final = ("dark", "light")
_COARSE: Final = 24
COLUMN_COUNT: Final = 20
_ROWS_AT_ONCE: Final = 100_000


def make_pictures(folder: Path, count: int, size: int, seed: int) -> int:
    """Writes JPEG files of coarse colour noise, half of them lighter, as `folder/<class>/<number>.jpg`.

    Returns:
        Bytes of all files.
    """
    from PIL import Image

    for name in _CLASSES:
        (folder / name).mkdir(parents=True)

    def make(number: int) -> int:
        random = np.random.default_rng((seed, number))
        place = number % len(_CLASSES)
        noise = random.integers(0, 190, (_COARSE, _COARSE, 3)) + 50 * place
        path = folder / _CLASSES[place] / f"{number}.jpg"
        Image.fromarray(noise.astype(np.uint8)).resize((size, size)).save(path, quality=85)
        return path.stat().st_size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(make, range(count), chunksize=1))


def make_table(path: Path, byte_count: int, seed: int) -> int:
    """Writes a .csv file of at least so many bytes: numbers c0, c1, … and a label 0 or 1 that hangs on them.

    Returns:
        Rows.
    """
    import pyarrow
    from pyarrow import csv

    weights = np.random.default_rng((seed, 0)).normal(size=COLUMN_COUNT)
    names = [*(f"c{place}" for place in range(COLUMN_COUNT)), "label"]
    schema = pyarrow.schema([(name, pyarrow.float64()) for name in names[:-1]] + [("label", pyarrow.int64())])
    row_count = 0
    with path.open("wb") as file, csv.CSVWriter(file, schema) as writer:
        while file.tell() < byte_count:
            random = np.random.default_rng((seed, 1, row_count))
            values = random.normal(size=(_ROWS_AT_ONCE, COLUMN_COUNT)).round(6)
            labels = (values @ weights > 0).astype(np.int64)
            columns = [*(pyarrow.array(column) for column in values.T), pyarrow.array(labels)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            row_count += _ROWS_AT_ONCE
    return row_count
