"""A pretrained checkpoint named by a directory or by an id of the Hugging Face hub.

The hub's library reads its own cache first and fetches what is not there, unless HF_HUB_OFFLINE says not to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fitserve_contract.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from fitserve_training.errors import UsageError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_LONGEST_REASON = 200
_FILES = (
    *("config.json", "preprocessor_config.json", "tokenizer*.json", "special_tokens_map.json"),
    *("vocab.*", "merges.txt", "*.model", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
)
"""What is fetched of a checkpoint of the hub: no pickle, and no weights of other frameworks."""


def check_weights(weights: str) -> None:
    """Checks that the setting `model.weights` can name a checkpoint.

    Raises:
        UsageError: it is a path where no directory is.
    """
    if not Path(weights).is_dir() and (not _HUB_ID.fullmatch(weights) or Path(weights).exists()):
        raise UsageError(
            f"model.weights {weights}: expected a checkpoint's directory or a hub id (OWNER/NAME), found neither"
        )


def open_weights(weights: str) -> Checkpoint:
    """Finds and checks the checkpoint that `model.weights` names; none of its code is run and no pickle is read.

    Raises:
        UsageError: there is none, or it is none that can be used; the message says what is expected.
    """
    check_weights(weights)
    folder = Path(weights)
    if not folder.is_dir():
        with told(weights, "checkpoint"):
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(weights, allow_patterns=list(_FILES)))
    try:
        return open_checkpoint(folder)
    except CheckpointError as error:
        raise UsageError(f"model.weights {weights}: {error}") from None


@contextmanager
def told(weights: str, what: str) -> Iterator[None]:
    """Turns what the hub's libraries say of a checkpoint that they cannot read into one sentence.

    Args:
        weights: The setting `model.weights`.
        what: What is read of it.
    """
    try:
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        yield
    except UsageError:
        raise
    except ImportError:
        raise UsageError("pretrained encoders need transformers and tokenizers: pip install 'fitserve[bert]'") from None
    except Exception as error:  # the errors of the hub, of safetensors and of tokenizers share no base class
        raise UsageError(_sentence(weights, what, error)) from None


def _sentence(weights: str, what: str, error: Exception) -> str:
    if Path(weights).is_dir():
        return f"model.weights {weights}: its {what} cannot be read: {_reason(error)}"
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _reason(error)
    return (
        f"model.weights {weights}: no directory here, its {what} is not in the hub's cache {constants.HF_HUB_CACHE}, "
        f"and the hub did not give it: {reason}"
    )


def _reason(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:_LONGEST_REASON]
