"""The command line before any model is touched."""

import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_exporters.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent", "--repository", "{tmp}/r"], "absent': expected what fitserve-train wrote, found none"),
        (["{tmp}", "--repository", "{tmp}/r"], "finished run"),
        (["{tmp}", "--repository", "{tmp}/r", "--name", "a/b"], "model name: expected"),
        (["{tmp}", "--repository", "{tmp}/file"], "file': expected a folder"),
        (["{tmp}", "--repository", "{tmp}/file/below"], "file' is a file"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("fitserve-export: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("arguments", [[], ["runs/lenet"], ["lint"], ["--no-such-flag"]])
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: fitserve-export" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["--help"], "fitserve-export runs/lenet --repository"),
        (["lint", "--help"], "fitserve-export lint model.onnx"),
        (["--version"], "fitserve-export "),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_help_needs_neither_torch_nor_onnx() -> None:
    script = (
        "import sys\nfrom fitserve_exporters.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
