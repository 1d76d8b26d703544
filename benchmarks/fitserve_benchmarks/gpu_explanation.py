"""Why a call on a device takes what it takes: its two floors, a launch, and the copies, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fitserve_benchmarks.contestants import DEVICE_TO_DEVICE, HOST_TO_HOST
from fitserve_benchmarks.quantities import duration, three_digits

_TRANSFERS: Final = (DEVICE_TO_DEVICE, HOST_TO_HOST)

_NEAR: Final = 2.0
"""A time within twice a bound is said to be explained by it."""


def floor_lines(figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields Markdown: the measured rates, and for each batch size the floors beside the best rows of the device.

    Args:
        figures: Of the step `floors`; empty where it was not done.
        rows: Of the step `latency`, as its JSON has them.
    """
    if not figures:
        return
    rates = figures["rates"]
    yield (
        f"Floors of a call on {rates['device']}, by rates measured in this run: "
        f"{three_digits(rates['bytes_per_s'] / 1e9)} GB/s on the device, "
        f"{three_digits(rates['operations_per_s'] / 1e12)} TFLOP/s fp32, "
        f"{three_digits(rates['copy_bytes_per_s'] / 1e9)} GB/s from the host, "
        f"{duration(rates['launch_s'])} for a launch that is waited for."
    )
    yield ""
    yield "| batch | bytes / bandwidth | operations / rate | copies | on the device | host to host | explained by |"
    yield "|---|---|---|---|---|---|---|"
    for floor in figures["floors"]:
        best = {transfer: best_row(rows, rates["device"], floor["batch_size"], transfer) for transfer in _TRANSFERS}
        times = [_time_text(best[transfer], floor["least_s"]) for transfer in _TRANSFERS]
        bounds = (duration(floor["bytes_s"]), duration(floor["operations_s"]), duration(floor["copy_s"]))
        why = explanation(floor, rates["launch_s"], *(_median(best[transfer]) for transfer in _TRANSFERS))
        yield f"| {floor['batch_size']} | {' | '.join((*bounds, *times))} | {why} |"
    yield ""


def best_row(
    rows: Sequence[Mapping[str, Any]], device: str, batch_size: int, transfer: str
) -> Mapping[str, Any] | None:
    """Finds the fastest row that was measured and agrees; None where there is none."""
    kept = [
        row
        for row in rows
        if row["skipped"] is None
        and row["agrees"]
        and (row["device"], row["batch_size"], row["transfer"]) == (device, batch_size, transfer)
    ]
    return min(kept, key=lambda row: row["median_s"]["estimate"], default=None)


def explanation(floor: Mapping[str, Any], launch_s: float, device_s: float | None, host_s: float | None) -> str:
    """Says what the measured times consist of.

    Args:
        floor: Of the call.
        launch_s: The least time of a launch that is waited for.
        device_s: Best time device to device; None where nobody was measured.
        host_s: Best time host to host; None likewise.
    """
    parts = [] if device_s is None else [_device_text(floor, launch_s, device_s)]
    if host_s is not None and device_s is not None and host_s > device_s:
        share = floor["copy_s"] / (host_s - device_s)
        parts.append(f"copies are {min(share, 1.0):.0%} of what host to host adds")
    elif host_s is not None and device_s is None:
        parts.append(_device_text(floor, launch_s, host_s))
    return "; ".join(parts) or "nothing was measured on it"


def _device_text(floor: Mapping[str, Any], launch_s: float, taken_s: float) -> str:
    least_s = floor["least_s"]
    if taken_s <= _NEAR * least_s:
        return "bytes" if floor["bytes_s"] >= floor["operations_s"] else "operations"
    if taken_s <= _NEAR * (least_s + launch_s):
        return "one launch"
    return (
        f"launches and kernels below the floors' rates: {three_digits((taken_s - least_s) / launch_s)} launches' time"
    )


def _time_text(row: Mapping[str, Any] | None, least_s: float) -> str:
    if row is None:
        return ""
    median_s = row["median_s"]["estimate"]
    return f"{duration(median_s)}, {three_digits(median_s / least_s)}× the floor ({row['contestant']})"


def _median(row: Mapping[str, Any] | None) -> float | None:
    return None if row is None else float(row["median_s"]["estimate"])
