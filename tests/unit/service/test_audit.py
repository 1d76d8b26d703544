"""The audit log: whole lines, on the disk before anybody is told, whatever becomes of the file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitserve_service.access.audit import Action, AuditError, AuditFile, AuditTrail

TEXTS = st.text(max_size=600)


def write(trail: AuditTrail, action: Action, event: str = "asked", result: str = "") -> bool:
    told: list[bool] = []
    done = threading.Event()

    def on_written(is_written: bool) -> None:
        told.append(is_written)
        done.set()

    trail.record(action, event, on_written, result=result)
    assert done.wait(20)
    assert len(told) == 1
    return told[0]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(caller=TEXTS, peer=TEXTS, target=st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS) | st.integers()))
def test_a_record_is_one_line_of_json_whatever_its_texts_hold(
    tmp_path: Path, caller: str, peer: str, target: dict[str, object]
) -> None:
    path = tmp_path / "audit.log"
    path.unlink(missing_ok=True)
    trail = AuditTrail(path)
    assert write(trail, Action(caller, peer, "/s/M", target), "done", "OK")
    trail.close()
    (line,) = path.read_bytes().splitlines(keepends=True)
    record = json.loads(line)
    assert line.endswith(b"\n")
    assert (record["caller"], record["peer"], record["result"]) == (caller, peer, "OK")
    assert len(line) < 10_000_000


def test_records_of_one_action_share_its_number_and_keep_their_order(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.log")
    actions = [Action("token:a", "ipv4:1", "/s/M", {"n": number}) for number in range(50)]
    for action in actions:
        trail.record(action, "asked", lambda _: None)
        trail.record(action, "done", lambda _: None, result="OK")
    trail.close()
    records = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [record["target"]["n"] for record in records] == [n for n in range(50) for _ in range(2)]
    assert [record["id"] for record in records[::2]] == [record["id"] for record in records[1::2]]
    assert len({record["id"] for record in records}) == 50


def test_it_is_made_for_its_owner_alone_and_only_ever_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for number in range(3):
        trail = AuditTrail(path)
        assert write(trail, Action("", "", "/s/M", {"n": number}))
        trail.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line)["target"]["n"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_line_that_a_crash_has_cut_off_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b'{"whole": 1}\n{"cut o')
    trail = AuditTrail(path)
    write(trail, Action("", "", "/s/M", {}))
    trail.close()
    first, cut, own = path.read_bytes().splitlines()
    assert (first, cut) == (b'{"whole": 1}', b'{"cut o')
    assert json.loads(own)["event"] == "asked"


def test_a_file_that_is_renamed_or_removed_is_followed_by_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    trail = AuditTrail(path)
    write(trail, Action("", "", "/s/M", {"n": 1}))
    path.rename(tmp_path / "audit.log.1")
    write(trail, Action("", "", "/s/M", {"n": 2}))
    path.unlink()
    write(trail, Action("", "", "/s/M", {"n": 3}))
    trail.close()
    assert json.loads((tmp_path / "audit.log.1").read_text())["target"]["n"] == 1
    assert json.loads(path.read_text())["target"]["n"] == 3


def test_what_cannot_be_written_is_told_and_what_can_again_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    trail = AuditTrail(folder / "audit.log")
    (folder / "audit.log").unlink()
    folder.rmdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert not write(trail, Action("", "", "/s/M", {}))
    assert len(os.listdir("/proc/self/fd")) <= before
    folder.mkdir()
    assert write(trail, Action("", "", "/s/M", {}))
    trail.close()
    assert len((folder / "audit.log").read_text().splitlines()) == 1


def test_a_listener_that_fails_keeps_nobody_from_hearing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trail = AuditTrail(tmp_path / "audit.log")
    heard, may_go_on = [], threading.Event()

    def broken(_: bool) -> None:
        raise RuntimeError("broken")

    # The writer takes the other two together: it waits until both are there.
    trail.record(Action("", "", "/s/M", {}), "asked", lambda _: may_go_on.wait(30))
    trail.record(Action("", "", "/s/M", {}), "asked", broken)
    trail.record(Action("", "", "/s/M", {}), "asked", heard.append)
    may_go_on.set()
    trail.close()
    assert heard == [True]
    assert "a record's listener failed" in caplog.text


def test_a_line_that_a_full_disk_has_cut_off_is_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AuditFile(tmp_path / "audit.log")
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: whole(descriptor, content[:4]))
    with pytest.raises(OSError, match="expected 9 bytes to be written, got 4"):
        file.append(b"abcdefgh\n")
    monkeypatch.undo()
    file.append(b"next\n")
    file.append(b"last\n")
    file.close()
    assert (tmp_path / "audit.log").read_bytes() == b"abcd\nnext\nlast\n"


@pytest.mark.parametrize("kind", ["folder", "link", "missing"])
def test_where_it_cannot_be_opened_it_says_so_at_the_start(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "audit.log"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path = tmp_path / "none" / "audit.log"
    with pytest.raises(AuditError, match=r"--audit-log .*audit.log: expected a file that can be appended to"):
        AuditTrail(path)


def test_a_flood_of_refusals_is_counted_and_does_not_fill_the_disk(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.log")
    action = Action("", "ipv4:1", "/s/M", {})
    for _ in range(5000):
        trail.refused(action, "NOT_AUTHENTICATED")
    trail.close()
    lines = (tmp_path / "audit.log").read_text().splitlines()
    # Twenty in each second that it took.
    assert 20 <= len(lines) < 1000
    trail = AuditTrail(None)
    trail.close()
