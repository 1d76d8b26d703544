"""Ctrl-C and SIGTERM end fitserve-export with one line, whatever it is doing, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import ctypes, os, signal, sys, types
from fitserve_exporters import cli

def in_c(*arguments):
    os.write(told, b"x")
    ctypes.CDLL(None).sleep(60)  # C code: no Python handler runs meanwhile

def between(*arguments):
    seen, handler = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *of: (handler(*of), seen.append(of)))
    os.write(told, b"x")
    while not seen:
        os.sched_yield()
    write(*arguments)

def run_candidate(*_, **__):
    global write
    import numpy as np, torch
    from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec
    from fitserve_exporters.graph import onnx_export
    from fitserve_exporters.publishing import publish, writing
    write = writing.write_durably
    place, name, stop = {
        "tracing": (onnx_export, "traced_program", in_c),
        "verifying": (publish, "verify", in_c),
        "writing": (writing, "write_durably", between),
    }[sys.argv[1]]
    setattr(place, name, stop)
    inputs = (InputSpec("x", torch.float32, ("batch", 3)),)
    return "m", Candidate(torch.nn.Linear(3, 2), inputs, ("y",), HeldOut({"x": np.ones((4, 3), "f")}, None, "ones"))

told = int(sys.argv[2])
# In the place of the module, as that one loads torch before the command begins.
sys.modules["fitserve_exporters.run_export"] = types.SimpleNamespace(run_candidate=run_candidate)
sys.exit(cli.main([sys.argv[3], "--repository", sys.argv[4]]))
"""


def interrupted(folder: Path, stage: str, number: int) -> tuple[int, str, str]:
    """Sends a signal twice at a stage of an export; returns the exit code, stdout and stderr."""
    for name in ("run", "temporary"):
        (folder / name).mkdir()
    reader, writer = os.pipe()
    command = [sys.executable, "-c", SCRIPT, stage, str(writer), str(folder / "run"), str(folder / "repository")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment["TMPDIR"] = str(folder / "temporary")
    with subprocess.Popen(command, pass_fds=(writer,), env=environment, **pipes) as process:
        os.close(writer)
        assert os.read(reader, 1) == b"x", process.communicate()
        process.send_signal(number)
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    os.close(reader)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("stage", "number", "code", "word"),
    [
        pytest.param("tracing", signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
        ("verifying", signal.SIGINT, 130, "interrupted"),
        ("writing", signal.SIGTERM, 143, "ended by SIGTERM"),
    ],
)
def test_signal_is_one_line_and_leaves_nothing(tmp_path: Path, stage: str, number: int, code: int, word: str) -> None:
    assert interrupted(tmp_path, stage, number) == (code, "", f"fitserve-export: {word}; nothing was published\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []
