"""`fitserve-client` where the traffic is shared: it asks as any caller does, and says what is amiss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import builders

from fitserve_client import Client, cli, control
from fitserve_client.messages import ROUTING_KEY
from fitserve_contract.labels import read_labels, read_log
from fitserve_service import traffic
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings


@contextmanager
def serving(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A server of `m`: version N multiplies by N, the newest answers."""
    settings = ServerSettings(root, port=0, metrics_port=None, device="cpu", poll_interval_s=0.05)
    with running_server(settings) as server:
        monkeypatch.setenv(cli.SERVER_VARIABLE, f"127.0.0.1:{server.port}")
        with Client(f"127.0.0.1:{server.port}") as client:
            yield client


def publish(root: Path, *factors: float) -> None:
    for version, factor in enumerate(factors, 1):
        builders.bare_version(root, "m", version, builders.scaled(factor))


def examples(folder: Path, rows: int) -> str:
    path = folder / f"{rows}.npz"
    np.savez(path, x=np.ones((rows, 2), np.float32))
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == cli.DONE
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert cli.main(list(arguments)) == cli.DONE
    captured = capsys.readouterr()
    return [*captured.out.splitlines(), *captured.err.splitlines()]


def test_client_and_server_have_one_name_for_the_routing_key() -> None:
    assert ROUTING_KEY == traffic.ROUTING_KEY


def test_predict_goes_to_the_canary_and_to_the_shadow_as_any_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path / "r", 1, 2, 3)
    file = examples(tmp_path, 1)
    with serving(tmp_path / "r", monkeypatch) as client:
        for label, version in (("stable", 1), ("canary", 2), ("shadow", 3)):
            client.run(control.set_label("m", label, version))
        assert told(capsys, "predict", "m", file)["version"] == 1
        client.run(control.set_traffic("m", control.Traffic(1.0, 1.0)))
        answer = told(capsys, "predict", "m", file)
        assert (answer["version"], answer["outputs"]) == (2, {"y": {"shape": [1, 2], "data": [[2.0, 2.0]]}})
        assert told(capsys, "predict", "m", file, "--model-version", "1")["version"] == 1
        assert told(capsys, "predict", "m", file, "--label", "shadow")["version"] == 3
        (report,) = told(capsys, "shadow", "m")["reports"]
    assert (report["live_version"], report["shadow_version"], report["sampled_count"]) == (2, 3, 1)


def test_a_file_of_several_requests_is_answered_by_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path / "r", 1, 2)
    (tmp_path / "r" / "m" / "model.toml").write_text("max_batch_size = 2\n")
    file = examples(tmp_path, 9)
    with serving(tmp_path / "r", monkeypatch) as client:
        client.run(control.set_label("m", "stable", 1))
        client.run(control.set_label("m", "canary", 2))
        client.run(control.set_traffic("m", control.Traffic(0.5, 0.0)))
        answers = [told(capsys, "predict", "m", file) for _ in range(20)]
        keyed = {told(capsys, "predict", "m", file, "--routing-key", "ann")["version"] for _ in range(5)}
    for answer in answers:
        assert answer["outputs"]["y"]["data"] == [[answer["version"]] * 2] * 9
    assert {answer["version"] for answer in answers} == {1, 2}
    assert len(keyed) == 1


def test_labels_are_listed_and_moves_that_change_nothing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 1, 2, 3)
    with serving(tmp_path, monkeypatch):
        assert said(capsys, "label", "m") == ["m has no labels; set one with: fitserve-client label m LABEL VERSION"]
        for version in ("1", "2", "2", "3", "3", "3"):
            last = said(capsys, "label", "m", "stable", version)
        assert last == ["m: stable is at version 3 already; nothing changed"]
        assert said(capsys, "label", "m")[0] == "stable is at version 3"
        assert said(capsys, "label", "m", "blue") == [
            "m: expected one of its labels (stable), got 'blue'; set it with: fitserve-client label m blue VERSION"
        ]
        assert said(capsys, "rollback", "m") == ["m: stable moved from version 3 to 2"]
        assert said(capsys, "rollback", "m") == ["m: stable moved from version 2 to 1"]
        assert cli.main(["rollback", "m"]) == cli.REFUSED
        assert "found none; set it with: fitserve-client label m stable VERSION" in capsys.readouterr().err
    assert [(move.before, move.after) for move in read_log(tmp_path, "m")] == [(0, 1), (1, 2), (2, 3), (3, 2), (2, 1)]
    assert read_labels(tmp_path, "m") == {"stable": 1}


def test_a_rollback_knows_the_moves_that_no_client_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 1, 2)
    line = '{"time":"","who":"","label":"%s","from":%d,"to":%d,"action":"MOVE","why":"","figures":{}}\n'
    moves = [("stable", 0, 1), ("stable", 1, 2), *[("x", index % 2 + 1, 2 - index % 2) for index in range(1500)]]
    (tmp_path / "m" / "labels.log").write_text("".join(line % move for move in moves))
    (tmp_path / "m" / "labels.json").write_text('{"stable": 2, "x": 1}')
    with serving(tmp_path, monkeypatch):
        assert said(capsys, "rollback", "m") == ["m: stable moved from version 2 to 1"]


def test_shares_without_a_label_and_a_silent_shadow_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 1, 2)
    nothing = "m: the shadow has run nothing"
    with serving(tmp_path, monkeypatch):
        cure = "set it with: fitserve-client label m shadow VERSION"
        assert said(capsys, "shadow", "m") == [f"{nothing}: no version has the label shadow; {cure}"]
        note = f"fitserve-client: note: no version of m has the label shadow: {cure}"
        assert said(capsys, "traffic", "m", "--shadow-share", "1")[1:] == [note]
        said(capsys, "label", "m", "stable", "2")
        said(capsys, "label", "m", "shadow", "2")
        both = f"{nothing}: shadow and stable are both at version 2; move one of them"
        assert said(capsys, "shadow", "m") == [both]
        assert len(said(capsys, "traffic", "m", "--shadow-share", "0")) == 1
        share = "its share is 0; set one with: fitserve-client traffic m --shadow-share 0.1"
        assert said(capsys, "shadow", "m") == [f"{nothing}: {share}"]


def test_every_state_that_does_not_answer_names_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path / "r", 1, 2)
    file = examples(tmp_path, 1)
    with serving(tmp_path / "r", monkeypatch) as client:
        assert cli.main(["predict", "m", file, "--model-version", "1", "--timeout", "0.2"]) == cli.REFUSED
        told_unloaded = capsys.readouterr().err
        said(capsys, "label", "m", "old", "1")
        assert told(capsys, "predict", "m", file, "--model-version", "1")["version"] == 1
        client.unload("m")
        assert cli.main(["predict", "m", file, "--timeout", "0.2"]) == cli.REFUSED
        told_model = capsys.readouterr().err
        said(capsys, "load", "m")
        assert told(capsys, "predict", "m", file)["version"] == 2
    assert "got UNLOADED; keep it loaded with a label: fitserve-client label m LABEL 1" in told_unloaded
    assert "fitserve-client load m" in told_model


def test_versions_that_are_not_loaded_are_compared_and_unloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for factor in (1.0, -1.0, 1.0):
        builders.publish_version(tmp_path / "r", "m", builders.scaled(factor), task=builders.classes_task())
    file = tmp_path / "labelled.npz"
    np.savez(file, x=np.eye(2, dtype=np.float32), labels=np.array([0, 1]))
    with serving(tmp_path / "r", monkeypatch) as client:
        shown = told(capsys, "compare", "m", str(file), "--versions", "1,2")
        assert client.run(control.label_history("m")).labels == {}
        assert cli.main(["compare", "m", str(file), "--versions", "1,9"]) == cli.REFUSED
        assert client.run(control.label_history("m")).labels == {}
        client.unload("m")
        assert cli.main(["compare", "m", str(file), "--versions", "1,2", "--timeout", "0.5"]) == cli.REFUSED
        assert "fitserve-client load m" in capsys.readouterr().err
    assert (shown["first"]["version"], shown["second"]["version"]) == (1, 2)
