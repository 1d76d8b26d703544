"""A lock is taken only by the Python and the machine that it was written for."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

SETUP = Path(__file__).parents[3] / "setup"
MODULE = runpy.run_path(str(SETUP / "check_lock.py"))
HERE = ("CPython", "3.11", "Linux", "x86_64")


def test_the_committed_lock_says_for_whom_it_is() -> None:
    head = (SETUP.parent / "requirements.lock").read_text().partition("\n")[0]
    assert MODULE["mismatch"](head, HERE) == ""


def test_another_python_or_machine_is_refused_in_words() -> None:
    head = "# Written by setup/write_lock.py for CPython 3.11 on Linux x86_64; without torch"
    found = MODULE["mismatch"](head, ("CPython", "3.12", "Linux", "x86_64"))
    assert found == "expected CPython 3.11 on Linux x86_64, got CPython 3.12 on Linux x86_64"
    assert "aarch64" in MODULE["mismatch"](head, ("CPython", "3.11", "Linux", "aarch64"))
    assert "expected the first line" in MODULE["mismatch"]("absl-py==2.5.1", HERE)


def test_the_command_says_it_too(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("# Written by setup/write_lock.py for PyPy 2.7 on Plan9 mips; without torch\n")
    done = subprocess.run(
        [sys.executable, str(SETUP / "check_lock.py"), str(lock)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected PyPy 2.7 on Plan9 mips, got" in done.stderr
    assert "make setup" in done.stderr
