"""Counters of one version, as the Open Inference Protocol's ModelStatistics reports them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

_MOST_SIZES: Final = 1024
"""Sizes of runs that are counted apart."""


@dataclass(slots=True)
class Duration:
    """How often, and how long together in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, duration_s: float, count: int = 1) -> None:
        """Adds `count` events that took `duration_s` each."""
        self.count += count
        self.ns += int(duration_s * 1e9) * count


@dataclass(slots=True)
class VersionStatistics:
    """What one version has done since it became READY. Written on the loop thread alone; reading elsewhere may tear."""

    inference_count: int = 0
    """Examples answered."""
    execution_count: int = 0
    """Runs of the model; smaller than the inference count where requests were joined."""
    last_inference_ms: int = 0
    """Unix time of the last run, milliseconds."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batch: dict[int, Duration] = field(default_factory=dict)
    """Examples in a run to the runs of that size; beyond 1,024 sizes, others are rounded up to powers of two."""

    def add_run(self, example_count: int, queue_s: list[float], input_s: float, run_s: float, output_s: float) -> None:
        """Counts one run that answered one request per entry of `queue_s`."""
        request_count = len(queue_s)
        self.inference_count += example_count
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        size = example_count
        batch = self.batch.get(size)
        if batch is None:
            if len(self.batch) >= _MOST_SIZES:
                # Callers choose the sizes of their requests.
                size = 1 << (size - 1).bit_length()
            batch = self.batch.setdefault(size, Duration())
        batch.add(run_s)
        queue_ns = int(sum(queue_s) * 1e9)
        input_ns, run_ns, output_ns = int(input_s * 1e9), int(run_s * 1e9), int(output_s * 1e9)
        # Every request of a run has all of its time.
        for duration, ns in (
            (self.queue, queue_ns),
            (self.success, queue_ns + (input_ns + run_ns + output_ns) * request_count),
            (self.compute_input, input_ns * request_count),
            (self.compute_infer, run_ns * request_count),
            (self.compute_output, output_ns * request_count),
        ):
            duration.count += request_count
            duration.ns += ns

    def add_failure(self, elapsed_s: float) -> None:
        """Counts one request that was not answered."""
        self.fail.add(elapsed_s)
