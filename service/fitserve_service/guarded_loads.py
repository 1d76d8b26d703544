"""Loads that may end the process: each is tried out where nothing is lost by it, and written down for when it is."""

from __future__ import annotations

import logging

from fitserve_contract.repository import VersionPath
from fitserve_service import run_record
from fitserve_service.loading.load_errors import TIME, LoadError, RunLimitError, ShortageError
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion, VersionLoader
from fitserve_service.shared_trials import Trials
from fitserve_service.variants import FP32, has_variants

_log = logging.getLogger(__name__)


class RecordedLoader:
    """A loader whose loads are written down, for when one crashes this process."""

    def __init__(self, loader: VersionLoader) -> None:
        self._loader = loader

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:
        """Loads a version; see `Loader.load`."""
        with run_record.running(path.model, path.version):
            return self._loader.load(path, overrides)


class TriedLoader:
    """A loader before which each version is tried out.

    Args:
        loader: Loads what did not fail.
        canaries: Where versions are tried out.
    """

    def __init__(self, loader: VersionLoader, canaries: Trials) -> None:
        self._loader = loader
        self._canaries = canaries

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:
        """Tries a version out, then loads it; see `Loader.load`.

        Where it has variants and one of them is what ends the trial, its fp32 model is tried and serves.
        """
        try:
            self._canaries.try_out(path, overrides)
        except LoadError as error:
            # What ran out of time on a busy machine may have no end at all: fp32 serves sooner than it is tried again.
            if error.kind not in ("", TIME):
                raise
            if overrides.values.get("variant") == FP32 or not has_variants(path.folder):
                raise
            overrides = overrides.put_right("variant", FP32, f"with a variant: {error}")
            self._canaries.try_out(path, overrides)
            _log.warning("%s version %d: %s; fp32 serves in its place", path.model, path.version, error)
        try:
            return self._loader.load(path, overrides)
        except RunLimitError as error:
            # The trial ran it in half the time that the server allows: it is the machine that was busy.
            raise ShortageError(f"{error}; its trial ran in time: the machine is busy", TIME) from error
