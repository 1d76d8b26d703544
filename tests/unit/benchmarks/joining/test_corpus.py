"""The labelled set as a whole; `make check-slow` builds all of it."""

from collections import Counter

from fitserve_benchmarks.joining.corpus import corpus
from fitserve_contract.repository import check_model_name


def test_names_are_model_names_and_unique() -> None:
    names = [model.name for model in corpus()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for name in names:
        check_model_name(name)


def test_there_are_enough_of_both_kinds_and_each_has_a_reason() -> None:
    models = corpus()
    assert sum(model.is_independent for model in models) >= 100
    assert sum(not model.is_independent for model in models) >= 100
    assert all(model.reason for model in models)
