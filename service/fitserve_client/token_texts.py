"""What a model that classifies tokens says about texts: the class of each token, padding and marks left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fitserve_client.answers import softmax
from fitserve_client.errors import FileError
from fitserve_client.models import VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.reports import Report
from fitserve_contract.tasks import Scores, Task
from fitserve_contract.tensor_bytes import Array


def token_report(
    texts: Sequence[str], encodings: Sequence[Any], prediction: Prediction, details: VersionDetails, task: Task
) -> Report:
    """Lists the class of each token with its probability and place in the text.

    Args:
        texts: What was asked.
        encodings: Of the tokenizers library, padded to one length S, one per text.
        prediction: The answer; its task's output is (B, S, C).
        details: The version that answered.
        task: Its task.

    Raises:
        FileError: the answer has not one row of scores per token.
    """
    scores = prediction.outputs.get(task.output)
    expected = (len(texts), len(encodings[0].ids), len(task.class_names))
    if scores is None or scores.shape != expected:
        found = "none" if scores is None else f"shape {scores.shape}"
        raise FileError(
            f"model '{details.model}': expected scores of shape {expected} in output '{task.output}', one row per "
            f"token, got {found}"
        )
    wide = scores.astype(np.float64)
    shares = softmax(wide.reshape(-1, expected[2])).reshape(expected) if task.scores is Scores.LOGITS else wide
    found_tokens = [
        _tokens(text, encoding, of_text, task) for text, encoding, of_text in zip(texts, encodings, shares, strict=True)
    ]
    document = {
        "model": prediction.model,
        "version": prediction.version,
        "texts": [{"text": text, "tokens": tokens} for text, tokens in zip(texts, found_tokens, strict=True)],
    }
    rows = [
        [text if place == 0 else "", token["text"], token["name"], f"{100 * token['probability']:.1f} %"]
        for text, tokens in zip(texts, found_tokens, strict=True)
        for place, token in enumerate(tokens)
    ]
    title = f"{prediction.model} version {prediction.version}"
    return Report(document, ("text", "token", "class", "probability"), rows, above=[title])


def _tokens(text: str, encoding: Any, shares: Array, task: Task) -> list[dict[str, Any]]:
    """Names the tokens of one text; those that stand for nothing in it are left out."""
    found = []
    for place, (start, end) in enumerate(encoding.offsets):
        if not encoding.attention_mask[place] or encoding.special_tokens_mask[place]:
            continue
        best = int(shares[place].argmax())
        name, probability = task.class_names[best], float(shares[place, best])
        found.append({"text": text[start:end], "start": start, "end": end, "name": name, "probability": probability})
    return found
