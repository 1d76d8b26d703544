"""The memory of each worker as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fitserve_service.process_memory import Memory

_KINDS = {"resident_bytes": "resident", "proportional_bytes": "proportional", "private_bytes": "private"}


class MemoryCollector(Collector):
    """Gives this process's memory at each scrape.

    Args:
        worker: Its place among the workers.
        read: Reads its memory; None where the kernel does not tell.
    """

    def __init__(self, worker: int, read: Callable[[], Memory | None]) -> None:
        self._worker = worker
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Gives the metrics; called by prometheus_client."""
        family = GaugeMetricFamily(
            "fitserve_worker_memory_bytes",
            "Memory of a worker. Of shared pages resident has all, proportional its part, private nothing.",
            labels=("worker", "kind"),
        )
        memory = self._read()
        if memory is not None:
            for name, size_bytes in asdict(memory).items():
                family.add_metric([str(self._worker), _KINDS[name]], size_bytes)
        yield family
