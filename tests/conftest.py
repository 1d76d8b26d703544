"""What every test may need: markers that skip, by name, what this machine cannot run."""

from __future__ import annotations

import gc
import shutil

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine and its other work than of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose program or GPU is missing; `-ra` lists each with its reason."""
    for marker in item.iter_markers("needs_program"):
        name = marker.args[0]
        if shutil.which(name) is None:
            pytest.skip(f"needs_program({name})")
    if item.get_closest_marker("needs_gpu") and shutil.which("nvidia-smi") is None:
        pytest.skip("needs_gpu")


def pytest_collection_finish() -> None:
    """Takes all that was imported as here to stay: many tests have the collector run, and it need not look there."""
    gc.collect()
    gc.freeze()
