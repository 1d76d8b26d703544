"""The command: what it says, its exit codes, and that it answers without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_training.catalogue import ENTRIES, load_recipe, names
from fitserve_training.cli import main


def test_every_recipe_of_the_catalogue_is_there() -> None:
    assert [load_recipe(name).name for name in names()] == names()


def test_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in ENTRIES]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "fitserve-train lenet --data digits" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("fitserve-train ")


def test_list_and_a_wrong_recipe_need_no_torch() -> None:
    program = (
        "import sys; from fitserve_training.cli import main\n"
        "assert main(['--list']) == 0 and main(['lenett']) == 2\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenett"], "unknown recipe 'lenett'; did you mean 'lenet'?"),
        ([], "expected a recipe"),
        (["linreg", "--set", "lrr=1"], "unknown setting in --set 'lrr'; did you mean 'lr'?"),
        (["linreg", "--seed", "x"], "setting 'seed': expected a whole number, got 'x'"),
        (["linreg", "--device", "tpu"], "setting 'device': expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["linreg", "--config", "absent.toml"], "config file absent.toml: No such file or directory"),
        (["lenet", "--data-dir", "absent"], "data directory absent: expected an existing directory, found none"),
        (["linreg", "--index", "runs"], "--index: expected nothing beside it, got recipe"),
        (["--index", "runs", "--set", "lr=1"], "--index: expected nothing beside it, got set"),
        (["linreg", "--resume"], "expected a run to resume, found none; start it without --resume"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert main(["linreg", "--device", "cuda", "--run-dir", str(tmp_path / "run")]) == 2

    assert "setting 'device': 'cuda' is not available" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_diverging_run_exits_with_1_and_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["thermometer", "--set", "model.input_scale=1", "--run-dir", str(tmp_path / "run")]

    assert main(arguments) == 1

    error = capsys.readouterr().err
    assert "the loss is inf at epoch 11" in error
    assert "--set model.input_scale=0.1" in error


def test_a_run_in_plain_lines_ends_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["linreg", "--set", "data.example_count=50"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "run: runs/linreg"
    assert lines[1].startswith("device cpu")
    assert sum(line.startswith("epoch ") for line in lines) == 3


def test_the_preset_of_digits_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lenet", "--data", "digits", "--set", "epochs=1", "--run-dir", str(tmp_path / "run")]

    assert main(arguments) == 0

    out = capsys.readouterr().out
    assert "settings for digits: optimizer adam, lr 0.003, batch_size 64, epochs 1" in out
    assert "no published band" in out


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")

    assert main(["linreg", "--run-dir", str(tmp_path / "file" / "run")]) == 2

    assert capsys.readouterr().err.count("\n") == 1
