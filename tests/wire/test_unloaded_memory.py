"""What a version took is given back with its last user: no collector is waited for."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import builders
import numpy as np
import pytest
from tests.wire.serving import serving, url

from fitserve_client import Client


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_an_unloaded_versions_session_is_gone(tmp_path: Path, transport: str) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task())
    with serving(tmp_path, transport=transport) as server, Client(url(server)) as client:
        for size in (1, 2, 3):
            client.predict("m", np.ones((size, 2), np.float32))
        is_gone = threading.Event()
        lease = server.registry.lease("m")
        weakref.finalize(lease.served.session, is_gone.set)
        lease.release()
        del lease
        # Calls that ended may have left the collector something; the version itself must not.
        gc.collect()
        gc.disable()
        try:
            client.unload("m")
            assert is_gone.wait(10.0)
        finally:
            gc.enable()
