"""What the command may import before it has kept the stop signals for the thread that waits for them."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys, threading
import fitserve_service.cli, fitserve_service.workers
print(sorted({"numpy", "grpc", "onnxruntime"} & set(sys.modules)), threading.active_count())
"""


def test_neither_the_command_nor_a_parent_of_workers_imports_what_starts_threads() -> None:
    # numpy's OpenBLAS threads would take a SIGTERM that every other thread keeps blocked, and die of it.
    ran = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["[]", "1"]
