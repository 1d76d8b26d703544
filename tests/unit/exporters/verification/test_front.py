"""A graph in front of a module: published with its module as one, and refused where its reference differs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fitserve_contract.certificate import read_held_out, read_probe
from fitserve_contract.column_encoding import CODES, NUMBERS
from fitserve_contract.columns import Column, ColumnKind, TableColumns
from fitserve_contract.repository import MODEL_FILE
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Arrays, Candidate, HeldOut
from fitserve_exporters.cli import main
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.preprocessing.columns_front import ColumnsFront
from fitserve_exporters.publishing.publish import publish_candidate

TABLE = TableColumns(
    (
        Column("a", "a", ColumnKind.NUMBER),
        Column("job", "job", ColumnKind.CATEGORY, (("clerk",), ("Köchin",))),
        Column("gain", "gain", ColumnKind.AMOUNT),
    ),
    "label",
)
CELLS = {
    "a": [str(number / 8) for number in range(40)],
    "job": ["clerk", "Köchin", "", "other"] * 10,
    "gain": [f"{1000 * number:,}" for number in range(40)],
}


class Network(nn.Module):
    """Adds linear scores of the numbers to those of the codes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2)
        self.scores = nn.Embedding(4, 2)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        scaled = torch.where(torch.isnan(numbers), 0.5, numbers) / torch.tensor([1.0, 1e4])
        found: torch.Tensor = self.linear(scaled) + self.scores(codes).sum(dim=1)
        return found + (scaled * 0).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Changed(ColumnsFront):
    """A front whose reference takes something for something else, at cells that no held-out row has."""

    def encode(self, inputs: Arrays) -> Arrays:
        made = super().encode(inputs)
        is_changed = inputs["job"] == b"no such category"
        return {**made, CODES: np.where(is_changed, 1, made[CODES])}


@dataclass(frozen=True)
class Scaled(ColumnsFront):
    """A front whose reference reads percentages as they stand."""

    def encode(self, inputs: Arrays) -> Arrays:
        made = super().encode(inputs)
        is_share = np.array([[False, b"%" in cell] for cell in inputs["gain"].reshape(-1)])
        return {**made, NUMBERS: np.where(is_share, made[NUMBERS] * np.float32(1e4), made[NUMBERS])}


def candidate(front: ColumnsFront, inputs: Arrays | None = None) -> Candidate:
    labels = np.arange(40) % 2
    return Candidate(
        module=Network().eval(),
        inputs=front.inputs,
        output_names=("logits",),
        held_out=HeldOut(inputs or TABLE.inputs(CELLS), labels, "made"),
        task=Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, ("a", "b")),
        front=front,
    )


def test_columns_and_network_are_proved_as_one_graph(tmp_path: Path) -> None:
    published = publish_candidate(candidate(ColumnsFront(TABLE)), tmp_path, "table")

    record = published.manifest.verification
    held_out, probe = read_held_out(published.folder), read_probe(published.folder)
    assert record["input_probe_count"] > 12
    assert record["rows"]["is_proved_by_graph"]
    assert published.manifest.onnx["joining"] == "joinable"
    assert [(spec.name, spec.datatype) for spec in published.manifest.inputs] == [
        ("a", "FP32"),
        ("job", "BYTES"),
        ("gain", "BYTES"),
    ]
    assert held_out is not None
    assert probe is not None
    assert held_out.inputs["gain"].tolist() == [[cell.encode()] for cell in CELLS["gain"]]
    assert probe.inputs["job"].dtype == object


def test_inputs_may_be_called_as_anything(tmp_path: Path) -> None:
    names = ("fitserve_columns_constant_0", "numbers", "linear.weight\n")
    columns = tuple(replace(column, input=name) for column, name in zip(TABLE.columns, names, strict=True))
    table = replace(TABLE, columns=columns)
    inputs = dict(zip(names, TABLE.inputs(CELLS).values(), strict=True))
    made = candidate(ColumnsFront(table), inputs)

    published = publish_candidate(made, tmp_path, "table")

    assert tuple(spec.name for spec in published.manifest.inputs) == names
    assert main(["lint", str(published.folder / MODEL_FILE)]) == 0


@pytest.mark.parametrize("front", [Changed(TABLE), Scaled(TABLE)])
def test_a_front_that_differs_where_no_held_out_row_shows_it_is_refused(front: ColumnsFront, tmp_path: Path) -> None:
    with pytest.raises(NotVerifiedError, match=r"'logits' on .* probes of the inputs: expected the answers of the"):
        publish_candidate(candidate(front), tmp_path, "table")
    assert list(tmp_path.iterdir()) == []
