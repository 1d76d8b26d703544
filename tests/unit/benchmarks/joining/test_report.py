"""Figures of the table: what counts as wrong, what as missed, and the share that must join."""

from dataclasses import replace

import pytest

from fitserve_benchmarks.joining.examine import Finding, examine
from fitserve_benchmarks.joining.labelled import LabelledModel, from_text
from fitserve_benchmarks.joining.report import (
    is_good,
    line,
    markdown,
    missed,
    save,
    share_of_independent,
    totals,
    wrong,
)
from fitserve_benchmarks.joining.subjects import COUPLED, FILES, INDEPENDENT, LABELLED, ONNX_TESTS, labelled_subject

GOOD = Finding("good", LABELLED, INDEPENDENT, 2048, 0.25, experiment=INDEPENDENT)
REFUSED = replace(GOOD, name="refused", problem="node 'a|b' (ReduceMax over axis 0)")
COUPLED_ONE = replace(REFUSED, name="bad", label=COUPLED, experiment=COUPLED)


def test_a_proof_of_what_couples_is_wrong_by_label_and_by_experiment() -> None:
    by_label = replace(GOOD, label=COUPLED)
    by_experiment = replace(GOOD, label="", experiment=COUPLED)
    caught_by_trial = replace(by_label, trial="row 1 of 3 depends on its neighbours")
    assert wrong([GOOD, REFUSED, COUPLED_ONE, by_label, by_experiment, caught_by_trial]) == [
        by_label,
        by_experiment,
        caught_by_trial,
    ]


def test_a_failed_trial_is_a_miss() -> None:
    tried = replace(GOOD, trial="two runs differ")
    assert missed([GOOD, REFUSED, COUPLED_ONE, tried]) == [REFUSED, tried]


@pytest.mark.parametrize(("good", "refused", "expected"), [(95, 5, True), (94, 6, False)])
def test_95_of_100_must_join(good: int, refused: int, expected: bool) -> None:
    findings = [GOOD] * good + [REFUSED] * refused + [COUPLED_ONE] * 50
    assert share_of_independent(findings) == good / 100
    assert is_good(findings) is expected
    assert not is_good([*findings, replace(COUPLED_ONE, problem="")])


def test_a_row_of_the_table() -> None:
    assert line(GOOD) == "| good | joins | independent | independent | 0.2 | 2 |"
    assert "ReduceMax over axis 0" in line(REFUSED)
    assert "'a\\|b'" in line(REFUSED)
    assert "| trial: felt |" in line(replace(GOOD, trial="felt"))


def test_totals_and_markdown(tmp_path) -> None:  # type: ignore[no-untyped-def]
    findings = [
        GOOD,
        REFUSED,
        COUPLED_ONE,
        replace(GOOD, origin=FILES, label="", name="some/file.onnx"),
        replace(GOOD, origin=FILES, label="", trial="none", experiment="does not load: no kernel"),
        replace(REFUSED, origin=ONNX_TESTS, label="", problem="node 'x' (Pad of axis 0)"),
        replace(REFUSED, origin=ONNX_TESTS, label="", problem="node 'y' (Pad of axis 0)"),
    ]
    text = markdown(findings, "here")
    assert "labelled, independent: 1 of 2 join" in text
    assert "files: 1 of 1 join; 1 more do not load in ONNX Runtime" in text
    assert "proved although coupled: 0" in totals(findings)
    assert "| node '…' (Pad of axis n) | 2 |" in text
    assert "some/file.onnx" in text
    save(findings, tmp_path / "new" / "all.json")
    assert len((tmp_path / "new" / "all.json").read_text().splitlines()) == 7


def test_models_are_examined_in_another_process() -> None:
    models = [
        LabelledModel("scaled", True, "", lambda: from_text("g (float[N,4] x) => (float[N,4] y) { y = Abs(x) }")),
        LabelledModel("deadly", True, "", deadly),
        LabelledModel("summed", False, "", lambda: from_text("g (float[N,4] x) => (float[N,4] y) "
                      "{ m = ReduceMax<keepdims=0>(x) y = Sub(x, m) }")),
    ]  # fmt: skip
    found = list(examine(map(labelled_subject, models)))
    assert [(one.name, one.joins, one.experiment) for one in found] == [
        ("scaled", True, INDEPENDENT),
        ("deadly", False, "the process ended"),
        ("summed", False, COUPLED),
    ]
    assert "ReduceMax" in found[2].problem


def deadly() -> bytes:
    """Builds a model that ends its process when it is loaded: a quotient of constants that is none."""
    return from_text(
        "g (int32[N,1] x) => (int32[N,1] y) { a = Constant<value = int32[1] {-2147483648}>() "
        "b = Constant<value = int32[1] {-1}>() q = Div(a, b) y = Add(x, q) }"
    )
