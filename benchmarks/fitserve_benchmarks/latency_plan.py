"""What a latency run measures, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fitserve_benchmarks.rows import Row
from fitserve_benchmarks.scenario_rows import ScenarioRow
from fitserve_benchmarks.scenarios import SCENARIOS, Scenario
from fitserve_benchmarks.subject import Subject, open_subject


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Args:
        repository: Model repository.
        model: Model name.
        version: Version number; None takes the highest.
        run_dir: Run it was exported from; None measures ONNX Runtime alone.
        batch_sizes: Examples per call, each >= 1.
        trials: Trials of each contestant, >= 3 for a stable row.
        budget_s: Time that one row's calls may take; slow models get fewer samples instead of hours.
        entry_names: Contestants that take part; empty for the usual ones, `all` for everybody.
        scenarios: Scenarios, by name, that are measured too; each has a batch size of its own.
        server_bound_s: What 99 of 100 queries of the scenario Server may take at most.
        limit_s: What loading and compiling a contestant for one batch size may take; one that takes longer is not tried
            at the next.
    """

    repository: str
    model: str
    version: int | None
    run_dir: str | None
    batch_sizes: tuple[int, ...]
    trials: int = 20
    budget_s: float = 10.0
    entry_names: Sequence[str] = ()
    scenarios: Sequence[str] = ()
    server_bound_s: float = 0.015
    limit_s: float = 300.0

    @property
    def wanted_scenarios(self) -> list[Scenario]:
        """The scenarios themselves, in their own order."""
        return [scenario for scenario in SCENARIOS if scenario.name in self.scenarios]

    def open_subject(self) -> Subject:
        """Opens what is measured. SubjectError: it cannot be."""
        run_dir = None if self.run_dir is None else Path(self.run_dir)
        return open_subject(Path(self.repository), self.model, self.version, run_dir)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Args:
        rows: Every contestant, batch size and thread count.
        scenarios: Every contestant, scenario and thread count.
    """

    rows: tuple[Row, ...] = ()
    scenarios: tuple[ScenarioRow, ...] = ()

    def __add__(self, other: Measured) -> Measured:
        """Gives both, in order."""
        return Measured(self.rows + other.rows, self.scenarios + other.scenarios)
