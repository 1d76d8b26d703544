"""What joins and what does not, over all labelled models and under 32 callers. `make check-slow` runs it."""

import pytest

from fitserve_benchmarks.joining.corpus import corpus
from fitserve_benchmarks.joining.examine import examine
from fitserve_benchmarks.joining.report import LEAST_SHARE, line, missed, share_of_independent, totals, wrong
from fitserve_benchmarks.joining.serving import serve_and_compare
from fitserve_benchmarks.joining.subjects import labelled_subject

pytestmark = pytest.mark.slow

EVERY = 4
"""Under 32 callers, so that the whole check stays under a quarter of an hour."""

ROUNDS = 10


def test_no_coupled_model_is_proved_and_independent_ones_join() -> None:
    findings = list(examine(map(labelled_subject, corpus())))
    print("\n".join(totals(findings)))
    assert [finding.name for finding in findings if finding.label != finding.experiment] == []
    assert [line(finding) for finding in wrong(findings)] == []
    share = share_of_independent(findings)
    assert share >= LEAST_SHARE, "\n".join(line(finding) for finding in missed(findings))


def test_32_callers_get_what_onnx_runtime_answers_alone() -> None:
    tallies = serve_and_compare(corpus()[::EVERY], ROUNDS, print)
    assert len(tallies) > 50
    assert [tally.line() for tally in tallies if tally.wrong_count] == []
    assert all(tally.answer_count == 32 * ROUNDS for tally in tallies)


def test_coupled_models_that_are_forced_to_join_answer_wrongly() -> None:
    forced = [model for model in corpus() if model.name in ("peak", "centred", "similarity", "quantized-dynamically")]
    tallies = serve_and_compare(forced, ROUNDS, print, is_forced=True)
    assert [tally.name for tally in tallies if tally.wrong] == [model.name for model in forced]
