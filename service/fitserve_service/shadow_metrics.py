"""The shadow's counts as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fitserve_service.shadow import ShadowCounts, ShadowKey

_LABELS = ("model", "live", "shadow")


class ShadowCollector(Collector):
    """Gives the shadow's counts at each scrape.

    Args:
        counts: Gives them, from any thread.
    """

    def __init__(self, counts: Callable[[], dict[ShadowKey, ShadowCounts]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Gives the metrics; called by prometheus_client."""
        requests = CounterMetricFamily(
            "fitserve_shadow_requests", "Requests that the shadow version was to run.", labels=(*_LABELS, "outcome")
        )
        examples = CounterMetricFamily("fitserve_shadow_examples", "Examples compared.", labels=_LABELS)
        agreed = CounterMetricFamily(
            "fitserve_shadow_agreed_examples", "Examples for which both versions predicted the same.", labels=_LABELS
        )
        difference = GaugeMetricFamily(
            "fitserve_shadow_max_abs_diff", "Largest difference of two numbers of the answers.", labels=_LABELS
        )
        seconds = CounterMetricFamily(
            "fitserve_shadow_run_seconds",
            "Time in the runtime of the requests compared, by which of the two versions ran.",
            labels=(*_LABELS, "role"),
        )
        dropped = CounterMetricFamily(
            "fitserve_shadow_dropped_requests",
            "Requests that the shadow version did not run, by reason: busy, full, gone, late, draining.",
            labels=(*_LABELS, "reason"),
        )
        for key, counts in sorted(self._counts().items()):
            names = [key.model, str(key.live_version), str(key.shadow_version)]
            for outcome, count in _outcomes(counts).items():
                requests.add_metric([*names, outcome], count)
            for reason, count in counts.dropped.items():
                dropped.add_metric([*names, reason.value], count)
            examples.add_metric(names, counts.example_count)
            if counts.has_agreement:
                agreed.add_metric(names, counts.agreed_count)
            difference.add_metric(names, counts.max_abs_diff)
            seconds.add_metric([*names, "live"], counts.live_run_ns / 1e9)
            seconds.add_metric([*names, "shadow"], counts.shadow_run_ns / 1e9)
        yield from (requests, dropped, examples, agreed, difference, seconds)


def _outcomes(counts: ShadowCounts) -> dict[str, int]:
    return {"compared": counts.compared_count, "failed": counts.failed_count, "dropped": counts.dropped_count}
