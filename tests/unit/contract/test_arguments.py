"""Command lines that hold what a terminal would obey."""

from __future__ import annotations

import pytest

from fitserve_contract.arguments import CommandParser


@pytest.mark.parametrize("argument", ["--no\x1b[31m", "go", "extra\x9b31m"])
def test_errors_stay_within_one_line_of_harmless_text(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="command", usage="command")
    parser.add_subparsers().add_parser("go", usage="command go")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([*["go"] * (argument == "go"), argument, "\x1b]0;title\x07\rforged"])
    lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert "\\x" in lines[1]
