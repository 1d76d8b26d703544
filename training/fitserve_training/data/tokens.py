"""From sentences to token ids, with the tokenizer of a checkpoint or one made from the sentences themselves.

Shapes: N sentences, S tokens of the longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fitserve_contract.checkpoints import Checkpoint, CheckpointError, check_tokenizer, max_token_count
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.pretrained import told
from fitserve_training.data.sentences import Corpus, Sentences
from fitserve_training.data.store.tensors import tensor_of
from fitserve_training.data.token_rows import token_rows
from fitserve_training.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
_PADDING = ("[PAD]", "<pad>")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MISSING = "reading text needs tokenizers and transformers: pip install 'fitserve[bert]'"


def checkpoint_tokenizer(weights: str, checkpoint: Checkpoint, max_length: int) -> Tokenizer:
    """Loads the tokenizer of a checkpoint, cutting at `max_length` tokens.

    Args:
        weights: The setting `model.weights`.
        checkpoint: Checked.
        max_length: Of a text, with the tokens around it.

    Raises:
        UsageError: there is none, it has no token for padding, more tokens than the model, or longer texts.
    """
    longest = max_token_count(checkpoint)
    if 0 < longest < max_length:
        raise UsageError(
            f"setting 'data.max_length': expected at most the {longest} tokens that {weights} takes, got {max_length}"
        )
    tokenizer = _read_tokenizer(weights, checkpoint)
    count, most = checkpoint.config.get("vocab_size"), max(tokenizer.get_vocab().values(), default=0)
    if isinstance(count, int) and most >= count:
        raise UsageError(
            f"model.weights {weights}: expected token ids below the vocab_size of the model, {count}, got {most} in "
            "its tokenizer; is it the tokenizer of another model?"
        )
    return _prepared(tokenizer, max_length, weights, checkpoint.config.get("pad_token_id"))


def _read_tokenizer(weights: str, checkpoint: Checkpoint) -> Tokenizer:
    try:
        path = check_tokenizer(checkpoint)
    except CheckpointError as error:
        raise UsageError(f"model.weights {weights}: {error}") from None
    with told(weights, "tokenizer"):
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        if path.name == FILE:
            return Tokenizer.from_file(str(path))
        read: Any = AutoTokenizer.from_pretrained
        fast = read(str(path.parent), local_files_only=True, trust_remote_code=False)
        tokenizer: Tokenizer = fast.backend_tokenizer
        return tokenizer


def read_tokenizer(content: bytes) -> Tokenizer:
    """Reads the tokenizer of a run, which cuts and pads as it did in training."""
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(content)


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


def _prepared(tokenizer: Tokenizer, max_length: int, origin: str, pad_id: Any = None) -> Tokenizer:
    """Sets truncation and padding, which travel in tokenizer.json: whoever loads it encodes as training did."""
    named = tokenizer.id_to_token(pad_id) if isinstance(pad_id, int) and pad_id >= 0 else None
    token = next((name for name in (*_PADDING, named) if name and tokenizer.token_to_id(name) is not None), None)
    if token is None:
        raise UsageError(f"model.weights {origin}: expected a tokenizer with a token for padding, found none")
    tokenizer.enable_truncation(max_length=max_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(token), pad_token=token)
    return tokenizer


def tokenized(corpus: Corpus, tokenizer: Tokenizer, files: Mapping[str, bytes]) -> DataSet:
    """Encodes a corpus: inputs are token ids and attention mask, int64 (N, S) each; targets are its labels.

    Args:
        corpus: Texts and labels.
        tokenizer: Travels with the model.
        files: What else does.
    """
    (train, cut), (held_out, held_out_cut) = (_encoded(part, tokenizer) for part in (corpus.train, corpus.held_out))
    notes = [corpus.note, _cut_note(cut + held_out_cut, len(train) + len(held_out), _length(tokenizer))]
    return DataSet(
        name=corpus.name,
        source=corpus.source,
        train=train,
        held_out=held_out,
        class_names=corpus.class_names,
        checksums=corpus.checksums,
        note="; ".join(note for note in notes if note),
        files={FILE: tokenizer.to_str().encode(), **files},
    )


def _length(tokenizer: Tokenizer) -> int:
    return int((tokenizer.truncation or {}).get("max_length", 0))


def _cut_note(cut: int, count: int, length: int) -> str:
    if not cut:
        return ""
    return f"{cut:,} of {count:,} texts are cut at {length} tokens (--set data.max_length=… for more of them)"


def _encoded(sentences: Sentences, tokenizer: Tokenizer) -> tuple[Split, int]:
    """Encodes sentences; returns how many of them are cut beside the split."""
    rows = token_rows(sentences.texts, tokenizer)
    kept = (tensor_of(rows.ids), tensor_of(rows.mask))
    lengths = torch.from_numpy(rows.lengths.astype(np.int64))
    return Split(kept, sentences.labels, lengths, dtypes=(torch.int64, torch.int64)), rows.cut_count
