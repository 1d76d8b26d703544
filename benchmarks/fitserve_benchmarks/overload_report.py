"""An overload run for people: a table of its phases, and each figure with what was reached."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.overload import OverloadResult
from fitserve_benchmarks.overload_figures import Figure, PhaseSummary
from fitserve_benchmarks.quantities import duration, three_digits


def print_overload_report(result: OverloadResult, console: Console) -> None:
    """Prints the table, the figures and how they came about."""
    title = f"A model of {result.run_s * 1e3:.1f} ms a run, and what became of requests for it"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "/s", "right/s", "p50", "p99", "refused", "refused in", "late", "health"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for phase in (*result.closed, *result.phases):
        table.add_row(*_cells(phase))
    console.print(table)
    for figure in result.figures:
        console.print(figure_line(figure), highlight=False)
    console.print(_method(result), highlight=False)


def figure_line(figure: Figure) -> str:
    """Says what was reached, and whether it is enough."""
    least = "at least" if figure.is_least else "at most"
    verdict = "held" if figure.is_held else "NOT held"
    return (
        f"{figure.name}: {_value(figure.found, figure.unit)} ({least} {_value(figure.bound, figure.unit)}): {verdict}"
    )


def _value(value: float, unit: str) -> str:
    if value == float("inf"):
        return "none"
    if unit == "s":
        return duration(value) if value else "0 s"
    return f"{value:.2f}" if not unit else f"{value:.0f} {unit}"


def _cells(phase: PhaseSummary) -> tuple[str, ...]:
    return (
        phase.name,
        three_digits(phase.rate),
        three_digits(phase.goodput),
        _time(phase.p50_s),
        _time(phase.p99_s),
        f"{phase.outcomes.get('refused', 0):,}",
        _time(phase.refusal_p99_s),
        f"{phase.outcomes.get('late', 0):,}",
        _time(phase.health_p99_s),
    )


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _method(result: OverloadResult) -> str:
    environment, plan = result.environment, result.plan
    share = max(phase.source_share for phase in result.phases)
    late_s = max(phase.late_p99_s or 0.0 for phase in result.phases)
    return (
        f"Times are 99th percentiles but for p50, and count from when a request was due. Every answer checked, nothing "
        f"sent twice; deadlines {plan.timeout_ms} ms, of the impatient {result.phases[-1].timeout_ms} ms. Of "
        f"{result.examples_run} rows run {result.run_for_nobody} had no caller left at the end of their run. "
        f"{_pages(result)}. The load's process took {share:.0%} of a processor at most, and {duration(late_s)} late "
        f"at most. {environment['processor']}, {len(environment['usable_processors'])} processors for server and load; "
        f"load average {environment['load_average'][0]:.1f} at the end."
    )


def _pages(result: OverloadResult) -> str:
    answered = [took_s for took_s in result.scrapes_s if took_s is not None]
    slowest = f", the slowest in {duration(max(answered))}" if answered else ""
    return f"{len(answered)} of {len(result.scrapes_s)} metrics pages answered{slowest}"
