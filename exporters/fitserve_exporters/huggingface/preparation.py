"""What a caller of a text model has to do before it asks: the tokenizer, and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fitserve_contract.checkpoints import TOKENIZER_FILE, Checkpoint, check_tokenizer, max_token_count, sentence_config
from fitserve_exporters.errors import ExportError
from fitserve_exporters.texts import sentence

PROMPTS_FILE: Final = "config_sentence_transformers.json"

_WRITE: Final = "write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"


def tokenizer_json(checkpoint: Checkpoint) -> bytes:
    """Returns the tokenizer of a text model as tokenizer.json, cutting at the model's length and padding.

    Raises:
        ExportError: it cannot be read.
        CheckpointError: there is none, or it is a Python class of its own.
    """
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Lowercase, Sequence

    path = check_tokenizer(checkpoint)
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.name == TOKENIZER_FILE else _converted(checkpoint, path)
    except ExportError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ExportError(f"'{path}': expected a tokenizer, got {sentence(error)}") from error
    _check_ids(checkpoint, tokenizer)
    length = max_token_count(checkpoint)
    if length and (tokenizer.truncation is None or tokenizer.truncation["max_length"] > length):
        tokenizer.enable_truncation(length)
    pad = checkpoint.config.get("pad_token_id")
    if tokenizer.padding is None and isinstance(pad, int) and tokenizer.id_to_token(pad) is not None:
        tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    if sentence_config(checkpoint).get("do_lower_case"):
        parts = [Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer is not None else [])]
        tokenizer.normalizer = Sequence(parts)
    return str(tokenizer.to_str()).encode()


def _check_ids(checkpoint: Checkpoint, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids the model has no embedding for."""
    count, most = checkpoint.config.get("vocab_size"), max(tokenizer.get_vocab().values(), default=-1)
    if isinstance(count, int) and most >= count:
        raise ExportError(
            f"checkpoint '{checkpoint.folder}': expected token ids below the vocab_size of the model, {count}, got "
            f"{most} in its tokenizer; is it the tokenizer of another model?"
        )


def _converted(checkpoint: Checkpoint, path: Path) -> Any:
    """Makes the fast tokenizer of a vocabulary of before tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(str(path.parent), local_files_only=True, trust_remote_code=False)
        return fast.backend_tokenizer
    except Exception as error:  # the library raises what its parsers raise
        raise ExportError(
            f"checkpoint '{checkpoint.folder}': expected {TOKENIZER_FILE}, found a vocabulary that does not become "
            f"one: {sentence(error)}; {_WRITE}"
        ) from error
