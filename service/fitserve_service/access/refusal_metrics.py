"""What was not let in, as Prometheus metrics: these requests never reach what counts the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class RefusalCollector(Collector):
    """Gives the refusals at each scrape.

    Args:
        counts: Gives them by method and reason, from any thread.
    """

    def __init__(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Gives the metrics; called by prometheus_client."""
        text = "Calls that were refused before their method ran: no credential, none for it, or its quota used up."
        refused = CounterMetricFamily("fitserve_access_refusals", text, labels=("method", "reason"))
        for (method, reason), count in sorted(self._counts().items()):
            refused.add_metric([method, reason], count)
        yield refused
