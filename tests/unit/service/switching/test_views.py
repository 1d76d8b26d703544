"""What all workers answer, by what each of them has."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.switching.views import NO_VIEW, Candidate, View, disagreement, is_agreed, next_view

NUMBERS = st.integers(1, 5)
INSTANCES = st.dictionaries(NUMBERS, st.sampled_from("ab"), max_size=4)
LABELS = st.dictionaries(st.sampled_from(["stable", "canary"]), NUMBERS)


@st.composite
def candidates(draw: st.DrawFn, before: View) -> Candidate:
    """A worker as it may be: what answers it has loaded, wanted or not."""
    ready = draw(INSTANCES)
    held = {version: each for version, each in before.versions.items() if ready.get(version) != each}
    present = sorted({*ready, *held, *draw(st.sets(NUMBERS))})
    return Candidate(ready, held, draw(LABELS), present, is_moving=draw(st.booleans()))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[View, list[Candidate]]:
    versions = draw(INSTANCES)
    before = View(versions, {}, max(versions, default=None))
    return before, draw(st.lists(candidates(before), min_size=1, max_size=4))


def has(
    *versions: int, held: tuple[int, ...] = (), labels: dict[str, int] | None = None, is_moving: bool = False
) -> Candidate:
    present = sorted({*versions, *held, *(labels or {}).values()})
    return Candidate(dict.fromkeys(versions, "a"), dict.fromkeys(held, "a"), labels or {}, present, {}, is_moving)


def view(*versions: int, default: int | None = None, labels: dict[str, int] | None = None) -> View:
    return View(dict.fromkeys(versions, "a"), labels or {}, default or max(versions, default=None))


@given(worlds())
def test_whatever_answers_every_worker_has(world: tuple[View, list[Candidate]]) -> None:
    before, found = world
    after = next_view(before, found)
    for version, instance in after.versions.items():
        assert all((version, instance) in each.instances() for each in found)


@given(worlds())
def test_the_default_goes_back_only_where_all_workers_want_it(world: tuple[View, list[Candidate]]) -> None:
    before, found = world
    after = next_view(before, found)
    if before.default is None or is_agreed(found) or "stable" in after.labels:
        return
    assert after.default is not None
    assert after.default >= before.default


@given(worlds())
def test_what_all_have_and_want_alone_answers(world: tuple[View, list[Candidate]]) -> None:
    before, found = world
    same = [replace(found[0], is_moving=False)] * len(found)
    assert next_view(before, same).versions == found[0].ready


@given(worlds())
def test_a_link_brings_over_what_was_said(world: tuple[View, list[Candidate]]) -> None:
    before, found = world
    assert View.of(json.loads(json.dumps(before.fields()))) == before
    for each in found:
        assert Candidate.of(json.loads(json.dumps(each.fields()))) == replace(each, present=tuple(each.present))


def test_a_version_answers_once_all_have_it() -> None:
    before = view(1)
    assert next_view(before, [has(2, held=(1,)), has(1, is_moving=True)]) == before
    assert next_view(before, [has(2, held=(1,)), has(2, held=(1,))]) == view(2)


def test_a_version_that_one_cannot_load_does_not_answer() -> None:
    failed = Candidate({1: "a"}, {}, {}, (1, 2), {2: "too large"})
    assert next_view(view(1), [has(2, held=(1,)), failed]) == view(1)
    assert "worker 1 has not: too large" in disagreement("m", {0: has(2, held=(1,)), 1: failed})


def test_files_that_were_renewed_answer_once_all_have_loaded_them() -> None:
    new, old = Candidate({1: "b"}, {1: "a"}, {}, (1,)), has(1)
    assert next_view(view(1), [new, old]) == view(1)
    assert next_view(view(1), [new, new]) == View({1: "b"}, {}, 1)
    assert "worker 1 has loaded other files" in disagreement("m", {0: new, 1: old})


def test_a_model_that_one_has_unloaded_goes_on_until_all_have() -> None:
    gone = Candidate({}, {1: "a"}, {}, (1,))
    assert next_view(view(1), [gone, has(1)]) == view(1)
    assert next_view(view(1), [gone, gone]) == NO_VIEW


def test_labels_move_once_all_have_read_them_and_have_their_version() -> None:
    before = view(1, 2, default=1, labels={"stable": 1})
    moved, not_yet = has(1, 2, labels={"stable": 2}), has(1, 2, labels={"stable": 1})
    assert next_view(before, [moved, not_yet]) == before
    assert next_view(before, [moved, moved]) == view(1, 2, labels={"stable": 2})
    lacking = has(1, labels={"stable": 2}, is_moving=True)
    assert next_view(before, [moved, lacking]).labels == {"stable": 1}


def test_who_still_loads_disagrees_with_nobody() -> None:
    assert disagreement("m", {0: has(2), 1: has(1, is_moving=True)}) == ""
