"""Every architecture of the table is published and answers as torch does, or is refused with its sentence."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.architectures.examine import examine
from tests.architectures.table import ARCHITECTURES, DOCUMENT, QUICK, documented, outcome_text

LEAST = 60


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Two tests run at once: threads of torch would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")  # torch's and the libraries' own while they trace
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_architecture_is_served_as_torch_answers_or_refused(tmp_path: Path, name: str) -> None:
    finding = examine(ARCHITECTURES[name], tmp_path)
    print(f"{name}: {outcome_text(finding)}")
    refused = ARCHITECTURES[name].refused
    assert (finding.outcome == "refused") == bool(refused), finding.why
    assert refused in finding.why
    assert documented()[name].partition(":")[0] == finding.outcome, f"{DOCUMENT.name}: write {name} anew"


def test_document_has_a_line_for_every_architecture() -> None:
    assert list(documented()) == ["architecture", *ARCHITECTURES]
    assert len(ARCHITECTURES) >= LEAST
