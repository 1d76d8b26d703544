"""A server may have as many connections as the machine lets it, whatever the shell's limit."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from fitserve_service import descriptors
soft, hard = %r
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(descriptors.raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("soft", [64, 500, 512])
def test_the_limit_is_raised_to_what_the_process_may_have(soft: int) -> None:
    # In a process of its own: a hard limit cannot be raised again.
    program = PROGRAM % ((soft, 512),)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["512", "512", "512"]
