"""What several workers come to together: their metrics and their status as one. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from fitserve_service.run_record import VersionName

_SUMMED: Final = frozenset(
    {
        *("fitserve_version_state", "fitserve_queued_examples"),
        *("process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds"),
    }
)
"""Gauges that add up; of any other the highest says it."""

_LOWEST: Final = frozenset({"process_start_time_seconds", "fitserve_version_joinable", "fitserve_repository_available"})

_SUMS: Final = ("queued_examples", "spot_check_count", "spot_mismatch_count")
"""Counts of a version that add up in the status document."""

_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)")
_GROWING: Final = ("counter", "histogram")


@dataclass(slots=True)
class Family:
    """One metric: its comment lines, its type, and its samples by name with labels, in order."""

    kind: str = "untyped"
    comments: list[str] = field(default_factory=list)
    samples: dict[str, float] = field(default_factory=dict)


Exposition: TypeAlias = dict[str, Family]
"""Metrics by name, in order."""


def parent_exposition(
    restart_count: int, crashes: Mapping[VersionName, int], set_aside: Iterable[VersionName], disagreeing: Iterable[str]
) -> Exposition:
    """Gives what the parent of the workers measures of them itself.

    Args:
        restart_count: Workers that were started in the place of one that ended.
        crashes: Crashes by the version that ran.
        set_aside: Versions that are not loaded any more because of them.
        disagreeing: Models that the workers lastingly disagree on.
    """
    return {
        **_family(
            "fitserve_worker_restarts_total",
            "counter",
            "Workers started in the place of one that ended.",
            {"": restart_count},
        ),
        **_family(
            "fitserve_worker_crashes_total",
            "counter",
            "Crashes of workers by what they ran.",
            {_labels(name): count for name, count in crashes.items()},
        ),
        **_family(
            "fitserve_version_set_aside",
            "gauge",
            "1: not loaded any more, because it crashed its workers.",
            {_labels(name): 1 for name in set_aside},
        ),
        **_family(
            "fitserve_workers_disagree",
            "gauge",
            "1: the workers have not loaded the same of this model for longer than a switch takes.",
            {f'{{model="{model}"}}': 1 for model in disagreeing},
        ),
    }


def _family(name: str, kind: str, help_text: str, values: Mapping[str, int]) -> Exposition:
    comments = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    return {name: Family(kind, comments, {f"{name}{labels}": float(value) for labels, value in values.items()})}


def _labels(name: VersionName) -> str:
    return f'{{model="{name[0]}",version="{name[1]}"}}'


def read_exposition(text: str) -> Exposition:
    """Reads Prometheus's text format as prometheus_client writes it."""
    families: Exposition = {}
    family = Family()
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, *rest = line.split(" ", 3)
            family = families.setdefault(name, Family())
            family.comments.append(line)
            if word == "TYPE":
                family.kind = rest[0]
        elif match := _SAMPLE.fullmatch(line):
            family.samples[match[1] + (match[2] or "")] = float(match[3])
    return families


def write_exposition(families: Exposition) -> str:
    """Writes what `read_exposition` reads."""
    lines: list[str] = []
    for family in families.values():
        lines += family.comments
        lines += [f"{name} {value!r}" for name, value in family.samples.items()]
    return "".join(f"{line}\n" for line in lines)


def merge_expositions(expositions: Sequence[Exposition]) -> Exposition:
    """Adds counters, histograms and gauges of amounts up; of other gauges the highest stays."""
    merged: Exposition = {}
    for families in expositions:
        for name, family in families.items():
            into = merged.setdefault(name, Family(family.kind, list(family.comments)))
            for sample, value in family.samples.items():
                is_sum = family.kind in _GROWING or name in _SUMMED
                into.samples[sample] = _joined(name, is_sum, into.samples.get(sample), value)
    return merged


def grown(families: Exposition) -> Exposition:
    """Gives what must not fall when a worker ends: its counters and histograms, without those of the process itself."""
    return {
        name: family for name, family in families.items() if family.kind in _GROWING and not name.startswith("process_")
    }


def merge_statuses(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins status documents: READY is what all are, rates add up, latencies are those of the slowest worker."""
    first = documents[0]
    models: dict[str, list[Mapping[str, Any]]] = {}
    for document in documents:
        for model in document["models"]:
            models.setdefault(model["name"], []).append(model)
    return {
        **first,
        "is_ready": all(document["is_ready"] for document in documents),
        "workers": sorted((one for each in documents for one in each["workers"]), key=lambda one: int(one["worker"])),
        "window_s": min(document["window_s"] for document in documents),
        "models": [_merge_models(found) for _, found in sorted(models.items())],
    }


def _joined(family: str, is_sum: bool, before: float | None, value: float) -> float:
    if before is None:
        return value
    if is_sum:
        return before + value
    return min(before, value) if family in _LOWEST else max(before, value)


def _merge_models(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    versions: dict[int, list[Mapping[str, Any]]] = {}
    for model in models:
        for version in model["versions"]:
            versions.setdefault(version["version"], []).append(version)
    return {**models[0], "versions": [_merge_versions(versions[number]) for number in sorted(versions, reverse=True)]}


def _merge_versions(versions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    told = next((version for version in versions if version["state"] != "READY"), versions[0])
    return {
        **told,
        "joining": next(
            (version["joining"] for version in versions if version["spot_mismatch_count"]), told["joining"]
        ),
        **{name: sum(version[name] for version in versions) for name in _SUMS},
        "activity": _merge_activities([version["activity"] for version in versions]),
    }


def _merge_activities(activities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {name: sum(a[name] for a in activities) for name in ("request_count", "requests_per_s", "errors_per_s")}
    return {**sums, "p50_ms": _slowest(activities, "p50_ms"), "p99_ms": _slowest(activities, "p99_ms")}


def _slowest(activities: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return max((a[name] for a in activities if a[name] is not None), default=None)
