"""From sentences to token ids, with the tokenizer of a checkpoint or one made from the sentences themselves.

Shapes: N sentences, S tokens of the longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.pretrained import told
from fitserve_training.data.sentences import Corpus, Sentences
from fitserve_training.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MISSING = "reading text needs tokenizers and transformers: pip install 'fitserve[bert]'"


def checkpoint_tokenizer(weights: str, max_length: int) -> Tokenizer:
    """Loads the tokenizer of a checkpoint, a directory or a hub id, cutting at `max_length` tokens.

    Raises:
        UsageError: there is none, or it has no token for padding.
    """
    with told(weights, "tokenizer"):
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        if (Path(weights) / FILE).is_file():
            return _prepared(Tokenizer.from_file(str(Path(weights) / FILE)), max_length, weights)
        return _prepared(AutoTokenizer.from_pretrained(weights).backend_tokenizer, max_length, weights)


def own_tokenizer(texts: Sequence[str], vocabulary_size: int, max_length: int) -> Tokenizer:
    """Makes a WordPiece tokenizer from texts: lower case, [CLS] and [SEP] around, padded with [PAD].

    The library's own trainer breaks ties by chance, so the vocabulary is counted here: every character, then the most
    frequent words, equal ones by name; other words are spelt in characters.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError:
        raise UsageError(_MISSING) from None
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    vocabulary = {piece: i for i, piece in enumerate(_pieces(words, vocabulary_size))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    around = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return _prepared(tokenizer, max_length, "own")


def _pieces(words: Counter[str], size: int) -> list[str]:
    characters = sorted({character for word in words for character in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    every = [*_SPECIAL, *characters, *(f"##{character}" for character in characters), *frequent]
    return list(dict.fromkeys(every))[: max(size, len(_SPECIAL))]


def _prepared(tokenizer: Tokenizer, max_length: int, origin: str) -> Tokenizer:
    """Sets truncation and padding, which travel in tokenizer.json: whoever loads it encodes as training did."""
    pad_id = tokenizer.token_to_id("[PAD]")
    if pad_id is None:
        raise UsageError(f"model.weights {origin}: expected a BERT tokenizer with the token [PAD], found none")
    tokenizer.enable_truncation(max_length=max_length)
    tokenizer.enable_padding(pad_id=pad_id, pad_token="[PAD]")
    return tokenizer


def tokenized(corpus: Corpus, tokenizer: Tokenizer, bert_config: bytes) -> DataSet:
    """Encodes a corpus: inputs are token ids and attention mask, int64 (N, S) each; targets are its labels."""
    return DataSet(
        name=corpus.name,
        source=corpus.source,
        train=_encoded(corpus.train, tokenizer),
        held_out=_encoded(corpus.held_out, tokenizer),
        class_names=corpus.class_names,
        checksums=corpus.checksums,
        note=corpus.note,
        files={FILE: tokenizer.to_str().encode(), "bert_config.json": bert_config},
    )


def _encoded(sentences: Sentences, tokenizer: Tokenizer) -> Split:
    encodings = tokenizer.encode_batch(list(sentences.texts))
    ids_NS = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
    mask_NS = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.int64)
    return Split((ids_NS, mask_NS), sentences.labels, mask_NS.sum(dim=1))
