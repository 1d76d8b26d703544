"""Evaluation: every example once, in its place, by length where there are lengths, in the run's precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fitserve_training import evaluating
from fitserve_training.config import Values
from fitserve_training.data.dataset import Split
from fitserve_training.evaluating import evaluate
from fitserve_training.launch import Request, train
from fitserve_training.objectives import Regression


class TokenSum(nn.Module):
    """Sums the tokens of each sentence, and takes down how long the batches are."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, tokens_BS: Tensor) -> Tensor:
        self.shapes.append(tuple(tokens_BS.shape))
        return tokens_BS.sum(dim=1, keepdim=True).float()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 600), min_size=1, max_size=40))
def test_sentences_are_evaluated_by_length_and_come_back_in_their_order(lengths: list[int]) -> None:
    longest = max(*lengths, 1)
    tokens = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long() * torch.arange(1, len(lengths) + 1)[
        :, None
    ]
    split = Split((tokens,), tokens.sum(dim=1, keepdim=True).float(), torch.tensor(lengths))
    model = TokenSum()

    found = evaluate(model, Regression(), split)

    assert found.metrics["loss"] == 0
    assert torch.equal(found.outputs, split.targets)
    assert sum(rows for rows, _ in model.shapes) == len(lengths)
    assert all(rows == 1 or rows * length <= 1024 for rows, length in model.shapes)
    assert [length for _, length in model.shapes] == sorted(length for _, length in model.shapes)


def test_evaluation_is_in_the_precision_of_the_run() -> None:
    model, split = nn.Linear(3, 1), Split((torch.rand(5, 3),), torch.rand(5, 1))

    with torch.autocast("cpu", torch.bfloat16):
        expected = model(split.inputs[0]).detach().float()
    found = evaluate(model, Regression(), split, torch.autocast("cpu", torch.bfloat16))

    assert torch.equal(found.outputs, expected)
    assert found.outputs.dtype == torch.float32
    assert not torch.equal(evaluate(model, Regression(), split).outputs, expected)


@pytest.mark.parametrize(("keep", "expected"), [("last", 7), ("best", 8)])
def test_a_run_evaluates_once_an_epoch_and_its_report_needs_no_more(
    keep: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    usual = evaluating._outputs

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return usual(*given)

    monkeypatch.setattr(evaluating, "_outputs", counted)
    changes: Values = {"data.name": "digits", "epochs": 2, "keep_weights": keep}

    run = train(Request("softmax", tmp_path / "run", changes=changes), lambda _line: None)

    # One chunk of 360 held-out digits an epoch, and one of 144 to select by; four to compare with the constant at the
    # end, and one to check the last weights.
    assert len(calls) == expected
    assert "Confusion matrix" in (run / "report.html").read_text(encoding="utf-8")
