"""Whoever imports ONNX Runtime through us sends nothing about it to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_contract.runtime_reports import VARIABLE


@pytest.mark.parametrize(
    "module", ["fitserve_service.session", "fitserve_exporters.sessions", "fitserve_benchmarks.subject"]
)
def test_onnx_runtime_reports_nothing_and_leaves_no_file(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    program = f"import {module}, os, onnxruntime; print(os.environ['{VARIABLE}'])"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "1\n"
    assert not (tmp_path / ".ses").exists()


def test_the_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitserve_contract import runtime_reports

    monkeypatch.setenv(VARIABLE, "0")
    runtime_reports.turn_off()
    assert os.environ[VARIABLE] == "0"
