"""Who reads and writes the sockets, by a variable that grpc's core reads once."""

from __future__ import annotations

import os

import pytest

from fitserve_service.polling import VARIABLE, is_on_the_loop, keep_to_the_loop


@pytest.mark.parametrize(
    ("said", "wanted", "is_kept"),
    [
        (None, "-event_engine_listener", True),
        ("", "-event_engine_listener", True),
        ("fuse_filters", "fuse_filters,-event_engine_listener", True),
        ("-event_engine_listener", "-event_engine_listener", True),
        ("event_engine_listener", "event_engine_listener", False),
        ("event_engine_listener,fuse_filters", "event_engine_listener,fuse_filters", False),
    ],
)
def test_the_users_own_setting_stays(
    monkeypatch: pytest.MonkeyPatch, said: str | None, wanted: str, is_kept: bool
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(VARIABLE, said)
    keep_to_the_loop()

    assert os.environ[VARIABLE] == wanted
    assert is_on_the_loop() is is_kept
