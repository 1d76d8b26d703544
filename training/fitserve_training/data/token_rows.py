"""Texts as rows of token ids, encoded once; torch is not needed. Shapes: N texts, S tokens of the longest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fitserve_training.data.store.array_file import Array, ArrayPlan
from fitserve_training.data.store.bar import counted
from fitserve_training.data.store.rows import Writer, key_of, stored_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FORMAT: Final = "tokens-1"
_TEXTS_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class TokenRows:
    """Encoded texts, padded to the longest.

    Args:
        ids: int32 (N, S).
        mask: 1 for tokens and 0 for padding, uint8 (N, S).
        lengths: Tokens of each, int32 (N,).
        cut_count: How many texts were longer than the tokenizer takes.
    """

    ids: Array
    mask: Array
    lengths: Array
    cut_count: int


def token_rows(texts: Sequence[str], tokenizer: Tokenizer) -> TokenRows:
    """Encodes texts by a tokenizer that cuts and pads, or finds them encoded: the same texts by the same one.

    Raises:
        UsageError: the disk is full.
    """
    import tokenizers

    length_key = key_of(_FORMAT, tokenizers.__version__, tokenizer.to_str(), _sha256(texts))
    # How long the longest is has to be known before there is room for it; this is small, and stored for itself.
    counts, facts = stored_rows(
        length_key,
        {"lengths": ArrayPlan("int32", (len(texts),))},
        "lengths of texts",
        partial(_measure, texts, tokenizer),
        sum(map(len, texts)),
    )
    longest = int(counts["lengths"].max(initial=0))
    plans = {"ids": ArrayPlan("int32", (len(texts), longest)), "mask": ArrayPlan("uint8", (len(texts), longest))}
    fill = partial(_fill, texts, tokenizer, longest)
    arrays, _ = stored_rows(key_of(length_key, "ids"), plans, "tokens", fill, sum(map(len, texts)))
    return TokenRows(arrays["ids"], arrays["mask"], counts["lengths"], facts["cut_count"])


def _sha256(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _blocks(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[int, list[Any]]]:
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        yield first, tokenizer.encode_batch(list(texts[first : first + _TEXTS_AT_ONCE]))


def _measure(texts: Sequence[str], tokenizer: Tokenizer, writer: Writer) -> dict[str, Any]:
    cut_count = 0
    with counted("texts, to measure them", len(texts)) as done:
        for first, encodings in _blocks(texts, tokenizer):
            lengths = [sum(encoding.attention_mask) for encoding in encodings]
            writer.write("lengths", first, np.array(lengths, np.int32))
            cut_count += sum(bool(encoding.overflowing) for encoding in encodings)
            done(len(encodings))
    return {"cut_count": cut_count}


def _fill(texts: Sequence[str], tokenizer: Tokenizer, longest: int, writer: Writer) -> dict[str, Any]:
    padding = tokenizer.padding or {}
    with counted("texts", len(texts)) as done:
        for first, encodings in _blocks(texts, tokenizer):
            ids = np.full((len(encodings), longest), padding.get("pad_id", 0), np.int32)
            mask = np.zeros((len(encodings), longest), np.uint8)
            for row, encoding in enumerate(encodings):
                width = min(longest, len(encoding.ids))  # of its block's longest, or of all texts'
                ids[row, :width] = encoding.ids[:width]
                mask[row, :width] = encoding.attention_mask[:width]
            writer.write("ids", first, ids)
            writer.write("mask", first, mask)
            done(len(encodings))
    return {}
