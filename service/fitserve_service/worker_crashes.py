"""Crashes of workers: which version was to blame, and which versions no worker loads any more because of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from fitserve_service.crashes import Crashes, SetAside, crash_of
from fitserve_service.run_record import VersionName
from fitserve_service.settings import ServerSettings
from fitserve_service.source import version_stamp
from fitserve_service.worker_process import WorkerProcess

_log = logging.getLogger(__name__)


class WorkerCrashes:
    """Counts crashes by version, and sets aside what crashes too often. Used on the parent's main thread.

    Args:
        settings: The server's.
        live: The workers that live; the parent's own set.
    """

    def __init__(self, settings: ServerSettings, live: Collection[WorkerProcess]) -> None:
        self._settings = settings
        self._live = live
        self._crashes = Crashes(settings.crash_limit, settings.crash_window_s, self._stamp)
        self.aside: dict[VersionName, SetAside] = {}
        """Versions that are set aside."""

    def totals(self) -> dict[VersionName, int]:
        """Returns all crashes since the start, by version; to any thread."""
        return dict(self._crashes.totals)

    def fields(self) -> list[dict[str, Any]]:
        """Writes for `begin` what is set aside."""
        return [asdict(entry) for entry in self.aside.values()]

    def note(self, worker: WorkerProcess, *, is_starting: bool) -> frozenset[VersionName]:
        """Counts the crash of a worker that has ended against what it was running.

        Args:
            worker: The worker.
            is_starting: The server has not been ready yet: a crash that no version is to blame for is not logged, as
                the sentence that ends the server tells of it.

        Returns:
            What it was running; nothing where it did not crash.
        """
        if not (crash := crash_of(worker.process.returncode, worker.record.fault())):
            return frozenset()
        running = worker.record.running()
        if is_starting and not running:
            return running
        names = ", ".join(f"{model} version {version}" for model, version in sorted(running)) or "no version"
        _log.error("worker %d crashed (%s) while running %s\n%s", worker.number, crash, names, worker.record.trace())
        for name in self._crashes.add(running, time.monotonic()):
            reason = self._crashes.reason(crash, running - {name})
            self.aside[name] = SetAside(*name, reason, self._stamp(name))
            _log.error("%s version %d: %s", *name, reason)
            for other in self._live:
                other.tell("set_aside", version=asdict(self.aside[name]))
        return running

    def forgive(self, model: str) -> None:
        """Forgets what a model's versions did: somebody wants them loaded all the same."""
        self._crashes.forgive(model)
        for name in [name for name in self.aside if name[0] == model]:
            del self.aside[name]

    def _stamp(self, name: VersionName) -> tuple[int, ...]:
        return version_stamp(self._settings.repository_root, *name)
