"""Promotion that is earned, by the command line, against a running server."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests import builders

from fitserve_client import (
    Client,
    FailedPreconditionError,
    FitserveError,
    NotFoundError,
    RetryPolicy,
    cli,
    control,
)
from fitserve_client.promotion import Criteria, LabelledExamples, promote
from fitserve_contract.certificate import HeldOutExamples
from fitserve_contract.labels import read_labels, read_log, replay
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings

ANY_SPEED = ["--max-p99-ratio", "1000", "--requests", "100"]
"""For what is about accuracy: how fast this machine is just now must not decide a test."""


def shifted(threshold: float) -> bytes:
    """x FP32 (B, 2) -> y: the second of two classes wins where the second number exceeds the first by a threshold."""
    return builders.model(
        [helper.make_node("Add", ["x", "offset"], ["y"])],
        [builders.value("x")],
        [builders.value("y")],
        {"offset": np.array([threshold, 0], np.float32)},
    )


def publish(root: Path, *thresholds: float, task: Task | None = None) -> None:
    for threshold in thresholds:
        builders.publish_version(root, "m", shifted(threshold), task=task or builders.classes_task())


def examples_file(folder: Path) -> Path:
    """Two hundred examples, the second number 0.005..1 above or below the first: half of each class."""
    margins = np.linspace(-1, 1, 200)
    inputs = np.stack([np.zeros_like(margins), margins], axis=1).astype(np.float32)
    path = folder / "examples.npz"
    np.savez(path, x=inputs, labels=(margins > 0).astype(np.int64))
    return path


@contextmanager
def serving(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    settings = ServerSettings(root, port=0, metrics_port=None, device="cpu", poll_interval_s=0.05)
    with running_server(settings) as server:
        monkeypatch.setenv(cli.SERVER_VARIABLE, f"127.0.0.1:{server.port}")
        with Client(f"127.0.0.1:{server.port}") as client:
            yield client


class Load:
    """Callers that ask without a pause for the default version, and count what they get."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._is_over = threading.Event()
        self.versions: Counter[int] = Counter()
        self.failures: list[FitserveError] = []

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        # Without retries: a request that fails once has failed.
        with Client(self._target, retry=RetryPolicy(max_attempts=1)) as client:
            while not self._is_over.is_set():
                try:
                    self.versions[client.predict("m", np.zeros((1, 2), np.float32)).version] += 1
                except FitserveError as error:
                    self.failures.append(error)


def test_promotions_are_refused_pass_and_are_rolled_back_under_load_without_a_failed_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 2 errs on a tenth of the examples, version 3 on none."""
    root, file = tmp_path / "repository", str(examples_file(tmp_path))
    root.mkdir()
    publish(root, 0.0, 0.1, 0.001)
    with serving(root, monkeypatch) as client, Load(client._connection.target) as load:
        assert cli.main(["label", "m", "stable", "1"]) == cli.DONE
        assert cli.main(["label", "m", "canary", "2"]) == cli.DONE
        capsys.readouterr()
        command = ["promote", "m", "--from", "canary", "--to", "stable", "--examples", file, *ANY_SPEED]
        assert cli.main([*command, "--max-accuracy-drop", "0.005"]) == cli.REFUSED
        refused = capsys.readouterr().out
        assert read_labels(root, "m") == {"stable": 1, "canary": 2}

        assert cli.main(["label", "m", "canary", "3"]) == cli.DONE
        capsys.readouterr()
        assert cli.main([*command, "--max-accuracy-drop", "0.005", "--json"]) == cli.DONE
        passed = json.loads(capsys.readouterr().out)
        assert read_labels(root, "m") == {"stable": 3, "canary": 3}

        assert cli.main(["rollback", "m"]) == cli.DONE
        assert capsys.readouterr().out == "m: stable moved from version 3 to 1\n"
        assert cli.main(["rollback", "m"]) == cli.REFUSED
        assert "expected an earlier version in its log, found none" in capsys.readouterr().err
    assert load.failures == []
    assert load.versions.keys() >= {1, 3}
    assert "refused: accuracy drops by 0.05, allowed 0.005. stable stays at version 1" in refused
    assert passed["is_promoted"]
    assert passed["objections"] == []
    assert passed["figures"]["accuracy_drop"] == 0
    log = read_log(root, "m")
    assert [(move.label, move.before, move.after, move.action.value) for move in log] == [
        ("stable", 0, 1, "MOVE"),
        ("canary", 0, 2, "MOVE"),
        ("canary", 2, 3, "MOVE"),
        ("stable", 1, 3, "MOVE"),
        ("stable", 3, 1, "ROLLBACK"),
    ]
    assert log[3].why == "promoted from canary"
    assert log[3].figures["candidate"]["quality"] == 1.0
    assert replay(log) == read_labels(root, "m")


def test_a_version_that_is_slower_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's: every request to version 2 seems to take twice as long."""
    publish(tmp_path, 0.0, 0.0)
    now_s = 0.0
    asked: list[int] = []

    def clock() -> float:
        return now_s

    with serving(tmp_path, monkeypatch) as client:
        client.run(control.set_label("m", "stable", 1))
        client.run(control.set_label("m", "canary", 2))
        predict = client.predict

        def timed(model: str, inputs: Any, *, version: int) -> Any:
            nonlocal now_s
            now_s += version * 0.001
            asked.append(version)
            return predict(model, inputs, version=version)

        monkeypatch.setattr(client, "predict", timed)
        examples = LabelledExamples(np.array([[0, 1]], np.float32), np.array([1]))
        outcome = promote(
            client,
            "m",
            source="canary",
            target="stable",
            criteria=Criteria(0.0, 1.5, 100),
            examples=examples,
            clock=clock,
        )
        assert outcome.move is None
        assert outcome.verdict.objections == ("p99 is 2 times as long, allowed 1.5",)
        slower = promote(
            client,
            "m",
            source="canary",
            target="stable",
            criteria=Criteria(0.0, 2.1, 100),
            examples=examples,
            clock=clock,
        )
        assert slower.move is not None
    assert asked.count(1) == asked.count(2) == 240
    # In pairs, each version first every other time.
    assert asked in ([1, 2, 2, 1] * 120, [2, 1, 1, 2] * 120)
    assert read_labels(tmp_path, "m") == {"stable": 2, "canary": 2}


def test_a_version_is_judged_by_the_examples_that_the_old_one_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    margins = np.linspace(-1, 1, 200)
    rows = np.stack([np.zeros_like(margins), margins], axis=1).astype(np.float32)
    held_out = HeldOutExamples({"x": rows}, (margins > 0).astype(np.int64), np.arange(200))
    for threshold in (0.0, 0.1):
        task = builders.classes_task()
        builders.certified_version(tmp_path, "m", shifted(threshold), {"x": rows[:4]}, task=task, held_out=held_out)
    with serving(tmp_path, monkeypatch) as client:
        client.run(control.set_label("m", "stable", 1))
        client.run(control.set_label("m", "canary", 2))
        assert cli.main(["promote", "m", "--held-out", *ANY_SPEED]) == cli.REFUSED
        assert cli.main(["promote", "m", "--max-accuracy-drop", "0.05", "--json", *ANY_SPEED]) == cli.DONE
    refused, passed = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "accuracy drops by 0.05, allowed 0.005" in refused
    assert json.loads(passed)["figures"]["example_count"] == 200
    assert read_labels(tmp_path, "m") == {"stable": 2, "canary": 2}


def test_what_cannot_be_promoted_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, 0.0)
    publish(tmp_path, 0.0, task=Task(TaskKind.REGRESSION, "y", Scores.VALUES))
    publish(tmp_path, 0.0)
    examples = LabelledExamples(np.array([[0, 1]], np.float32), np.array([1]))
    arguments: dict[str, Any] = {
        "source": "canary",
        "target": "stable",
        "criteria": Criteria(0.0, 1.0, 100),
        "examples": examples,
    }
    with serving(tmp_path, monkeypatch) as client:
        with pytest.raises(NotFoundError, match=r"expected one of its labels \(none\), got 'canary'"):
            promote(client, "m", **arguments)
        client.run(control.set_label("m", "stable", 1))
        client.run(control.set_label("m", "canary", 1))
        with pytest.raises(FailedPreconditionError, match="at two versions, got both at version 1"):
            promote(client, "m", **arguments)
        client.run(control.set_label("m", "canary", 2))
        with pytest.raises(FailedPreconditionError, match="task"):
            promote(client, "m", **arguments)
        client.run(control.set_label("m", "canary", 3))
        with pytest.raises(FailedPreconditionError, match="held-out"):
            promote(client, "m", **{**arguments, "examples": None})
        with pytest.raises(FitserveError, match="expected it at version 2, found it at version 1") as caught:
            client.run(control.set_label("m", "stable", 2, expected=2))
        assert (caught.value.code.name, caught.value.reason) == ("ABORTED", "LABEL_CONFLICT")
    assert read_labels(tmp_path, "m") == {"stable": 1, "canary": 3}


def test_labels_traffic_and_shadow_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 0.0, 0.1)
    with serving(tmp_path, monkeypatch) as client:
        assert cli.main(["label", "m"]) == cli.DONE
        assert cli.main(["label", "m", "stable", "1", "--why", "known"]) == cli.DONE
        assert cli.main(["label", "m", "shadow", "2"]) == cli.DONE
        assert cli.main(["traffic", "m", "--shadow-share", "1"]) == cli.DONE
        assert cli.main(["traffic", "m", "--canary-share", "0.25"]) == cli.DONE
        assert cli.main(["shadow", "m"]) == cli.DONE
        client.predict("m", np.zeros((1, 2), np.float32))
        assert cli.main(["shadow", "m", "--json"]) == cli.DONE
        assert cli.main(["label", "m", "shadow", "--delete"]) == cli.DONE
        assert cli.main(["label", "m", "--json"]) == cli.DONE
        assert cli.main(["traffic", "m", "--canary-share", "2"]) == cli.REFUSED
        assert cli.main(["label", "m", "shadow", "--delete"]) == cli.REFUSED
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[:6] == [
        "m has no labels; set one with: fitserve-client label m LABEL VERSION",
        "m: stable is at version 1",
        "m: shadow is at version 2",
        "m: canary answers 0, shadow runs 1 of the requests",
        "m: canary answers 0.25, shadow runs 1 of the requests",
        "m: the shadow has run nothing",
    ]
    assert json.loads(lines[6])["reports"][0]["sampled_count"] == 1
    assert lines[7] == "m: shadow is deleted; it was at version 2"
    assert json.loads(lines[8])["labels"] == {"stable": 1}
    assert "traffic.canary_share: expected a share of 0..1, got 2.0" in said.err


@pytest.mark.parametrize("option", [["--max-accuracy-drop", "-1"], ["--max-p99-ratio", "0"], ["--requests", "99"]])
def test_criteria_out_of_range_are_refused_at_once(option: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["promote", "m", *option])
    assert caught.value.code == 2
