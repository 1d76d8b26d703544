"""The simulated service keeps its laws over many seeded schedules, and each law is one that can be broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from fitserve_benchmarks.simulation import simulate
from fitserve_benchmarks.simulation_laws import BrokenLawError
from fitserve_service import engine, known_model, reconciler, registry, runs
from fitserve_service.batcher import Batcher, Entry
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.version_policy import Action, State, Step, next_steps

Change = Callable[[pytest.MonkeyPatch], None]


def test_thirty_thousand_steps_break_no_law() -> None:
    result = simulate(1000, 30_000)

    assert result.step_count >= 30_000
    assert result.job_count > 3_000
    assert result.version_count > 100


def test_a_seed_replays_to_the_same_end_in_another_process() -> None:
    code = "from fitserve_benchmarks.simulation import simulate; print(simulate(7, 3000).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {f"{simulate(7, 3000).digest}\n"}
    assert simulate(8, 3000).digest != simulate(7, 3000).digest


def runs_the_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("fitserve_service.batcher._is_late", lambda entry, now_s: False)  # noqa: ARG005


def takes_any(bound: str) -> Change:
    def change(patch: pytest.MonkeyPatch) -> None:
        honest = Batcher.add

        def add(self: Batcher[Any], entry: Entry, now_s: float) -> bool:
            setattr(self, bound, 1 << 40)
            return honest(self, entry, now_s)

        patch.setattr(Batcher, "add", add)

    return change


def shares_no_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "Room", lambda _: None)


def loses_count_of_bytes(patch: pytest.MonkeyPatch) -> None:
    honest = Batcher.remove

    def remove(self: Batcher[Any], entry: Entry) -> bool:
        is_out = honest(self, entry)
        self.queued_bytes += 1_000 * is_out
        return is_out

    patch.setattr(Batcher, "remove", remove)


def refuses_too_much(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batcher, "add", lambda *_: False)


def forgets_the_timer(patch: pytest.MonkeyPatch) -> None:
    def on_timer(self: Any, served: Any, lane: Any, _: float) -> None:
        if not lane.is_full:
            self._dispatch_lane(served, lane)

    patch.setattr(engine.Engine, "_on_timer", on_timer)


def deals_rows_wrongly(patch: pytest.MonkeyPatch) -> None:
    honest = runs.split
    patch.setattr(runs, "split", lambda outputs, counts: honest(outputs, counts)[::-1])


def keeps_the_lease(patch: pytest.MonkeyPatch) -> None:
    def finish(self: Any, job: engine.Job, outcome: engine.Outcome) -> None:
        self._job_count -= 1
        if not isinstance(outcome, ServiceError):
            job.lease.release()
        job.on_done(job, outcome)

    patch.setattr(engine.Engine, "_finish", finish)


def answers_twice(patch: pytest.MonkeyPatch) -> None:
    honest = engine.Engine.cancel

    def cancel(self: engine.Engine, job: engine.Job) -> None:
        honest(self, job)
        job.on_done(job, ServiceError(Reason.CALLER_CANCELLED, "the caller cancelled"))

    patch.setattr(engine.Engine, "cancel", cancel)


def blames_neighbours(patch: pytest.MonkeyPatch) -> None:
    honest = runs._answer

    def answer(run: Any, jobs: Any) -> Any:
        answers = honest(run, jobs)
        culprit = next((found for found in answers if isinstance(found, Exception)), None)
        return answers if culprit is None else [culprit] * len(jobs)

    patch.setattr(runs, "_answer", answer)


def runs_the_last_first(patch: pytest.MonkeyPatch) -> None:
    honest = Batcher.add

    def add(self: Batcher[Any], entry: Entry, now_s: float) -> bool:
        is_taken = honest(self, entry, now_s)
        if is_taken:
            self._queues[entry.priority, entry.key].rotate(1)
        return is_taken

    patch.setattr(Batcher, "add", add)


def unloads_first(patch: pytest.MonkeyPatch) -> None:
    def steps(states: Mapping[int, State], aspired: Sequence[int]) -> list[Step]:
        surplus = [v for v, state in states.items() if state is State.READY and v not in aspired]
        loads = [step for step in next_steps(states, aspired) if step.action is Action.LOAD]
        return [*loads, *(Step(Action.UNLOAD, version) for version in surplus)]

    patch.setattr(reconciler, "next_steps", steps)


def moves_labels_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(known_model, "answering_labels", lambda wanted, before, ready: dict(wanted))  # noqa: ARG005


def closes_under_the_lease(patch: pytest.MonkeyPatch) -> None:
    honest = registry.Registry.retire

    def retire(self: registry.Registry, model: str, version: int, on_free: Callable[[], None]) -> None:
        honest(self, model, version, on_free)
        self._free(model, self._models[model].versions[version])

    patch.setattr(registry.Registry, "retire", retire)


def leaves_commands_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reconciler.Reconciler, "_answer_waiting", lambda self: self._waiting.clear())


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (answers_twice, "law 1"),
        (deals_rows_wrongly, "law 2"),
        (blames_neighbours, "law 3"),
        (refuses_too_much, "law 3"),
        (runs_the_late, "law 4"),
        (closes_under_the_lease, "law 5"),
        (runs_the_last_first, "law 6"),
        (loses_count_of_bytes, "law 3"),
        (takes_any("_max_queued_examples"), "law 7"),
        (takes_any("_max_queued_bytes"), "law 7"),
        (takes_any("_max_queued_s"), "law 7"),
        (shares_no_room, "law 7"),
        (forgets_the_timer, "law 8"),
        (unloads_first, "law 9"),
        (moves_labels_at_once, "law 10"),
        (keeps_the_lease, "law 11"),
        (leaves_commands_waiting, "law 12"),
    ],
)
def test_a_service_that_breaks_a_law_is_caught_and_the_seed_replays_it(
    change: Change, law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    with pytest.raises(BrokenLawError, match=f"{law}: .*; replay: fitserve-bench simulate --seed") as first:
        simulate(0, 60_000)
    words = str(first.value).rpartition("--seed ")[2].split()
    with pytest.raises(BrokenLawError) as again:
        simulate(int(words[0]), int(words[2]))
    assert str(again.value).partition(";")[0] == str(first.value).partition(";")[0]
