"""Loads as the loader's tests make them: on the CPU, with what a `model.toml` would say as keywords."""

from __future__ import annotations

import pytest

from fitserve_contract.repository import VersionPath
from fitserve_service.loader import Loader
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion


def load(path: VersionPath, **overrides: object) -> ServedVersion:
    """Loads a version."""
    return Loader("cpu").load(path, Overrides(overrides))


def refusal(path: VersionPath, **overrides: object) -> str:
    """Gives why a version is refused; nothing in it tells where the repository lies."""
    with pytest.raises(LoadError) as caught:
        load(path, **overrides)
    assert str(path.folder) not in str(caught.value)
    return str(caught.value)
