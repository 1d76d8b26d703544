"""Prometheus metrics: counted without locks on the loop thread, written out when they are scraped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fitserve_service.repository_state import RepositoryState
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

Instance: TypeAlias = ref[ServedVersion]
"""A loaded instance of a version; it does not keep it loaded."""

_APART: Final = frozenset({"Evaluate", "CompareVersions"})
"""Methods whose latency says nothing about an answer's: whole data sets, at lower priority."""

_LABELS: Final = ("model", "version")

_MOST_GONE: Final = 64
"""Versions that are not loaded any more whose counts are kept for a last scrape; there may never be one."""


def _repository_metrics(state: RepositoryState) -> Iterator[Metric]:
    available = GaugeMetricFamily(
        "fitserve_repository_available", "0: the repository is away; what was loaded from it goes on answering."
    )
    available.add_metric((), 0.0 if state.absence else 1.0)
    absences = CounterMetricFamily("fitserve_repository_absences", "How often the repository went away.")
    absences.add_metric((), state.absence_count)
    notes = GaugeMetricFamily(
        "fitserve_repository_notes", "Files of the repository that lie in the wrong place or cannot be read."
    )
    notes.add_metric((), len(state.notes))
    yield from (available, absences, notes)


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
    """What is counted for one loaded instance of a version; or, without a name, for requests that found none."""

    key: VersionKey = ("", "")
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

    def add(self, other: _Meters) -> None:
        """Counts all that another one has counted."""
        for method, counted in list(other.methods.items()):
            own = self.of(method)
            own.codes = [sum(pair) for pair in zip(own.codes, counted.codes, strict=True)]
            own.request_s.add(counted.request_s)
        for name in ("decode_s", "encode_s", "queue_s", "run_s", "examples"):
            getattr(self, name).add(getattr(other, name))

    def keep_up(self, counted: _MethodMeters, count: int) -> None:
        """Has the histograms count, where much was put by; `count` requests of the method were."""
        counted.uncounted += count
        if counted.uncounted >= MOST_UNCOUNTED:
            counted.uncounted = 0
            for histogram in (counted.request_s, self.decode_s, self.encode_s):
                histogram.keep_up()


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """What the requests to one loaded instance of a version came to so far, Evaluate's left out.

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

    Counts belong to the loaded instance of a version, which `counts` gives. Series of Prometheus have a name and a
    number and only ever grow, so there the instances of a version are added up.

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
        self._nobody = _Meters()
        self._meters: dict[Instance, _Meters] = {}
        self._past: dict[VersionKey, _Meters] = {}
        """What instances counted that are gone."""
        self._lock = threading.Lock()
        self._last_served: Callable[[], ServedVersion | None] = _no_instance
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

    def counts(self) -> dict[Instance, VersionCounts]:
        """Returns the counters of every instance, from any thread."""
        return {instance: _counts(meters) for instance, meters in dict(self._meters).items()}

    def exposition(self) -> bytes:
        """Writes every metric in Prometheus's text format."""
        return generate_latest(self._exposed)

    def collect(self) -> Iterator[Metric]:
        """Gives every metric of the server; called by prometheus_client."""
        meters = sorted(self._series().items())
        yield from _request_metrics(meters)
        yield from _run_metrics(meters)
        yield from self._version_metrics()
        yield self._build_metric()
        yield from _repository_metrics(self._registry.repository)
        self._forget_gone()

    def _meters_of(self, served: ServedVersion | None) -> _Meters:
        if served is None:
            return self._nobody
        # Most often it is the one asked for last.
        if self._last_served() is served:
            return self._last_meters
        instance = ref(served)
        meters = self._meters.get(instance)
        if meters is None:
            self._forget_most_gone()
            meters = self._meters[instance] = _Meters((served.model, str(served.version)))
        self._last_served, self._last_meters = instance, meters
        return meters

    def _series(self) -> Mapping[VersionKey, _Meters]:
        """Adds up by name and number what instances counted."""
        with self._lock:
            self._settle_gone()
            found: dict[VersionKey, list[_Meters]] = {self._nobody.key: [self._nobody]}
            for meters in dict(self._meters).values():
                found.setdefault(meters.key, []).append(meters)
            for key, past in self._past.items():
                found.setdefault(key, []).append(past)
            return {key: meters[0] if len(meters) == 1 else _sum(key, meters) for key, meters in found.items()}

    def _settle_gone(self) -> None:
        """Adds what instances counted that are gone to their versions; under the lock."""
        for instance, meters in dict(self._meters).items():
            if instance() is None:
                # Nothing counts there any more.
                del self._meters[instance]
                self._past.setdefault(meters.key, _Meters(meters.key)).add(meters)

    def _forget_most_gone(self) -> None:
        """Drops the oldest counts of versions that are gone, before those of a new instance begin: scrapes may not."""
        with self._lock:
            self._settle_gone()
            loaded = {meters.key for meters in self._meters.values()}
            gone = [key for key in self._past if key not in loaded]
            for key in gone[: max(0, len(gone) - _MOST_GONE)]:
                del self._past[key]

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
        joinable = GaugeMetricFamily(
            "fitserve_version_joinable",
            "1 where requests of a version are joined into batches, else 0.",
            labels=_LABELS,
        )
        checks = CounterMetricFamily(
            "fitserve_spot_checks",
            "Joined requests that were run again beside copies of themselves; mismatch: the answer differed.",
            labels=(*_LABELS, "result"),
        )
        waiting = self._queued_examples()
        for model in self._registry.snapshot():
            for version in model.versions:
                name = (model.name, str(version.version))
                states.add_metric([*name, version.state.value], 1)
                served = version.served
                if served is None:
                    continue
                facts.add_metric([*name, served.provider, str(served.is_verified).lower()], 1)
                queued.add_metric(name, waiting.get(served, 0))
                joinable.add_metric(name, served.signature.has_batch_axis)
                checks.add_metric([*name, "match"], served.spot_check_count - served.spot_mismatch_count)
                checks.add_metric([*name, "mismatch"], served.spot_mismatch_count)
                if served.replay is not None:
                    replays.add_metric(name, served.replay.replay_ms / 1e3)
        yield from (states, facts, replays, queued, joinable, checks)

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
        with self._lock:
            known = {meters.key for meters in dict(self._meters).values()} | self._past.keys()
            gone = known - loaded
            forgotten = gone & self._gone
            for instance, meters in dict(self._meters).items():
                if meters.key in forgotten:
                    del self._meters[instance]
            for key in forgotten:
                self._past.pop(key, None)
            self._gone = gone
        if forgotten:
            self._last_served = _no_instance


def _no_instance() -> None:
    """Stands for the reference to an instance where none was counted for last."""


def _sum(key: VersionKey, meters: Sequence[_Meters]) -> _Meters:
    total = _Meters(key)
    for each in meters:
        total.add(each)
    return total


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
