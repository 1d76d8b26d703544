"""Texts for a model of text: encoded by the tokenizer that travels with the model's version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from fitserve_client.answers import softmax
from fitserve_client.errors import FileError
from fitserve_client.models import VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.reports import Report
from fitserve_client.token_texts import token_report
from fitserve_contract.sums import MULTI_LABEL_THRESHOLD
from fitserve_contract.tasks import Scores, TaskKind
from fitserve_contract.tensor_bytes import Array

TOKENIZER_FILE: Final = "tokenizer.json"
SHOWN_LABELS: Final = 3
"""Labels shown at least, the likeliest; of a multi-label model all that are predicted."""

_INPUTS: Final = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input of a model to what an encoding calls it."""


def encoded_texts(texts: Sequence[str], tokenizer_json: bytes, details: VersionDetails) -> dict[str, Array]:
    """Encodes texts as the version's inputs, INT64 (B, S), padded to the longest.

    Args:
        texts: At least one.
        tokenizer_json: The version's tokenizer.json, in the format of the tokenizers library.
        details: The version; its inputs are of `input_ids`, `attention_mask` and `token_type_ids`.

    Raises:
        FileError: the tokenizers library is missing, the file is none of its, or the model takes other inputs.
    """
    names = [spec.name for spec in details.inputs if not spec.is_optional or spec.name in _INPUTS]
    foreign = [name for name in names if name not in _INPUTS]
    if foreign:
        raise FileError(
            f"model '{details.model}': expected inputs of {', '.join(_INPUTS)} for --text, got {foreign[0]}"
        )
    encodings = encodings_of(texts, tokenizer_json, details)
    return {
        name: np.array([getattr(encoding, _INPUTS[name]) for encoding in encodings], dtype=np.int64) for name in names
    }


def encodings_of(texts: Sequence[str], tokenizer_json: bytes, details: VersionDetails) -> list[Any]:
    """Encodes texts, padded to the longest, as the tokenizers library does. FileError: as `encoded_texts`."""
    return list(_tokenizer(tokenizer_json, details).encode_batch(list(texts)))


def _tokenizer(content: bytes, details: VersionDetails) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise FileError("--text needs tokenizers: pip install 'fitserve[text]'") from None
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        text = f"model '{details.model}': expected {TOKENIZER_FILE} to be of the tokenizers library, got {error}"
        raise FileError(text) from None
    if tokenizer.padding is None:
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]") or 0)
    return tokenizer


def texts_report(
    texts: Sequence[str], tokenizer_json: bytes, prediction: Prediction, details: VersionDetails
) -> Report:
    """Lists the likeliest labels of each text with their probabilities, or the class of each of its tokens.

    Args:
        texts: What was asked.
        tokenizer_json: Of the version that answered.
        prediction: The answer.
        details: The version that answered.

    Raises:
        FileError: the model has no classes to name.
    """
    task = details.task
    if task is not None and task.kind is TaskKind.TOKEN_CLASSIFICATION:
        return token_report(texts, encodings_of(texts, tokenizer_json, details), prediction, details, task)
    scores = None if task is None else prediction.outputs.get(task.output)
    if task is None or scores is None or not task.class_names or scores.shape != (len(texts), len(task.class_names)):
        raise FileError(f"model '{details.model}': expected a task with class names for --text, found none")
    wide = scores.astype(np.float64)
    probabilities = softmax(wide) if task.scores is Scores.LOGITS else wide
    is_multi = task.kind is TaskKind.MULTI_LABEL
    found = [_labels(task.class_names, row, is_multi) for row in probabilities]
    document = {
        "model": prediction.model,
        "version": prediction.version,
        "texts": [{"text": text, "labels": labels} for text, labels in zip(texts, found, strict=True)],
    }
    rows = [
        [text if place == 0 else "", label["name"], f"{100 * label['probability']:.1f} %", _verdict(label)]
        for text, labels in zip(texts, found, strict=True)
        for place, label in enumerate(labels)
    ]
    title = f"{prediction.model} version {prediction.version}"
    return Report(document, ("text", "label", "probability", "predicted"), rows, above=[title])


def _labels(names: Sequence[str], probabilities: Array, is_multi: bool) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")
    is_predicted = probabilities >= MULTI_LABEL_THRESHOLD if is_multi else np.arange(len(names)) == order[0]
    count = max(SHOWN_LABELS, int(is_predicted.sum()))
    return [
        {"name": names[index], "probability": float(probabilities[index]), "is_predicted": bool(is_predicted[index])}
        for index in order[:count]
    ]


def _verdict(label: Mapping[str, Any]) -> str:
    return "yes" if label["is_predicted"] else ""
