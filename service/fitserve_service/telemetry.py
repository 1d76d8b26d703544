"""Prometheus metrics: counted without locks on the loop thread, written out when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from weakref import ref

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fitserve_service.budget import Budget
from fitserve_service.engine import BatchRecord
from fitserve_service.errors import Code
from fitserve_service.histogram import MOST_UNCOUNTED, Histogram
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion

EXPOSED_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds that Prometheus is told."""

SECONDS_BOUNDS: Final = tuple(
    sorted({*EXPOSED_SECONDS, *(bound for step in range(145) if (bound := 1e-5 * 1.1**step) < EXPOSED_SECONDS[-1])})
)
"""Bounds that are counted by, from 10 us to 10 s, each at most a tenth above the one before."""

EXAMPLES_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

VersionKey: TypeAlias = tuple[str, str]
"""Model and version as labels say them; two empty strings for requests that found none."""

_APART: Final = frozenset({"Evaluate", "CompareVersions"})
"""Methods whose latency says nothing about an answer's: whole data sets, at lower priority."""

_LABELS: Final = ("model", "version")


def _seconds() -> Histogram:
    return Histogram(SECONDS_BOUNDS, EXPOSED_SECONDS)


@dataclass(slots=True)
class _MethodMeters:
    """What is counted for one method."""

    codes: list[int] = field(default_factory=lambda: [0] * (max(Code) + 1))
    """Requests that ended, by the number of their status code."""
    request_s: Histogram = field(default_factory=_seconds)
    uncounted: int = 0
    """Requests since the histograms were last asked to keep up."""


@dataclass(slots=True)
class _Meters:
    """What is counted for one version; or, without a name, for requests that found none."""

    methods: dict[str, _MethodMeters] = field(default_factory=dict)
    decode_s: Histogram = field(default_factory=_seconds)
    encode_s: Histogram = field(default_factory=_seconds)
    queue_s: Histogram = field(default_factory=_seconds)
    run_s: Histogram = field(default_factory=_seconds)
    examples: Histogram = field(default_factory=lambda: Histogram(EXAMPLES_BOUNDS))

    def of(self, method: str) -> _MethodMeters:
        """Gives what is counted for a method."""
        counted = self.methods.get(method)
        if counted is None:
            counted = self.methods[method] = _MethodMeters()
        return counted

    def keep_up(self, counted: _MethodMeters, count: int) -> None:
        """Has the histograms count, where much was put by; `count` requests of the method were."""
        counted.uncounted += count
        if counted.uncounted >= MOST_UNCOUNTED:
            counted.uncounted = 0
            for histogram in (counted.request_s, self.decode_s, self.encode_s):
                histogram.keep_up()


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """What a version's requests came to so far, Evaluate's left out.

    Args:
        request_count: Requests that ended.
        error_count: Of these, those that failed.
        latency: Requests by SECONDS_BOUNDS, and those above the last of them.
    """

    request_count: int = 0
    error_count: int = 0
    latency: tuple[int, ...] = ()


class Telemetry(Collector):
    """The server's metrics.

    `on_request` and `on_batch` belong to the loop thread, `exposition` and `counts` to any other.

    Args:
        registry: Versions and their states, read at each scrape.
        queued_examples: Gives how many examples wait, by version; empty where the loop does not answer in time.
        build: Facts of this server as labels: version, ONNX Runtime's version, device.
    """

    def __init__(
        self, registry: Registry, queued_examples: Callable[[], dict[ServedVersion, int]], build: dict[str, str]
    ) -> None:
        self._registry = registry
        self._queued_examples = queued_examples
        self._build = build
        self._meters: dict[VersionKey, _Meters] = {}
        self._last_served: Callable[[], ServedVersion | None] = lambda: None
        self._last_meters = _Meters()
        self._gone: set[VersionKey] = set()
        self._exposed = CollectorRegistry(auto_describe=False)
        self._exposed.register(self)
        ProcessCollector(registry=self._exposed)

    def add(self, collector: Collector) -> None:
        """Writes a further collector's metrics out with the server's own."""
        self._exposed.register(collector)

    def on_request(
        self, method: str, served: ServedVersion | None, code: Code, elapsed_s: float, budget: Budget | None = None
    ) -> None:
        """Counts the end of a request, and where the time of one that was answered went; queue and run go by run."""
        meters = self._meters_of(served)
        counted = meters.of(method)
        counted.codes[code] += 1
        counted.request_s.observe(elapsed_s)
        if budget is not None:
            meters.decode_s.observe(budget.decode_s)
            meters.encode_s.observe(budget.encode_s)
        meters.keep_up(counted, 1)

    def on_bundle(
        self, method: str, served: ServedVersion, elapsed_s: Sequence[float], decode_s: float, encode_s: float
    ) -> None:
        """Counts requests that were answered together."""
        meters, count = self._meters_of(served), len(elapsed_s)
        counted = meters.of(method)
        counted.codes[Code.OK] += count
        counted.request_s.observe_all(elapsed_s)
        meters.decode_s.observe_all([decode_s] * count)
        meters.encode_s.observe_all([encode_s] * count)
        meters.keep_up(counted, count)

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:
        """Counts one run of a model."""
        meters = self._meters_of(served)
        meters.run_s.observe(batch.run_s)
        meters.examples.observe(batch.example_count)
        meters.queue_s.observe_all(batch.queue_s)
        for histogram in (meters.run_s, meters.examples, meters.queue_s):
            histogram.keep_up()

    def counts(self) -> dict[VersionKey, VersionCounts]:
        """Gives the counters of every version, from any thread."""
        return {key: _counts(meters) for key, meters in dict(self._meters).items() if key[0]}

    def exposition(self) -> bytes:
        """Writes every metric in Prometheus's text format."""
        return generate_latest(self._exposed)

    def collect(self) -> Iterator[Metric]:
        """Gives every metric of the server; called by prometheus_client."""
        meters = sorted(dict(self._meters).items())
        yield from _request_metrics(meters)
        yield from _run_metrics(meters)
        yield from self._version_metrics()
        yield self._build_metric()
        self._forget_gone()

    def _meters_of(self, served: ServedVersion | None) -> _Meters:
        # Most often it is the one asked for last; its text would cost more than all that is counted.
        if served is not None and self._last_served() is served:
            return self._last_meters
        key = ("", "") if served is None else (served.model, str(served.version))
        meters = self._meters.get(key)
        if meters is None:
            meters = self._meters[key] = _Meters()
        if served is not None:
            self._last_served, self._last_meters = ref(served), meters
        return meters

    def _version_metrics(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "fitserve_version_state", "1 for the state that a version is in.", labels=(*_LABELS, "state")
        )
        facts = GaugeMetricFamily(
            "fitserve_version_info",
            "1 for each loaded version, with the execution provider that really runs it.",
            labels=(*_LABELS, "provider", "verified"),
        )
        replays = GaugeMetricFamily(
            "fitserve_replay_seconds", "Time that replaying a version's probe took before it was READY.", labels=_LABELS
        )
        queued = GaugeMetricFamily("fitserve_queued_examples", "Examples that wait for a run.", labels=_LABELS)
        waiting = self._queued_examples()
        for model in self._registry.snapshot():
            for version in model.versions:
                name = (model.name, str(version.version))
                states.add_metric([*name, version.state.value], 1)
                if version.served is not None:
                    facts.add_metric([*name, version.served.provider, str(version.served.is_verified).lower()], 1)
                    queued.add_metric(name, waiting.get(version.served, 0))
                    if version.served.replay is not None:
                        replays.add_metric(name, version.served.replay.replay_ms / 1e3)
        yield from (states, facts, replays, queued)

    def _build_metric(self) -> Metric:
        build = GaugeMetricFamily("fitserve_build_info", "1, with what this server is.", labels=tuple(self._build))
        build.add_metric(tuple(self._build.values()), 1)
        return build

    def _forget_gone(self) -> None:
        """Drops what was counted for versions that are gone, once they have been scraped for the last time."""
        loaded = {
            (model.name, str(version.version))
            for model in self._registry.snapshot()
            for version in model.versions
            if version.served is not None
        }
        gone = set(self._meters) - loaded - {("", "")}
        for key in gone & self._gone:
            self._meters.pop(key, None)
            self._last_served = lambda: None
        self._gone = gone


def _counts(meters: _Meters) -> VersionCounts:
    counted = [found for method, found in list(meters.methods.items()) if method not in _APART]
    codes = [list(found.codes) for found in counted]
    latencies = [found.request_s.counts for found in counted]
    request_count = sum(map(sum, codes))
    return VersionCounts(
        request_count=request_count,
        error_count=request_count - sum(counts[Code.OK] for counts in codes),
        latency=tuple(map(sum, zip(*latencies, strict=True))),
    )


def _request_metrics(meters: list[tuple[VersionKey, _Meters]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "fitserve_requests", "Requests that ended; no model where none was found.", labels=(*_LABELS, "method", "code")
    )
    seconds = HistogramMetricFamily(
        "fitserve_request_seconds", "Time from arrival to answer.", labels=(*_LABELS, "method")
    )
    for version, counted in meters:
        for method, found in list(counted.methods.items()):
            for code in Code:
                if count := found.codes[code]:
                    requests.add_metric([*version, method, code.name], count)
            seconds.add_metric([*version, method], found.request_s.cumulative(), found.request_s.total)
    yield from (requests, seconds)


def _run_metrics(meters: list[tuple[VersionKey, _Meters]]) -> Iterator[Metric]:
    queue = HistogramMetricFamily("fitserve_queue_seconds", "Time that a request waited for its run.", labels=_LABELS)
    run = HistogramMetricFamily("fitserve_run_seconds", "Time of one run of the model.", labels=_LABELS)
    decode = HistogramMetricFamily("fitserve_decode_seconds", "Time to read and check a request.", labels=_LABELS)
    encode = HistogramMetricFamily("fitserve_encode_seconds", "Time to write an answer.", labels=_LABELS)
    examples = HistogramMetricFamily("fitserve_batch_examples", "Examples in one run, without padding.", labels=_LABELS)
    for version, counted in meters:
        if version[0]:
            decode.add_metric(version, counted.decode_s.cumulative(), counted.decode_s.total)
            encode.add_metric(version, counted.encode_s.cumulative(), counted.encode_s.total)
            queue.add_metric(version, counted.queue_s.cumulative(), counted.queue_s.total)
            run.add_metric(version, counted.run_s.cumulative(), counted.run_s.total)
            examples.add_metric(version, counted.examples.cumulative(), counted.examples.total)
    yield from (decode, queue, run, encode, examples)
