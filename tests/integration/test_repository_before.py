"""A repository whose labels and shares were written by an earlier version is served unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import builders

from fitserve_client import Client, cli, control
from fitserve_contract.labels import CANARY, SHADOW, STABLE, read_log
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings

WHEN = "2026-11-30T12:00:00.000Z"
BY_HAND = "found so in labels.json: a move that a crash cut short, or an edit by hand"

MOVES = [
    ("ann@host", STABLE, 0, 1, "MOVE", "first", {}),
    ("ann@host", STABLE, 1, 2, "MOVE", "", {"accuracy_drop": 0.001}),
    ("bob@host", STABLE, 2, 2, "MOVE", "again", {}),
    ("bob@host", STABLE, 2, 2, "MOVE", "", {}),
    ("", CANARY, 0, 3, "MOVE", "", {}),
    ("", "old", 0, 1, "MOVE", "", {}),
    ("", "old", 1, 0, "MOVE", "", {}),
    ("", SHADOW, 0, 1, "CORRECTION", BY_HAND, {}),
    ("", SHADOW, 1, 3, "MOVE", "\u00fc\u001b[31m", {}),
]
"""What commit b77308d logged: moves that change nothing, too."""

LABELS = b'{\n  "canary": 3,\n  "shadow": 3,\n  "stable": 2\n}\n'
TRAFFIC = b'{\n  "canary_share": 0.25,\n  "shadow_share": 0.0\n}\n'


def log_before() -> bytes:
    """The log, byte by byte as that commit writes it."""
    names = ("who", "label", "from", "to", "action", "why", "figures")
    lines = [json.dumps({"time": WHEN, **dict(zip(names, move, strict=True))}) for move in MOVES]
    return "\n".join([*lines, ""]).encode()


def test_a_repository_of_before_is_served_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in (1, 2, 3):
        builders.bare_version(tmp_path, "m", version, builders.scaled(version))
    files = {"labels.log": log_before(), "labels.json": LABELS, "traffic.json": TRAFFIC}
    for name, content in files.items():
        (tmp_path / "m" / name).write_bytes(content)
    settings = ServerSettings(tmp_path, port=0, metrics_port=None, device="cpu", poll_interval_s=0.05)
    with running_server(settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        monkeypatch.setenv(cli.SERVER_VARIABLE, f"127.0.0.1:{server.port}")
        versions = {label: client.predict("m", [[1.0, 1.0]], label=label).version for label in (STABLE, CANARY, SHADOW)}
        assert versions == {STABLE: 2, CANARY: 3, SHADOW: 3}
        assert client.run(control.traffic("m")) == control.Traffic(0.25, 0.0)
        history = client.run(control.label_history("m"))
        assert [(move.label, move.before, move.after, move.time) for move in history.moves] == [
            (label, before, after, WHEN) for _, label, before, after, *_ in MOVES
        ]
        assert history.rollback_versions == {STABLE: 1, SHADOW: 1}
        assert cli.main(["label", "m"]) == cli.DONE
        assert {name: (tmp_path / "m" / name).read_bytes() for name in files} == files
        assert cli.main(["rollback", "m"]) == cli.DONE
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "m: stable moved from version 2 to 1" in said
    assert (tmp_path / "m" / "labels.log").read_bytes().startswith(files["labels.log"])
    last = read_log(tmp_path, "m")[-1]
    assert (last.label, last.before, last.after) == (STABLE, 2, 1)
    assert len(read_log(tmp_path, "m")) == len(MOVES) + 1
