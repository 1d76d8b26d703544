"""Labels: compare-and-swap, the log, and what a crash or a hand leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract import labels as labels_module
from fitserve_contract.labels import (
    LOG_FILE,
    MAX_NOTE_CHARS,
    Action,
    LabelConflictError,
    LabelError,
    LabelMissingError,
    LabelMove,
    LinkedLabelsError,
    VersionMissingError,
    check_label_name,
    move_label,
    previous_version,
    read_labels,
    read_log,
    replay,
)
from fitserve_contract.repository import LABELS_FILE


def model_of(root: Path, *versions: int) -> Path:
    for version in versions:
        (root / "m" / str(version)).mkdir(parents=True)
    return root


def test_labels_are_read(tmp_path: Path) -> None:
    assert read_labels(tmp_path, "m") == {}
    (tmp_path / "m").mkdir()
    assert read_labels(tmp_path, "m") == {}
    (tmp_path / "m" / LABELS_FILE).write_text(json.dumps({"stable": 3, "canary": 4}))
    assert read_labels(tmp_path, "m") == {"stable": 3, "canary": 4}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stable": 0}', '{"stable": "1"}', '{"stable": true}', '{"a": 1.0}'])
def test_labels_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / LABELS_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"m/labels\.json: expected"):
        read_labels(tmp_path, "m")


def test_a_label_is_made_moved_and_deleted_and_each_is_logged(tmp_path: Path) -> None:
    root = model_of(tmp_path, 1, 2)
    made = move_label(root, "m", LabelMove("stable", 0, 1, who="ann", why="first"))
    moved = move_label(root, "m", LabelMove("stable", 1, 2, who="bob", figures={"accuracy": 0.9}))
    assert read_labels(root, "m") == {"stable": 2}
    deleted = move_label(root, "m", LabelMove("stable", 2, 0))
    assert read_labels(root, "m") == {}
    assert read_log(root, "m") == [made, moved, deleted]
    assert [(move.who, move.why, dict(move.figures)) for move in read_log(root, "m")] == [
        ("ann", "first", {}),
        ("bob", "", {"accuracy": 0.9}),
        ("", "", {}),
    ]
    assert all(move.time.endswith("Z") for move in read_log(root, "m"))


@pytest.mark.parametrize(
    ("move", "error", "text"),
    [
        (LabelMove("stable", 0, 2), LabelConflictError, "expected it nowhere, found it at version 1"),
        (LabelMove("stable", 2, 2), LabelConflictError, "expected it at version 2, found it at version 1"),
        (LabelMove("canary", 1, 2), LabelConflictError, "expected it at version 1, found it nowhere"),
        (LabelMove("stable", 1, 9), VersionMissingError, r"expected one of its versions \(1, 2\), got 9"),
        (LabelMove("canary", 0, 0), LabelMissingError, r"expected one of its labels \(stable\), got 'canary'"),
        (LabelMove("9", 0, 1), LabelError, "label: expected"),
        (LabelMove("stable", 1, 2, figures={"x": float("nan")}), LabelError, "figures: expected JSON"),
        (LabelMove("stable", 1, 2, figures={"x": "y" * 99999}), LabelError, "figures: expected at most"),
    ],
)
def test_a_move_that_cannot_be_made_changes_nothing(
    tmp_path: Path, move: LabelMove, error: type[Exception], text: str
) -> None:
    root = model_of(tmp_path, 1, 2)
    move_label(root, "m", LabelMove("stable", 0, 1))
    before = [(root / "m" / name).read_bytes() for name in (LABELS_FILE, LOG_FILE)]
    with pytest.raises(error, match=text):
        move_label(root, "m", move)
    assert [(root / "m" / name).read_bytes() for name in (LABELS_FILE, LOG_FILE)] == before


def test_a_model_that_is_not_there_gets_no_folder(tmp_path: Path) -> None:
    with pytest.raises(VersionMissingError, match="model 'm': not in the repository"):
        move_label(tmp_path, "m", LabelMove("stable", 0, 1))
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=70))
def test_a_label_name_is_harmless(name: str) -> None:
    try:
        check_label_name(name)
    except LabelError:
        return
    assert name.isascii()
    assert name[0].isalpha()
    assert len(name) <= 64
    assert "/" not in name


LABEL = st.sampled_from(["stable", "canary", "x"])
VERSION = st.integers(0, 3)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(LABEL, VERSION, VERSION), max_size=25))
def test_any_order_of_writers_loses_no_update_and_the_log_replays_to_the_labels(
    moves: list[tuple[str, int, int]],
) -> None:
    """Each writer holds what it once saw; whoever is out of date is refused, and everybody else's move stands."""
    with tempfile.TemporaryDirectory() as folder:
        root = model_of(Path(folder), 1, 2, 3)
        expected: dict[str, int] = {}
        accepted = []
        for label, seen, wanted in moves:
            is_current = expected.get(label, 0) == seen and (seen, wanted) != (0, 0)
            try:
                move_label(root, "m", LabelMove(label, seen, wanted))
            except (LabelConflictError, LabelMissingError):
                assert not is_current
            else:
                assert is_current
                expected[label] = wanted
                if seen != wanted:
                    accepted.append((label, seen, wanted))
            expected = {name: version for name, version in expected.items() if version}
            assert read_labels(root, "m") == expected == replay(read_log(root, "m"))
        assert [(move.label, move.before, move.after) for move in read_log(root, "m")] == accepted


def test_of_threads_that_move_one_label_at_once_exactly_one_wins_each_time(tmp_path: Path) -> None:
    root = model_of(tmp_path, *range(1, 9))
    won: list[int] = []

    def write(version: int) -> None:
        for _ in range(5):
            seen = read_labels(root, "m").get("stable", 0)
            try:
                move = move_label(root, "m", LabelMove("stable", seen, version))
            except LabelConflictError:
                continue
            if move.time:
                won.append(version)

    threads = [threading.Thread(target=write, args=(version,)) for version in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = read_log(root, "m")
    assert len(log) == len(won)
    assert [move.before for move in log] == [0, *(move.after for move in log[:-1])]
    assert replay(log) == read_labels(root, "m")


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    root = model_of(tmp_path, 1, 2)
    script = (
        "import sys; from pathlib import Path; from fitserve_contract.labels import *\n"
        "count = 0\n"
        "for _ in range(400):\n"
        "    at = read_labels(Path(sys.argv[1]), 'm').get('stable', 0)\n"
        "    try: move_label(Path(sys.argv[1]), 'm', LabelMove('stable', at, 3 - at if at else 1)); count += 1\n"
        "    except LabelConflictError: pass\n"
        "    if count == 20: break\n"
        "print(count)"
    )
    command = [sys.executable, "-c", script, str(root)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    total = sum(int(writer.communicate()[0]) for writer in writers)
    log = read_log(root, "m")
    assert len(log) == total > 0
    assert [move.before for move in log] == [0, *(move.after for move in log[:-1])]
    assert replay(log) == read_labels(root, "m")


@pytest.mark.parametrize("kill_after", [1, 7, 20])
def test_a_writer_that_is_killed_leaves_labels_that_the_next_one_can_move(tmp_path: Path, kill_after: int) -> None:
    root = model_of(tmp_path, 1, 2)
    script = (
        "import sys; from itertools import count; from pathlib import Path; from fitserve_contract.labels import *\n"
        "for at in count():\n"
        "    move_label(Path(sys.argv[1]), 'm', LabelMove('stable', 0 if at == 0 else 1 + (at + 1) % 2, 1 + at % 2))\n"
        "    print(flush=True)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    for _ in range(kill_after):
        assert writer.stdout.readline() == b"\n"
    writer.kill()
    writer.communicate()
    (root / "m" / f".{LABELS_FILE}.{writer.pid}.tmp").write_text("half a fi")
    log_length = len(read_log(root, "m"))
    assert log_length >= kill_after
    at = read_labels(root, "m")["stable"]
    move_label(root, "m", LabelMove("stable", at, 3 - at))
    assert replay(read_log(root, "m")) == read_labels(root, "m") == {"stable": 3 - at}
    assert {path.name for path in (root / "m").iterdir()} == {"1", "2", LABELS_FILE, LOG_FILE}


def test_a_label_file_edited_by_hand_is_right_and_the_log_says_so(tmp_path: Path) -> None:
    root = model_of(tmp_path, 1, 2)
    move_label(root, "m", LabelMove("stable", 0, 1))
    (root / "m" / LABELS_FILE).write_text('{"stable": 2, "canary": 1}')
    move_label(root, "m", LabelMove("shadow", 0, 1))
    log = read_log(root, "m")
    assert [(move.label, move.before, move.after, move.action) for move in log[1:]] == [
        ("canary", 0, 1, Action.CORRECTION),
        ("stable", 1, 2, Action.CORRECTION),
        ("shadow", 0, 1, Action.MOVE),
    ]
    assert replay(log) == read_labels(root, "m") == {"stable": 2, "canary": 1, "shadow": 1}


def test_a_crash_between_log_and_labels_is_noted_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = model_of(tmp_path, 1, 2)
    move_label(root, "m", LabelMove("stable", 0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(labels_module, "replace_durably", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            move_label(root, "m", LabelMove("stable", 1, 2))
    assert read_labels(root, "m") == {"stable": 1}
    move_label(root, "m", LabelMove("stable", 1, 2))
    moves = [(move.before, move.after, move.action) for move in read_log(root, "m")]
    assert moves == [(0, 1, "MOVE"), (1, 2, "MOVE"), (2, 1, "CORRECTION"), (1, 2, "MOVE")]
    assert replay(read_log(root, "m")) == read_labels(root, "m") == {"stable": 2}


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    root = model_of(tmp_path, 1, 2)
    move_label(root, "m", LabelMove("stable", 0, 1))
    with (root / "m" / LOG_FILE).open("ab") as log:
        log.write(b'{"time": "2026-01-01T00:00:')
    move_label(root, "m", LabelMove("stable", 1, 2))
    assert [(move.before, move.after) for move in read_log(root, "m")] == [(0, 1), (1, 2)]


def test_labels_behind_a_lock_that_is_never_released_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = model_of(tmp_path, 1)
    move_label(root, "m", LabelMove("stable", 0, 1))
    monkeypatch.setattr(labels_module, "LOCK_TIMEOUT_S", 0.0)
    with (
        labels_module._locked_log(root / "m"),
        pytest.raises(TimeoutError, match=r"m/labels\.log': expected it free within 0 s"),
    ):
        move_label(root, "m", LabelMove("canary", 0, 1))
    move_label(root, "m", LabelMove("canary", 0, 1))


def test_a_log_behind_a_link_is_not_written(tmp_path: Path) -> None:
    root = model_of(tmp_path / "r", 1)
    (tmp_path / "secret").write_bytes(b"")
    os.symlink(tmp_path / "secret", root / "m" / LOG_FILE)
    with pytest.raises(LinkedLabelsError, match="symbolic link"):
        move_label(root, "m", LabelMove("stable", 0, 1))
    assert (tmp_path / "secret").read_bytes() == b""


@pytest.mark.parametrize("linked", ["m", "m/labels.json"])
def test_labels_are_written_through_no_link(tmp_path: Path, linked: str) -> None:
    root = model_of(tmp_path / "repository", 1, 2)
    move_label(root, "m", LabelMove("stable", 0, 1))
    elsewhere = tmp_path / "elsewhere"
    (root / linked).rename(elsewhere)
    (root / linked).symlink_to(elsewhere)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LinkedLabelsError, match=f"expected '{linked}' to be no symbolic link, got one to '{elsewhere}"):
        move_label(root, "m", LabelMove("stable", 1, 2))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_move_that_changes_nothing_is_not_logged(tmp_path: Path) -> None:
    root = model_of(tmp_path, 1, 2)
    move_label(root, "m", LabelMove("stable", 0, 2))
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in (root / "m").glob("labels.*")}
    same = move_label(root, "m", LabelMove("stable", 2, 2, who="ann"))
    assert (same.before, same.after, same.time) == (2, 2, "")
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in (root / "m").glob("labels.*")} == before
    with pytest.raises(LabelConflictError):
        move_label(root, "m", LabelMove("stable", 1, 1))


def test_labels_that_nobody_would_read_any_more_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = model_of(tmp_path, 1)
    monkeypatch.setattr(labels_module, "MAX_TEXT_BYTES", 60)
    move_label(root, "m", LabelMove("stable", 0, 1))
    with pytest.raises(LabelError, match="expected at most 60 bytes of labels, got 91; delete some of its 1 labels"):
        move_label(root, "m", LabelMove("a" * 64, 0, 1))
    assert read_labels(root, "m") == replay(read_log(root, "m")) == {"stable": 1}


def test_a_line_of_any_length_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "\U0001f600" * 9000
    root = model_of(tmp_path, 1, 2)
    moves = [move_label(root, "m", LabelMove("stable", 0, 1))]
    with (root / "m" / LOG_FILE).open("ab") as log:
        log.write(b"x" * 100_000 + b"\n" + b"[" * 100_000 + b"\n" + b"\xff\x00\n\n")
    moves.append(move_label(root, "m", LabelMove("stable", 1, 2, figures={"text": "y" * 16_000}, why=long)))
    monkeypatch.setattr(labels_module, "MAX_LINE_BYTES", 50_000)
    assert read_log(root, "m") == [moves[0], replace(moves[1], why=long[:MAX_NOTE_CHARS])]


def test_rollbacks_go_back_one_version_each() -> None:
    log = [LabelMove("stable", 0, 1), LabelMove("stable", 1, 2), LabelMove("canary", 0, 4), LabelMove("stable", 2, 3)]
    assert previous_version(log, "stable") == 2
    log.append(LabelMove("stable", 3, 2, action=Action.ROLLBACK))
    assert previous_version(log, "stable") == 1
    log.append(LabelMove("stable", 2, 1, action=Action.ROLLBACK))
    assert previous_version(log, "stable") == 0
    log.append(LabelMove("stable", 1, 3))
    assert previous_version(log, "stable") == 1
    assert previous_version(log, "shadow") == 0


def test_a_rollback_goes_to_another_version_after_moves_that_changed_nothing() -> None:
    log = [LabelMove("stable", 0, 1), LabelMove("stable", 1, 2), LabelMove("stable", 2, 2), LabelMove("stable", 2, 2)]
    assert previous_version(log, "stable") == 1
    log.append(LabelMove("stable", 2, 1, action=Action.ROLLBACK))
    log.append(LabelMove("stable", 1, 1))
    assert previous_version(log, "stable") == 0


def test_a_rollback_goes_past_a_deletion() -> None:
    log = [LabelMove("stable", 0, 1), LabelMove("stable", 1, 2), LabelMove("stable", 2, 0), LabelMove("stable", 0, 2)]
    assert previous_version(log, "stable") == 1


@given(st.lists(st.tuples(st.sampled_from(["move", "rollback", "delete", "again"]), st.integers(1, 4)), max_size=40))
def test_a_rollback_leads_to_a_version_that_was_another_and_takes_back_what_moved_last(
    steps: list[tuple[str, int]],
) -> None:
    log: list[LabelMove] = []
    held: list[int] = []
    now = 0
    for step, version in steps:
        if step == "rollback" and now:
            after = previous_version(log, "stable")
            assert after == (held[-2] if len(held) > 1 else 0)
            if after:
                log.append(LabelMove("stable", now, after, action=Action.ROLLBACK))
                now = after
                held.pop()
        elif step == "delete" and now:
            log.append(LabelMove("stable", now, 0))
            now = 0
        elif step in ("move", "again"):
            after = now if step == "again" and now else version
            log.append(LabelMove("stable", now, after))
            now = after
            if not held or held[-1] != now:
                held.append(now)
