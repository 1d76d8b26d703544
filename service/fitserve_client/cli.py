"""`fitserve-client`: a fitserve server from the shell.

Exit codes: 0 done; 1 the server refused or failed; 2 the command could not be carried out: wrong arguments, a file
that cannot be used, or no server there; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from fitserve_client.client import Client
from fitserve_client.commands import COMMANDS
from fitserve_client.connection import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, ConnectionOptions
from fitserve_client.control_commands import CONTROL_COMMANDS, add_control_commands, version_number
from fitserve_client.credentials import Tls
from fitserve_client.errors import FileError, FitserveError, UnavailableError
from fitserve_client.reports import Report
from fitserve_contract.arguments import CommandParser
from fitserve_contract.printable import printable

DONE: Final = 0
REFUSED: Final = 1
UNUSABLE: Final = 2
INTERRUPTED: Final = 130

SERVER_VARIABLE: Final = "FITSERVE_SERVER"
_DEFAULT_ROWS: Final = 20
_PROGRAM: Final = "fitserve-client"

_EPILOG: Final = """\
exit codes:
  0    done
  1    the server refused or failed
  2    wrong arguments, a file that cannot be used, or no server there
  130  interrupted

example:
  fitserve-client predict lenet boot.png --server localhost:8001
"""

_TLS_FILES: Final = ("tls_ca", "tls_cert", "tls_key")
"""In the order of `Tls`."""

_SOURCES: Final = ("file", "held_out", "text")
"""Where examples come from: one of these."""

_OPTIONAL: Final = {
    "predict": ("file",),
    "evaluate": ("file",),
    "compare": ("file",),
    "label": ("label", "target_version"),
}
"""Positional arguments that may be left out, by command, in the order that they are given in."""

_FILES: Final = """\
A .npy file holds one array for a model with one input. A .npz file holds one array per input name.
A .csv file holds one column, under its name in the first line, for each column that the model was trained on."""

_LABELS: Final = """\
An array named 'labels', or the column of labels that the model was trained on, holds one label per example."""

_PICTURES: Final = """\
A .png file becomes grey, 0..1, and is resized where its size is not the model's. The data sets are light drawings
on dark ground: use --invert for a dark drawing on white paper. (Needs Pillow: pip install 'fitserve[images]'.)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    arguments = _parsed(argv)
    try:
        timings: list[Mapping[str, int]] = []
        on_timing = timings.append if getattr(arguments, "timing", False) else None
        with Client(arguments.server, on_timing=on_timing, **_connection(arguments, os.environ)) as client:
            report = {**COMMANDS, **CONTROL_COMMANDS}[arguments.command](client, arguments)
        _print(replace(report, notes=[*report.notes, *map(_timing_text, timings)]), is_json=arguments.json)
    except (FitserveError, FileError) as error:
        print(f"{_PROGRAM}: {printable(_sentence(error, arguments.server))}", file=sys.stderr)
        return UNUSABLE if isinstance(error, FileError) or _is_absent(error) else REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return DONE
    return REFUSED if report.is_refused else DONE


def _connection(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ConnectionOptions:
    """Gives deadline, TLS and token; a flag wins over the environment. The token is no flag: others would see it."""
    files = [getattr(arguments, name) or environment.get(f"FITSERVE_{name.upper()}") or None for name in _TLS_FILES]
    has_tls = arguments.tls or any(files)
    token_file = arguments.token_file or environment.get("FITSERVE_TOKEN_FILE") or None
    token = "" if token_file else environment.get("FITSERVE_TOKEN", "")
    tls = Tls(*files) if has_tls else None
    return {"timeout_s": arguments.timeout, "tls": tls, "token_file": token_file, "token": token}


def _timing_text(timing: Mapping[str, int]) -> str:
    parts = ", ".join(f"{part} {time_us:,} µs" for part, time_us in timing.items())
    return f"time on the server: {sum(timing.values()):,} µs: {parts}"


def _print(report: Report, *, is_json: bool) -> None:
    for note in report.notes:
        print(f"{_PROGRAM}: note: {printable(note)}", file=sys.stderr)
    if is_json:
        print(json.dumps(report.document, allow_nan=False))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(report.lines(width)))
    sys.stdout.flush()


def _drop_output() -> None:
    """The reader went away; what is still buffered must not fail again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_absent(error: Exception) -> bool:
    """No server answered, not even while it was waited for; as against a server that says that it is not ready."""
    origin = error.__cause__ or error
    return isinstance(origin, UnavailableError) and not origin.reason


def _sentence(error: Exception, server: str) -> str:
    if _is_absent(error):
        return (
            f"no server answers at {server}; start one with: fitserve-serve --repository DIR, or name it with --server "
            "(where it speaks TLS: with --tls-ca FILE, whose authority signed its certificate for that name)"
        )
    return str(error)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; arguments that may be left out may also stand behind the options.

    argparse gives an optional positional up at the first option, and up to Python 3.12 finds it no more.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    for name in _OPTIONAL.get(arguments.command, ()):
        if rest and not rest[0].startswith("-") and getattr(arguments, name) is None:
            setattr(arguments, name, rest.pop(0))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "label":
        _check_label_arguments(parser, arguments)
    sources = [getattr(arguments, name) for name in _SOURCES if hasattr(arguments, name)]
    if sources and sum(map(bool, sources)) != 1:
        other = next(name for name in _SOURCES[1:] if hasattr(arguments, name)).replace("_", "-")
        parser.error(f"{arguments.command}: expected either a file or --{other}")
    return arguments


def _check_label_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.delete and (arguments.label is None or arguments.target_version is not None):
        parser.error("label: expected --delete with a LABEL and without a VERSION")
    if isinstance(arguments.target_version, str):
        try:
            arguments.target_version = version_number(arguments.target_version)
        except argparse.ArgumentTypeError as error:
            parser.error(f"label: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=_PROGRAM,
        description="Uses a fitserve server from the shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fitserve {version('fitserve')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add(commands, "models", "lists the models of the server and their versions", "models --json")
    showing = _add(commands, "show", "shows a version's signature, task and settings", "show lenet --model-version 3")
    _add_model(showing)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    loading = _add(commands, "load", "loads a model again, or retries one that failed", "load lenet")
    loading.add_argument("model", metavar="MODEL")
    unloading = _add(commands, "unload", "unloads a model until it is loaded again", "unload lenet")
    unloading.add_argument("model", metavar="MODEL")
    waiting = _add(commands, "wait", "waits until the server, or a model, is ready", "wait lenet --timeout 60")
    waiting.add_argument("model", metavar="MODEL", nargs="?")
    waiting.add_argument("--model-version", metavar="N", type=_positive, help="this version of it")
    add_control_commands(partial(_add, commands))
    return parser


def _add_predict(commands: Any) -> None:
    parser = _add(
        commands,
        "predict",
        "runs a model on the examples of a file, or on texts",
        "predict lenet boot.png --invert",
        f"{_FILES}\n{_PICTURES}",
    )
    _add_model(parser)
    parser.add_argument("file", metavar="FILE.npy|FILE.npz|FILE.png|FILE.csv", nargs="?")
    parser.add_argument("--text", metavar="TEXT", action="append", help="a text for a model of text; may be repeated")
    parser.add_argument(
        "--routing-key", metavar="KEY", help="requests with one key land on one side of a traffic share"
    )
    parser.add_argument("--timing", action="store_true", help="say where the server's time went, call by call")
    parser.add_argument("--invert", action="store_true", help="exchange light and dark in a .png file")
    parser.add_argument(
        "--rows", metavar="N", type=_positive, default=_DEFAULT_ROWS, help="rows shown at most (default %(default)s)"
    )


def _add_evaluate(commands: Any) -> None:
    example = "evaluate lenet test.npz --batch-size 64"
    parser = _add(commands, "evaluate", "scores a model on a labelled data set", example, f"{_FILES}\n{_LABELS}")
    _add_model(parser)
    _add_examples(parser, "the version")


def _add_compare(commands: Any) -> None:
    example = "compare lenet --versions 1,2 --held-out"
    what = "compares two versions on the same labelled examples"
    parser = _add(commands, "compare", what, example, f"{_FILES}\n{_LABELS}")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--versions", metavar="A,B", type=_two_versions, required=True, help="the two: version numbers or labels"
    )
    _add_examples(parser, "the first version")


def _add_examples(parser: argparse.ArgumentParser, carrier: str) -> None:
    parser.add_argument("file", metavar="FILE.npz|FILE.csv", nargs="?")
    parser.add_argument("--held-out", action="store_true", help=f"the held-out examples that {carrier} carries")
    parser.add_argument("--batch-size", metavar="N", type=_positive, help="examples per call (default: by the model)")


def _add(commands: Any, name: str, what: str, example: str, details: str = "") -> argparse.ArgumentParser:
    """Adds a command with the options that all have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what.capitalize()}.\n{details}",
        epilog=f"example:\n  {_PROGRAM} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get(SERVER_VARIABLE) or DEFAULT_TARGET,
        help=f"the server (default: ${SERVER_VARIABLE}, else {DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive_seconds,
        default=DEFAULT_TIMEOUT_S,
        help="deadline of a call (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    _add_access(parser)
    return parser


def _add_access(parser: argparse.ArgumentParser) -> None:
    access = parser.add_argument_group("access", "Each FILE may also be named in the environment: $FITSERVE_TLS_CA …")
    access.add_argument("--tls", action="store_true", help="TLS, with the authorities that this system trusts")
    access.add_argument("--tls-ca", metavar="FILE", help="TLS, with these authorities (PEM)")
    access.add_argument("--tls-cert", metavar="FILE", help="the certificate to show, where the server asks for one")
    access.add_argument("--tls-key", metavar="FILE", help="its key")
    access.add_argument(
        "--token-file", metavar="FILE", help="the token to send (or in $FITSERVE_TOKEN itself); over TLS alone"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model-version", metavar="N", type=_positive, help="this version, not the server's choice")
    which.add_argument("--label", metavar="L", help="the version that this label points at")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def _two_versions(text: str) -> tuple[int | str, int | str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise argparse.ArgumentTypeError(f"expected two different versions or labels, as 1,2, got '{text}'")
    first, second = (_positive(part) if part.isdigit() else part for part in parts)
    return first, second


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got '{text}'")
    return seconds
