"""fitserve-serve that cannot start: one sentence, exit code 2, and nothing before it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-c", "from fitserve_service.cli import main; main()")
WAIT_S = 60.0

MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{package}":
            raise ModuleNotFoundError("No module named '{package}'", name="{package}")

sys.meta_path.insert(0, Missing())
"""
"""Found by Python at its start in place of its own `sitecustomize`."""

DYING = """
import os, sys
if "fitserve_service.worker" in sys.orig_argv:
    os._exit(3)
"""


FAILING = """
import sys

class Failing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise {error}

sys.meta_path.insert(0, Failing())
"""

WITHOUT_CAPABILITIES = """
import ctypes, struct
version_3, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
assert ctypes.CDLL(None).capset(version_3, nothing) == 0
"""
"""Source: capset(2)."""


def sentence(root: Path, workers: int, *, startup: str = "", repository: Path | None = None, **environment: str) -> str:
    """Starts the server, which cannot; returns what it says on stderr, all of it."""
    (root / "sitecustomize.py").write_text(startup)
    if repository is None:
        repository = root / "repository"
        repository.mkdir()
    flags = ["--repository", str(repository), "--port", "0", "--metrics-port", "off", "--workers", str(workers)]
    ran = subprocess.run(
        [*COMMAND, *flags],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("fitserve-serve: ")
    assert ran.stderr.count("\n") == 1
    return ran.stderr


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_missing_package_is_named(tmp_path: Path, workers: int) -> None:
    said = sentence(tmp_path, workers, startup=MISSING.format(package="onnxruntime"))
    assert "expected the package 'onnxruntime' in this Python's environment, found none" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_before_all_is_ready_is_not_started_again(tmp_path: Path, workers: int) -> None:
    assert "ended before it was ready (exit code 3)" in sentence(tmp_path, workers, startup=DYING)


def test_a_folder_for_temporary_files_that_is_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert (
        f"TMPDIR: expected a folder for temporary files that takes some, got No such file or directory: '{missing}"
        in (sentence(tmp_path, 2, TMPDIR=missing))
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "text"), [("OSError('libcudart.so: cannot open')", "libcudart.so"), ("MemoryError()", "expected memory")]
)
def test_an_error_that_nobody_expects_is_a_sentence_too(tmp_path: Path, workers: int, error: str, text: str) -> None:
    assert text in sentence(tmp_path, workers, startup=FAILING.format(error=error))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("mode", "is_above"), [(0o000, False), (0o444, False), (0o000, True)])
def test_a_repository_that_may_not_be_entered_is_named(tmp_path: Path, workers: int, mode: int, is_above: bool) -> None:
    closed = tmp_path / "closed"
    repository = closed / "models" if is_above else closed
    repository.mkdir(parents=True)
    closed.chmod(mode)
    # Root may enter any folder, but not without its capabilities.
    startup = WITHOUT_CAPABILITIES if os.geteuid() == 0 else ""
    try:
        said = sentence(tmp_path, workers, startup=startup, repository=repository)
    finally:
        closed.chmod(0o700)
    assert f"--repository '{repository}': cannot be read: Permission denied; let user {os.geteuid()}" in said
