"""Shares of the traffic: the file, and the draw."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.traffic import (
    NO_TRAFFIC,
    TRAFFIC_FILE,
    Draw,
    Traffic,
    TrafficError,
    place_of,
    read_traffic,
    routing_key,
    write_traffic,
)

SHARE = st.floats(0, 1)


@given(canary=SHARE, shadow=SHARE)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, canary: float, shadow: float) -> None:
    root = tmp_path_factory.mktemp("repository")
    (root / "m").mkdir()
    assert read_traffic(root, "m") == NO_TRAFFIC
    write_traffic(root, "m", Traffic(canary, shadow))
    assert read_traffic(root, "m") == Traffic(canary, shadow)
    assert [path.name for path in (root / "m").iterdir()] == [TRAFFIC_FILE]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "m/traffic.json: expected JSON"),
        ("[" * 99999, "m/traffic.json: expected JSON"),
        ("[]", "m/traffic.json: expected an object with canary_share, shadow_share, got list"),
        ('{"canary": 1}', "m/traffic.json: expected one of canary_share, shadow_share, got an unknown key 'canary'"),
        ('{"canary_share": 2}', "m/traffic.json: canary_share: expected a share of 0..1, got 2"),
        ('{"canary_share": true}', "m/traffic.json: canary_share: expected a share of 0..1, got True"),
        ('{"shadow_share": NaN}', "m/traffic.json: shadow_share: expected a share of 0..1, got nan"),
        ('{"shadow_share": "1"}', "m/traffic.json: shadow_share: expected a share of 0..1, got '1'"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / TRAFFIC_FILE).write_text(text)
    with pytest.raises(TrafficError) as caught:
        read_traffic(tmp_path, "m")
    assert str(caught.value).startswith(problem)


@given(st.text(), SHARE, SHARE)
def test_a_key_stays_in_a_share_that_grows(key: str, one: float, other: float) -> None:
    draw = Draw()
    if draw.is_in(min(one, other), "canary", "m", key):
        assert draw.is_in(max(one, other), "canary", "m", key)
    assert not draw.is_in(0.0, "canary", "m", key)
    assert draw.is_in(1.0, "canary", "m", key)


@given(st.text())
def test_a_place_is_a_share(key: str) -> None:
    assert 0 <= place_of("canary", "m", key) < 1


def test_keys_spread_evenly_and_independently_of_purpose_and_model() -> None:
    keys = [f"caller-{index}" for index in range(4000)]
    for purpose, model in (("canary", "m"), ("shadow", "m"), ("canary", "n")):
        for share in (0.1, 0.5):
            count = sum(place_of(purpose, model, key) < share for key in keys)
            # Five standard deviations of a binomial count.
            assert abs(count - share * 4000) < 5 * (4000 * share * (1 - share)) ** 0.5
    both = sum(place_of("canary", "m", key) < 0.5 and place_of("shadow", "m", key) < 0.5 for key in keys)
    assert abs(both - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_without_a_key_the_seed_decides() -> None:
    one, two = Draw(7), Draw(7)
    drawn = [one.is_in(0.3, "canary", "m", None) for _ in range(1000)]
    assert drawn == [two.is_in(0.3, "canary", "m", None) for _ in range(1000)]
    generator = random.Random(7)
    assert drawn == [generator.random() < 0.3 for _ in range(1000)]


def test_the_routing_key_is_found_among_the_metadata() -> None:
    assert routing_key(()) is None
    assert routing_key([("user-agent", "x"), ("fitserve-routing-key", "ann")]) == "ann"
    assert routing_key([("fitserve-routing-key", b"\xff")]) == "\N{REPLACEMENT CHARACTER}"
