"""A record is one line, whatever its strings hold."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service import logs


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("fitserve.test", logging.WARNING, __file__, 1, "%s", (message,), None)
    vars(made).update(extra)
    return made


@given(message=st.text(), value=st.text())
def test_a_json_record_is_one_ascii_line_that_reads_back(message: str, value: str) -> None:
    line = logs.JsonFormatter().format(record(message, model=value))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    entry = json.loads(line)
    assert (entry["message"], entry["model"], entry["level"]) == (message, value, "warning")


@given(message=st.text())
def test_a_text_record_is_one_line(message: str) -> None:
    line = logs.TextFormatter().format(record(message))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_an_extra_field_cannot_take_the_place_of_an_own_one() -> None:
    entry = json.loads(logs.JsonFormatter().format(record("real", level="forged", time="never", logger="x")))
    assert (entry["message"], entry["level"], entry["logger"]) == ("real", "warning", "fitserve.test")


def test_a_traceback_stays_within_its_record() -> None:
    try:
        raise RuntimeError("first\n2026-01-01 error forged")
    except RuntimeError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    entry = json.loads(logs.JsonFormatter().format(made))
    assert "RuntimeError: first" in entry["exception"]
    lines = logs.TextFormatter().format(made).splitlines()
    assert all(line.startswith("    | ") for line in lines[1:])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root_logger_kept() -> object:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    yield root
    root.handlers[:], level, logging.raiseExceptions = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("text", io.StringIO(), False),
        ("json", Terminal(), True),
    ],
)
@pytest.mark.usefixtures("root_logger_kept")
def test_the_format_follows_the_setting_and_the_terminal(log_format: str, stream: io.StringIO, is_json: bool) -> None:
    logs.configure(log_format, "info", stream)
    logging.getLogger("fitserve.test").info("hello")
    logging.getLogger("fitserve.test").debug("not this")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("{") == is_json
    assert "hello" in line


@pytest.mark.usefixtures("root_logger_kept")
def test_a_closed_stream_costs_the_record_alone() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    stream.close()
    logging.getLogger("fitserve.test").error("nobody reads this")


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_a_closed_pipe_costs_its_records_and_no_exit_code(is_forgotten: bool) -> None:
    lines = ["import logging, sys", "from fitserve_service import logs", "logs.configure('json', 'info')"]
    lines += [
        "sys.stdin.readline()",
        "logging.error('nobody reads this')",
        "print('nor this')",
        "logs.forget_unwritten()" * is_forgotten,
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.wait(30) == (0 if is_forgotten else 120)


@pytest.mark.usefixtures("root_logger_kept")
def test_a_pipe_that_nobody_reads_costs_records_and_no_time() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as unread, open(writer, "w") as stream:
        logs.configure("json", "info", stream)
        for number in range(3_000):
            logging.getLogger("fitserve.test").info("record %d of many that nobody reads", number)
        os.set_blocking(unread.fileno(), False)
        content = unread.read() or b""
        logging.getLogger("fitserve.test").info("read again")
        content += unread.read() or b""
    lines = [json.loads(line)["message"] for line in content.decode().splitlines()]
    taken = [line for line in lines if line.startswith("record ")]
    assert taken == [f"record {number} of many that nobody reads" for number in range(len(taken))]
    assert lines[len(taken) :] == [f"{3_000 - len(taken)} log records were dropped: nobody read them", "read again"]
