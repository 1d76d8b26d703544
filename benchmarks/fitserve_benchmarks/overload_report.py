"""An overload run for people: a table of its phases, and each figure with what was reached."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.overload import OverloadResult
from fitserve_benchmarks.overload_figures import Figure, PhaseSummary
from fitserve_benchmarks.quantities import duration, three_digits


def print_overload_report(result: OverloadResult, console: Console) -> None:
    """Prints the table, the figures and how they came about."""
    table = Table(title=f"overload, {result.run_s * 1e3:.1f} ms a run", title_justify="left", box=None)
    headings = ("phase", "offered/s", "right/s", "p50", "p99", "refused", "p99 refusal", "late", "health p99")
    for heading in (*headings, "sent late", "source CPU"):
        table.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=True)
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
        _time(phase.late_p99_s),
        f"{phase.source_share:.0%}",
    )


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _method(result: OverloadResult) -> str:
    environment, plan = result.environment, result.plan
    answered = [took_s for took_s in result.scrapes_s if took_s is not None]
    pages = f"{len(answered)} of {len(result.scrapes_s)} metrics pages answered"
    slowest = f", the slowest in {duration(max(answered))}" if answered else ""
    right = sum(phase.outcomes.get("right", 0) for phase in result.phases)
    return (
        f"Every answer checked, nothing sent twice; deadlines {plan.timeout_ms} ms, of the impatient "
        f"{result.phases[-1].timeout_ms} ms. {right} right answers, {result.examples_run} rows run. {pages}{slowest}. "
        f"{environment['processor']}, {len(environment['usable_processors'])} processors for server and load; load "
        f"average {environment['load_average'][0]:.1f} at the end. Times count from when a request was due."
    )
