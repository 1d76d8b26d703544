"""The lock names each archive with its hash, and none without one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def script() -> ModuleType:
    """Loads setup/write_lock.py, which is no package's module."""
    path = Path(__file__).parents[3] / "setup" / "write_lock.py"
    spec = importlib.util.spec_from_file_location("write_lock", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(name: str, version: str, **hashes: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": {"archive_info": {"hashes": hashes}}}


def test_each_archive_stands_in_the_lock_with_its_hash_by_name() -> None:
    report = {"install": [entry("numpy", "2.4.6", sha256="b" * 64), entry("grpcio", "1.85.1", sha256="a" * 64)]}
    assert script().lock_text(report, "CPython 3.11 on Linux x86_64").splitlines()[1:] == [
        "grpcio==1.85.1 \\",
        f"    --hash=sha256:{'a' * 64}",
        "numpy==2.4.6 \\",
        f"    --hash=sha256:{'b' * 64}",
    ]


@pytest.mark.parametrize("hashes", [{}, {"md5": "0" * 32}, {"sha256": "short"}])
def test_an_archive_without_a_hash_is_refused(hashes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"numpy 2\.4\.6: expected an archive with a SHA-256"):
        script().lock_text({"install": [entry("numpy", "2.4.6", **hashes)]}, "here")


def test_the_lock_that_is_committed_pins_what_the_constraints_pin() -> None:
    root = Path(__file__).parents[3]
    pins = [line for line in (root / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"]
    locked = [
        line.removesuffix(" \\") for line in (root / "requirements.lock").read_text().splitlines() if "==" in line
    ]
    wanted = [pin for pin in pins if not script()._LEFT_OUT.match(pin)]

    def normal(pin: str) -> str:
        return pin.lower().replace("_", "-").replace(".", "-")

    assert sorted(map(normal, locked)) == sorted(map(normal, wanted))
