"""Splits that share rows: whatever is asked of them is what a copy of their examples gives, to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitserve_training.data import dataset
from fitserve_training.data.dataset import Batch, Split, split_sha256
from fitserve_training.data.moments import moments
from fitserve_training.data.store import expanded, placing
from fitserve_training.data.store.expanded import batch_array
from fitserve_training.data.store.placing import is_to_be_staged, placed
from fitserve_training.data.store.staging import staged

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_ROWS_AT_ONCE", 3)


def pictures(count: int, channels: int, seed: int, *, is_first_constant: bool = False) -> tuple[Split, Split]:
    """Gives a split that shares a larger array of bytes, and one with its own float32 copies."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (2 * count, channels, 5, 4)).astype(np.uint8)
    if is_first_constant:
        pixels[:, 0] = 90
    rows, targets = torch.from_numpy(random.permutation(2 * count)[:count]), torch.arange(count) % 3
    wide = pixels.astype(np.int64)
    sums = torch.from_numpy(np.stack([wide.sum(axis=(2, 3)), (wide**2).sum(axis=(2, 3))], axis=2))
    shared = Split((torch.from_numpy(pixels),), targets, is_bytes=True, rows=rows, sums=sums)
    copied = Split((torch.from_numpy(pixels[rows.numpy()].astype(np.float32) / np.float32(255)),), targets)
    return shared, copied


def sequences(count: int, seed: int) -> tuple[Split, Split]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 40, 2 * count)
    mask = np.arange(40) < lengths[:, None]
    ids = random.integers(1, 999, mask.shape) * mask
    rows, targets = random.permutation(2 * count)[:count], torch.arange(count) % 3
    kept = tuple(torch.from_numpy(x.astype(dtype)) for x, dtype in ((ids, np.int32), (mask, np.uint8)))
    own_lengths = torch.from_numpy(lengths[rows])
    shared = Split(kept, targets, own_lengths, rows=torch.from_numpy(rows), dtypes=(torch.int64, torch.int64))
    copied = Split(tuple(torch.from_numpy(x[rows].astype(np.int64)) for x in (ids, mask)), targets, own_lengths)
    return shared, copied


SPLITS = st.one_of(
    st.builds(pictures, st.integers(1, 11), st.sampled_from([1, 3]), st.integers(0, 99)),
    st.builds(sequences, st.integers(1, 11), st.integers(0, 99)),
)


def same(a: Batch, b: Batch) -> bool:
    pairs = zip((*a.inputs, a.targets), (*b.inputs, b.targets), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@given(SPLITS, st.integers(1, 7), st.randoms())
def test_a_shared_split_gives_what_a_copy_gives(splits: tuple[Split, Split], size: int, random: object) -> None:
    shared, copied = splits
    places = torch.tensor([random.randrange(len(copied)) for _ in range(size)])  # type: ignore[attr-defined]
    for a, b in ((shared, copied), (shared.subset(places), copied.subset(places))):
        assert (a.input_shapes, a.input_dtypes, len(a)) == (b.input_shapes, b.input_dtypes, len(b))
        assert same(a.whole(), b.whole())
        assert split_sha256(a) == split_sha256(b)
        for x, y in zip(a.chunks(size), b.chunks(size), strict=True):
            assert same(x, y)
        assert np.array_equal(batch_array(a, 0), b.whole().inputs[0].numpy())
    assert same(shared.take(places), copied.take(places))
    assert same(shared.take(places), copied.take(places))
    assert same(shared.to(torch.device("cpu")).whole(), copied.whole())


@given(SPLITS)
def test_a_split_moves_whole_to_another_device(splits: tuple[Split, Split]) -> None:
    shared, copied = splits
    moved = shared.to(torch.device("meta"))
    assert moved.rows is None
    assert [tuple(x.shape) for x in moved.inputs] == [tuple(x.shape) for x in copied.inputs]
    assert moved.byte_count == shared.byte_count


def test_the_hash_is_that_of_the_tensors() -> None:
    shared, copied = pictures(7, 3, 0)
    digest = hashlib.sha256()
    for tensor in (*copied.inputs, copied.targets):
        array = tensor.numpy()
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    assert split_sha256(shared) == digest.hexdigest()


def test_chunks_are_small_where_examples_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, copied = pictures(7, 3, 0)
    monkeypatch.setattr(dataset, "_VALUES_PER_CHUNK", 2 * 60 + 59)
    assert [len(batch.targets) for batch in shared.chunks(1024)] == [2, 2, 2, 1]
    assert [len(batch.targets) for batch in copied.chunks(1024)] == [2, 2, 2, 1]


@given(st.integers(1, 11), st.sampled_from([1, 3]), st.integers(0, 99))
def test_moments_of_whole_numbers_are_those_of_the_values(count: int, channels: int, seed: int) -> None:
    shared, copied = pictures(count, channels, seed, is_first_constant=True)
    mean, sd = moments(shared, [0, 2, 3])
    by_value = moments(copied, [0, 2, 3])
    assert mean.dtype == sd.dtype == torch.float64
    assert torch.allclose(mean, by_value[0], rtol=1e-6, atol=0)
    assert torch.allclose(sd, by_value[1], rtol=1e-4, atol=1e-7)
    assert sd[0] == 0, "what never varies is known exactly"
    x = copied.inputs[0].double()
    each = moments(copied, [0])
    assert torch.allclose(each[0], x.mean(dim=0), rtol=1e-12, atol=0)
    assert torch.allclose(each[1], x.std(dim=0, correction=0), rtol=1e-9, atol=1e-12)


@given(SPLITS, st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 9))
def test_staged_batches_are_those_of_the_split_in_order(
    splits: tuple[Split, Split], sizes: list[int], seed: int
) -> None:
    shared, copied = splits
    stream = torch.Generator().manual_seed(seed)
    parts = [torch.randint(len(shared), (size,), generator=stream) for size in sizes]
    with staged(shared, parts) as batches:
        for part, batch in zip(parts, batches, strict=True):
            assert same(batch, copied.take(part))


def test_staging_ends_early_and_says_what_went_wrong() -> None:
    import threading

    shared, _ = pictures(5, 1, 0)
    before = threading.active_count()
    with staged(shared, [torch.tensor([0])] * 50) as batches:
        next(batches)
    with staged(shared, [torch.tensor([0]), torch.tensor([99])]) as batches:
        next(batches)
        with pytest.raises(IndexError):
            next(batches)
    assert threading.active_count() == before


def test_only_what_memory_does_not_hold_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, copied = pictures(5, 1, 0)
    assert not is_to_be_staged(placed(shared, CPU))
    monkeypatch.setattr(placing, "_available_bytes", lambda: 2.0 * shared.byte_count - 1)
    assert is_to_be_staged(placed(shared, CPU))
    assert not is_to_be_staged(placed(copied, CPU)), "it is in memory already"


def test_what_memory_allows_is_read_from_the_system() -> None:
    assert 1 << 20 < placing._available_bytes() < 1 << 60


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_large_array_of_batches_is_mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, copied = pictures(600, 1, 0)
    monkeypatch.setattr(expanded, "_MOST_IN_MEMORY", 100)
    found = batch_array(shared, 0)
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, copied.inputs[0].numpy())
    assert list((cache / "fitserve/rows").iterdir()) == []
