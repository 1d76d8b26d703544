"""A wire result for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.quantities import duration, three_digits
from fitserve_benchmarks.wire import WireResult, WireRow


def print_wire_report(result: WireResult, console: Console) -> None:
    """Prints the table and how it came about."""
    console.print(wire_table(result))
    wrong = [row for row in result.rows if not row.is_right]
    for row in wrong:
        console.print(
            f"{row.in_flight} in flight: {row.failed_count} calls failed, {row.wrong_count} of {row.checked_count} "
            f"checked answers were wrong: these figures prove nothing"
        )
    environment = result.environment
    console.print(
        f"Closed loop from a process beside the server; answers checked against {result.checked_against}; ~ marks a "
        f"row whose three turns differ by more than 10 %; 'load' is what the load itself kept of a processor. "
        f"{environment['processor']}, {len(environment['usable_processors'])} processors for both."
    )


def wire_table(result: WireResult) -> Table:
    """Makes the table, a row for each level of calls in flight."""
    title = f"{result.plan.model} version {result.version} over the wire, batch {result.plan.batch_size}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("in flight", "connections", "requests/s", "examples/s", "p50", "p99", "calls", "checked", "load"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: WireRow) -> tuple[str, ...]:
    return (
        str(row.in_flight),
        str(row.connections),
        ("~ " if row.is_unstable else "") + three_digits(row.requests_per_s),
        three_digits(row.requests_per_s * row.batch_size),
        duration(row.p50_s),
        "" if row.p99_s is None else duration(row.p99_s),
        f"{row.sample_count:,}",
        f"{row.checked_count - row.wrong_count} of {row.checked_count}",
        f"{row.load_processor_share:.0%}",
    )
