"""The command line without a server: help, wrong arguments, nobody there."""

import socket

import pytest

from fitserve_client import cli


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("command", ["models", "show", "predict", "evaluate", "load", "unload", "wait"])
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"example:\n  fitserve-client {command}" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "exit codes:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("fitserve 0.")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: COMMAND"),
        (["modles"], "invalid choice: 'modles'"),
        (["predict", "m", "x.npy", "--model-version", "0"], "expected a whole number of at least 1, got '0'"),
        (["predict", "m", "x.npy", "--model-version", "1", "--label", "a"], "not allowed with"),
        (["evaluate", "m", "x.npz", "--batch-size", "²"], "expected a whole number of at least 1, got '²'"),
        (["evaluate", "m"], "evaluate: expected either a file or --held-out"),
        (["evaluate", "m", "x.npz", "--held-out"], "evaluate: expected either a file or --held-out"),
        (["predict", "m", "--rows", "3"], "predict: expected either a file or --text"),
        # How many of them argparse still finds a place for depends on Python's version.
        (["compare", "m", "--versions", "1,2", "x.npz", "y.npz"], "unrecognized arguments: "),
        (["compare", "m", "x.npz", "--versions", "1"], "expected two different versions or labels, as 1,2, got '1'"),
        (["compare", "m", "x.npz", "--versions", "2,2"], "expected two different versions or labels"),
        (["compare", "m", "x.npz", "--versions", "0,1"], "expected a whole number of at least 1, got '0'"),
        (["models", "--timeout", "soon"], "expected seconds above 0, got 'soon'"),
        (["models", "--timeout", "nan"], "expected seconds above 0, got 'nan'"),
    ],
)
def test_wrong_arguments_end_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == cli.UNUSABLE
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("by_environment", [True, False])
@pytest.mark.parametrize("command", ["models", "wait"])
def test_a_server_that_is_not_there_gets_one_helpful_sentence(
    by_environment: bool, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    server = f"127.0.0.1:{_free_port()}"
    if by_environment:
        monkeypatch.setenv(cli.SERVER_VARIABLE, server)
    where = [] if by_environment else ["--server", server]
    assert cli.main([command, "--timeout", "0.5", *where]) == cli.UNUSABLE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"no server answers at {server}" in err
    assert "fitserve-serve --repository DIR" in err
