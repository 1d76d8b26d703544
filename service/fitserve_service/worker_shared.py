"""What several workers share: copies of models, what callers use of their quotas, and the number of the last switch."""

from __future__ import annotations

from typing import Any

from fitserve_service.access.shared_quotas import QuotaMemory
from fitserve_service.switching.counter import SwitchCounter
from fitserve_service.weight_files import OwnedFolder


class WorkerShared:
    """Made by the parent before the first worker; each worker has its descriptors under the same numbers.

    Args:
        worker_count: Workers.

    Raises:
        OSError: the folder cannot be made; its file name is where.
    """

    def __init__(self, worker_count: int) -> None:
        self._weights = OwnedFolder()
        self._quotas = QuotaMemory(worker_count)
        self._counter = SwitchCounter()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a worker inherits."""
        return self._quotas.descriptor, self._counter.descriptor

    def fields(self) -> dict[str, Any]:
        """Writes for `begin` where to find it all."""
        return {
            "weights": str(self._weights.path),
            "quotas": self._quotas.descriptor,
            "counter": self._counter.descriptor,
        }

    def switch(self, number: int) -> None:
        """Makes a switch that all workers have prepared."""
        self._counter.write(number)

    def give_back(self, number: int) -> None:
        """Clears what a worker that ended had under way."""
        self._quotas.give_back(number)

    def close(self) -> None:
        """Lets it go, once all workers have ended."""
        self._weights.close()
        self._quotas.close()
        self._counter.close()


NOTHING_SHARED = {"weights": None, "quotas": None, "counter": None}
"""What a lone worker finds in `begin`."""
