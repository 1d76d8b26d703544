"""What no fault may find: a thread that takes stop signals from the one that waits for them, a queue on wall clocks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fitserve_service

_SOURCES = Path(fitserve_service.__file__).parent
_WALL_CLOCKS = {"time", "time_ns", "now", "utcnow", "today"}
_TELLS_THE_TIME = {
    *("audit", "completion_queue", "logs", "pages_activity", "source", "statistics", "telemetry", "token_command"),
    "tracing",
}
"""Modules that write times down for people (a token ends on a date, too), or compare them with a file's, or talk to
grpc's core, whose points in time are on the wall clock and made where they are used: none keeps one to wait by."""


def test_no_thread_is_there_before_the_command_blocks_stop_signals() -> None:
    code = (
        "import os, sys, fitserve_service.cli, fitserve_service.worker_process\n"
        "print(len(os.listdir('/proc/self/task')), *sorted({'numpy', 'grpc', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def _wall_clock_calls(source: str) -> list[str]:
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name)]
    return [
        f"{call.value.id}.{call.attr}"
        for call in named
        if isinstance(call.value, ast.Name)
        and call.value.id in {"time", "datetime", "date"}
        and call.attr in _WALL_CLOCKS
    ]


@pytest.mark.parametrize("path", sorted(_SOURCES.rglob("*.py")), ids=lambda path: path.stem)
def test_a_clock_that_steps_moves_no_queue_deadline_or_back_off(path: Path) -> None:
    if path.stem not in _TELLS_THE_TIME:
        assert _wall_clock_calls(path.read_text()) == []


def test_a_wall_clock_is_seen() -> None:
    assert _wall_clock_calls("import time\nuntil = time.time() + 5\nnow = time.monotonic()") == ["time.time"]
