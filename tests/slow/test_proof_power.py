"""What the proof lets pass and what it stops: thirty correct architectures, and thirty faults drawn by seed."""

from pathlib import Path

import pytest
from proof_world import ARCHITECTURES, check_fault, check_published

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", list(ARCHITECTURES)[3:])
def test_correct_architecture_is_published(name: str, tmp_path: Path) -> None:
    check_published(name, tmp_path)


@pytest.mark.parametrize("seed", range(3, 30))
def test_fault_is_refused(seed: int) -> None:
    check_fault(list(ARCHITECTURES)[seed], seed)
