"""Texts encoded by blocks and kept small: the token ids and masks that the tokenizer gives all texts at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_training.data import token_rows as token_rows_module
from fitserve_training.data.sentences import Corpus, Sentences
from fitserve_training.data.store import cache_folder
from fitserve_training.data.token_rows import token_rows
from fitserve_training.data.tokens import own_tokenizer, tokenized

TEXTS = ("one", "two words", "and one that is far longer than all others are, to be cut", "", "ünïcode ✓", "x y z " * 3)


@pytest.fixture(autouse=True)
def _blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows_module, "_TEXTS_AT_ONCE", 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("FITSERVE_DATA_STORE", "disk")
    yield tmp_path / "fitserve/rows"
    cache_folder._usable.cache_clear()


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9), st.integers(4, 12))
@settings(deadline=None)
def test_blocks_give_what_all_texts_at_once_give(texts: list[str], max_length: int) -> None:
    tokenizer = own_tokenizer(TEXTS, 100, max_length)
    encodings = tokenizer.encode_batch(texts)
    rows = token_rows(texts, tokenizer)
    assert rows.ids.tolist() == [encoding.ids for encoding in encodings]
    assert rows.mask.tolist() == [encoding.attention_mask for encoding in encodings]
    assert rows.lengths.tolist() == [sum(encoding.attention_mask) for encoding in encodings]
    assert rows.cut_count == sum(bool(encoding.overflowing) for encoding in encodings)


def test_tokens_are_mapped_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = own_tokenizer(TEXTS, 100, 8)
    first = token_rows(TEXTS, tokenizer)
    assert isinstance(first.ids, np.memmap)
    assert first.ids.dtype == np.int32
    assert len(list(folder.glob("*.rows"))) == 2
    again = token_rows(TEXTS, tokenizer)
    assert np.array_equal(again.ids, first.ids)
    assert again.cut_count == first.cut_count > 0
    assert len(list(folder.glob("*.rows"))) == 2
    token_rows(TEXTS, own_tokenizer(TEXTS, 100, 7))
    token_rows(TEXTS[1:] + TEXTS[:1], tokenizer)
    assert len(list(folder.glob("*.rows"))) == 6, "another tokenizer and another order are other rows"
    monkeypatch.setenv("FITSERVE_DATA_STORE", "memory")
    assert np.array_equal(token_rows(TEXTS, tokenizer).ids, first.ids)


def test_batches_are_of_wide_integers(folder: Path) -> None:
    part = Sentences(TEXTS, torch.arange(len(TEXTS)) % 2)
    data = tokenized(Corpus("n", "s", part, part, ("a", "b")), own_tokenizer(TEXTS, 100, 8), {})
    batch = data.train.take(torch.tensor([0, 1]))
    assert [x.dtype for x in batch.inputs] == [torch.int64, torch.int64]
    assert data.train.input_dtypes == (torch.int64, torch.int64)
    assert folder.exists()
