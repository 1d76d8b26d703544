"""Run directories: built aside, moved whole, never taken from somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitserve_training import rundir
from fitserve_training.errors import UsageError
from fitserve_training.rundir import RunWriter


def finish_run(run_dir: Path, mark: str) -> None:
    writer = RunWriter(run_dir, is_resumed=False)
    writer.write_text(rundir.CONFIG, "")
    writer.write_json(rundir.SUMMARY, {"mark": mark})
    writer.finish()
    writer.close()


def test_a_finished_run_is_replaced_whole(tmp_path: Path) -> None:
    for mark in ("first", "second"):
        finish_run(tmp_path / "run", mark)

    assert '"second"' in (tmp_path / "run" / rundir.SUMMARY).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_finished_run_stays_while_the_next_is_unfinished(tmp_path: Path) -> None:
    finish_run(tmp_path / "run", "first")
    writer = RunWriter(tmp_path / "run", is_resumed=False)
    writer.write_text(rundir.CONFIG, "")
    writer.close()

    assert rundir.is_finished(tmp_path / "run")
    assert not rundir.is_finished(rundir.unfinished_path(tmp_path / "run"))


def test_an_unfinished_run_is_started_anew_unless_resumed(tmp_path: Path) -> None:
    for is_resumed, expected in ((True, True), (False, False)):
        writer = RunWriter(tmp_path / "run", is_resumed=False)
        writer.write_text(rundir.CONFIG, "")
        writer.append(rundir.METRICS, [{"epoch": 1}])
        writer.close()

        writer = RunWriter(tmp_path / "run", is_resumed)
        assert (writer.path / rundir.METRICS).exists() is expected
        writer.close()


def test_somebody_elses_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter.txt").write_text("dear")

    with pytest.raises(UsageError, match="expected a run or nothing"):
        RunWriter(tmp_path / "notes", is_resumed=False)

    assert (tmp_path / "notes" / "letter.txt").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="expected a run or nothing"):
        RunWriter(tmp_path / "run", is_resumed=False)


@pytest.mark.parametrize("name", [".", "run/../run", "link"])
def test_a_place_may_be_said_in_many_ways(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" if name == "." else tmp_path)

    finish_run(Path(name), "here")

    assert rundir.is_finished(tmp_path / "run")


def test_the_root_is_no_run_directory() -> None:
    with pytest.raises(UsageError, match="run directory /: expected a directory below the root"):
        rundir.unfinished_path(Path("/"))


def test_a_finished_run_takes_away_what_killed_processes_left(tmp_path: Path) -> None:
    finish_run(tmp_path / "run.replaced-1234", "left behind")
    finish_run(tmp_path / "run.replaced-by-me", "another run")
    finish_run(tmp_path / "run", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.replaced-by-me"]


def test_one_process_at_a_time_writes_a_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", is_resumed=False)

    with pytest.raises(UsageError, match="another process is writing this run"):
        RunWriter(tmp_path / "run", is_resumed=False)

    writer.close()
    RunWriter(tmp_path / "run", is_resumed=False).close()


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an unfinished run to resume, found none"):
        RunWriter(tmp_path / "run", is_resumed=True)
    assert not list(tmp_path.iterdir())


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", is_resumed=False)
    writer.append(rundir.METRICS, [{"epoch": epoch, "loss": float("inf")} for epoch in (1, 2, 3)])
    writer.append(rundir.CURVE, [{"epoch": at} for at in (1.5, 2.0, 2.5)])
    with (writer.path / rundir.METRICS).open("a") as file:
        file.write('{"epoch": 4, "lo')

    writer.keep_until(2)
    writer.close()

    assert rundir.read_lines(writer.path / rundir.METRICS) == [{"epoch": 1, "loss": None}, {"epoch": 2, "loss": None}]
    assert rundir.read_lines(writer.path / rundir.CURVE) == [{"epoch": 1.5}, {"epoch": 2.0}]
