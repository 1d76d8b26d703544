"""Disagreements that last, and those that do not."""

from __future__ import annotations

from fitserve_service.switching.disagreements import Disagreements


def test_what_lasts_is_named_once_and_its_end_too() -> None:
    disagreements = Disagreements(5.0)
    assert disagreements.update({"m": "differs"}, 0.0) == ([], [])
    assert disagreements.update({"m": "differs"}, 5.0) == (["differs"], [])
    assert disagreements.update({"m": "differs otherwise"}, 6.0) == ([], [])
    assert disagreements.lasting == {"m": "differs otherwise"}
    # While one loads, nothing begins and nothing ends.
    assert disagreements.update({"m": ""}, 7.0) == ([], [])
    assert disagreements.lasting == {"m": "differs otherwise"}
    assert disagreements.update({}, 8.0) == ([], ["m"])
    assert disagreements.lasting == {}


def test_what_comes_and_goes_is_none() -> None:
    disagreements = Disagreements(5.0)
    for now_s in range(20):
        found = {"m": "differs"} if now_s % 4 else {}
        assert disagreements.update(found, float(now_s)) == ([], [])
