"""What an overload run is held to, out of phases whose every request is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fitserve_benchmarks.overload import (
    AFTER,
    FLOOD,
    IMPATIENT,
    QUIET,
    OverloadPlan,
    OverloadResult,
    closed_phases,
    open_phases,
)
from fitserve_benchmarks.overload_figures import Figure, back_to_normal_s, figures, summarize
from fitserve_benchmarks.overload_report import figure_line, print_overload_report
from fitserve_benchmarks.overload_source import (
    DEADLINE_EXCEEDED,
    OK,
    RESOURCE_EXHAUSTED,
    UNANSWERED,
    WRONG,
    Phase,
    PhaseRecord,
    Sent,
)


def even(outcomes: Sequence[int], took_s: float | Sequence[float], duration_s: float = 1.0) -> list[Sent]:
    """Requests at even times, each with its outcome."""
    times = [took_s] * len(outcomes) if isinstance(took_s, float) else took_s
    step_s = duration_s / len(outcomes)
    return [
        Sent(index * step_s, 0.001, time_s, outcome)
        for index, (outcome, time_s) in enumerate(zip(outcomes, times, strict=True))
    ]


def record(requests: Sequence[Sent], duration_s: float = 1.0, health: Sequence[Sent] = ()) -> PhaseRecord:
    asked = list(health) or even([OK] * 10, 0.002, duration_s)
    return PhaseRecord(Phase("p", duration_s, rate=1.0, timeout_ms=50), list(requests), asked, 0.25 * duration_s)


def held(found: Sequence[Figure]) -> dict[str, bool]:
    return {figure.name: figure.is_held for figure in found}


def test_without_a_bound_in_time_the_admitted_may_wait_until_their_deadline() -> None:
    calm = record(even([OK] * 80, 0.01))
    slow = record(even([OK] * 100 + [RESOURCE_EXHAUSTED] * 900, [0.9] * 100 + [0.001] * 900))
    names = "p99 of the admitted, of that at 80 %", "back to normal after"
    bounded, free = (held(figures(100.0, calm, slow, slow, [0.1], is_bounded=bound)) for bound in (True, False))
    assert [bounded[name] for name in names] == [False, False]
    assert set(bounded) - set(free) == set(names)


def test_a_phase_is_put_into_numbers() -> None:
    outcomes = [OK, OK, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, WRONG, UNANSWERED, 13, OK]
    found = summarize(record(even(outcomes, 0.5, 2.0), 2.0, even([OK, 14], 0.25)))

    assert found.outcomes == {"right": 3, "refused": 1, "late": 1, "wrong": 1, "unanswered": 1, "status 13": 1}
    assert (found.rate, found.goodput, found.p99_s, found.refusal_p99_s) == (4.0, 1.5, 0.5, 0.5)
    assert (found.health_count, found.health_failed, found.health_p99_s) == (2, 1, 0.25)
    assert (found.late_p99_s, found.source_share, found.timeout_ms) == (0.001, 0.25, 50)


def test_a_phase_without_answers_has_no_times() -> None:
    found = summarize(record([]))

    assert (found.p50_s, found.p99_s, found.refusal_p99_s, found.late_p99_s) == (None, None, None, None)
    assert found.goodput == 0.0


def test_a_server_that_does_all_it_must_is_held_to_it() -> None:
    calm = record(even([OK] * 80, 0.02))
    flood = record(even(([RESOURCE_EXHAUSTED] * 9 + [OK]) * 100, [*[0.001] * 9, 0.04] * 100))

    assert set(held(figures(100.0, calm, flood, calm, [0.1, 0.2], is_bounded=True)).values()) == {True}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("goodput at ten times the capacity, of the peak", {"peak": 120.0}),
        ("p99 of the admitted, of that at 80 %", {"admitted_s": 0.041}),
        ("p99 of refusals", {"refused_s": 0.011}),
        ("p99 of health", {"health_s": 0.051}),
        ("health not SERVING", {"health": 14}),
        ("metrics pages not answered", {"scrape": None}),
        ("wrong or never answered", {"odd": WRONG}),
        ("wrong or never answered", {"odd": UNANSWERED}),
        ("back to normal after", {"after": RESOURCE_EXHAUSTED}),
    ],
)
def test_each_figure_can_be_missed_alone(name: str, changes: dict[str, float]) -> None:
    quiet = record(even([OK] * 80, 0.02))
    after = record(even([int(changes.get("after", OK))] * 80, 0.02))
    times = [*[changes.get("refused_s", 0.001)] * 9, changes.get("admitted_s", 0.04)] * 100
    outcomes = ([RESOURCE_EXHAUSTED] * 9 + [OK]) * 100
    outcomes[0] = int(changes.get("odd", outcomes[0]))
    health = even([int(changes.get("health", OK))] + [OK] * 9, changes.get("health_s", 0.002))
    flood = record(even(outcomes, times), health=health)
    found = held(
        figures(changes.get("peak", 100.0), quiet, flood, after, [0.1, changes.get("scrape", 0.2)], is_bounded=True)
    )

    assert [each for each, is_held in found.items() if not is_held] == [name]


def test_back_to_normal_is_when_two_windows_in_a_row_are_as_before() -> None:
    quiet = record(even([OK] * 40, 0.02))
    # Windows of 10 requests: refusals, slow ones, as before, refusals again, as before from then on.
    outcomes = [RESOURCE_EXHAUSTED] * 10 + [OK] * 20 + [RESOURCE_EXHAUSTED] * 10 + [OK] * 40
    times = [0.001] * 10 + [0.5] * 10 + [0.02] * 60
    after = record(even(outcomes, times, 2.0), 2.0)

    assert back_to_normal_s(quiet, after) == 1.0
    assert back_to_normal_s(quiet, quiet) == 0.0
    assert back_to_normal_s(quiet, record(even([RESOURCE_EXHAUSTED] * 40, 0.02))) is None


def test_the_phases_follow_from_the_capacity() -> None:
    plan = OverloadPlan(seconds=10.0, times=10.0, timeout_ms=700)
    phases = open_phases(plan, 150.0, 0.006)

    assert [phase.name for phase in phases] == [QUIET, FLOOD, AFTER, IMPATIENT]
    assert [phase.rate for phase in phases] == [120.0, 1500.0, 120.0, 1500.0]
    assert [phase.timeout_ms for phase in phases] == [700, 700, 700, 36]
    assert all(phase.in_flight and not phase.rate for phase in closed_phases(plan))


def test_a_result_is_written_and_printed(tmp_path: Path) -> None:
    calm = record(even([OK] * 80, 0.02))
    flood = record([], health=even([14], 0.001))
    found = tuple(figures(100.0, calm, flood, calm, [0.1, None], is_bounded=True))
    phases = tuple(map(summarize, (calm, flood, calm, calm)))
    result = OverloadResult(OverloadPlan(), 0.006, 100.0, (), phases, found, 245, (0.1, None))
    result.save(tmp_path / "results" / "overload.json")
    console = Console(width=100, file=(printed := StringIO()))
    print_overload_report(result, console)
    document = json.loads((tmp_path / "results" / "overload.json").read_text())

    assert not result.is_held
    assert document["run_for_nobody"] == result.run_for_nobody == 5
    assert [entry["is_held"] for entry in document["figures"]].count(False) == 6
    assert document["figures"][1]["found"] is None
    assert replace(result, figures=()).is_held
    text = printed.getvalue()
    assert "p99 of refusals: none (at most 10.0 ms): NOT held" in text
    assert "1 of 2 metrics pages answered, the slowest in 100 ms" in text.replace("\n", " ")


def test_a_figure_says_what_was_reached() -> None:
    assert figure_line(Figure("goodput", 0.934, 0.9, True, "")) == "goodput: 0.93 (at least 0.90): held"
    assert figure_line(Figure("back", 0.0, 1.0, False, "s")) == "back: 0 s (at most 1.00 s): held"
    assert figure_line(Figure("pages", 3, 0, False, "pages")) == "pages: 3 pages (at most 0 pages): NOT held"
