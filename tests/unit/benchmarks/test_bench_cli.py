"""The command line: what it takes, refuses and says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.builders import bare_version, linear

from fitserve_benchmarks.cli import main
from fitserve_benchmarks.option_values import positive_numbers


def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], *([name, "--help"] for name in ("latency", "wire", "demo", "reproduce"))):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "fitserve-bench " in capsys.readouterr().out.partition("example")[2]


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom fitserve_benchmarks.cli import main\n"
        "try:\n    main(['--version'])\n"
        "except SystemExit:\n    print(sorted({'torch', 'onnxruntime', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[0].startswith("fitserve-bench ")
    assert output.splitlines()[1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["latency", "--repository", "nowhere"], "model 'lenet': expected a version in repository 'nowhere'"),
        (["latency", "--threads", "none"], "threads: expected a positive number or 'all', got 'none'"),
        (["latency", "--trials", "2"], "expected --trials of at least 3"),
        (["latency", "--limit-s", "0"], "expected --limit-s and --server-p99-ms above 0, got 0 and 15"),
        (["latency", "--scenarios", "server"], "scenarios: expected all, none, or some of SingleStream"),
        (["latency", "--model", "all", "--repository", "nowhere"], "repository 'nowhere': expected models, found none"),
        (["latency", "--model", "all", "--run-dir", "r"], "--model all: expected neither --run-dir nor"),
        (["wire", "--batch-size", "0"], "expected --batch-size and --connections of at least 1"),
        (["wire", "--server", "nowhere"], "nowhere"),
        (["demo", "--budget-s", "0"], "--budget-s above 0"),
        (["serve", "--turns", "0"], "expected --turns, --pairs and --threads of at least 1"),
        (["serve", "--pairs", "9"], "--pairs: expected only with --against; leave it out"),
        (["serve", "--against", ".", "--pairs", "0"], "expected --turns, --pairs and --threads of at least 1"),
        (["serve", "--against", ".", "--peers", "none"], "--peers: expected only without --against; leave it out"),
        (["serve", "--against", ".", "--no-large"], "--no-large: expected only without --against; leave it out"),
        (["serve", "--against", "nowhere"], "nowhere': expected a checkout of fitserve with a pyproject.toml"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fitserve-bench {arguments[0]}: ")
    assert sentence in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_read_once_each_in_their_order() -> None:
    assert positive_numbers("8, 1,8,64") == (8, 1, 64)


@pytest.mark.parametrize("text", ["", "0", "1,", "-1", "1.5", "x"])
def test_what_is_no_list_of_numbers_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["latency", "--batch-sizes", text])
    assert ended.value.code == 2
    assert "expected positive numbers separated by commas" in capsys.readouterr().err


def test_latency_prints_tables_and_verdict_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare_version(tmp_path / "models", "tiny", 4, linear())
    options = ["--batch-sizes", "1,2", "--threads", "1", "--trials", "3", "--budget-s", "0.05"]
    places = ["--repository", str(tmp_path / "models"), "--output-dir", str(tmp_path / "out")]
    assert main(["latency", "--model", "tiny", *options, *places]) == 0
    output = capsys.readouterr().out
    assert "tiny version 4, 1 thread" in output
    assert "torch eager (cpu): not measured, needs the run directory" in output
    assert "All answers agree" in output
    document = json.loads((tmp_path / "out" / "latency-tiny.json").read_text())
    assert document["settings"]["threads"][0]["count"] == 1
    assert [row["batch_size"] for row in document["rows"] if row["skipped"] is None] == [1, 2]
