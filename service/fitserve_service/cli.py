"""fitserve-serve: the command that serves a model repository."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from fitserve_contract.arguments import CommandParser
from fitserve_contract.printable import printable
from fitserve_service import descriptors, logs, start_room
from fitserve_service.settings import ENVIRONMENT_PREFIX, OPTIONS, ServerSettings, SettingsError, resolve
from fitserve_service.start_errors import failure_sentence, import_sentence
from fitserve_service.stopping import SignalWatch, block_signals

_CLOSING_S: Final = 2.0
"""How long the process may take to end once the grace time is over."""

_has_served = False

_EPILOG = f"""example:
  fitserve-serve --repository models
  fitserve-client predict lenet digit.png
  fitserve-serve doctor --device cuda
  fitserve-serve token ci --access-file access.toml --scopes infer,evaluate

Every setting can also stand in a TOML file (--config FILE, keys as above with _ for -), or in the
environment as {ENVIRONMENT_PREFIX}<SETTING>, for example {ENVIRONMENT_PREFIX}PORT=9001.
SIGTERM, SIGQUIT or Ctrl-C answers what is in flight and stops; a second one stops at once.
SIGHUP reads certificates and the access file anew; a terminal that closes stops the server."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serves until a signal stops it; the exit code is 0 then, and 2 where it could not start."""
    # grpcio's C core writes its own lines to stderr, about cases that are answered in words here.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    descriptors.open_standard()
    try:
        sys.exit(_run(sys.argv[1:] if arguments is None else arguments))
    finally:
        logs.forget_unwritten()


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["doctor"]:
        from fitserve_service import doctor

        return doctor.run(arguments[1:])
    if arguments[:1] == ["token"]:
        from fitserve_service.access import token_command

        return token_command.run(arguments[1:])
    options = vars(_parser().parse_args(arguments))
    # Before the first thread starts (numpy's import starts some): the one that waits for signals alone must get them.
    block_signals()
    file_limit = descriptors.raise_limit()
    config = options.pop("config")
    flags = {name: text for name, text in options.items() if text is not None}
    try:
        settings = resolve(flags, os.environ, config)
        if problem := start_room.shortage(file_limit, settings.workers):
            return _refuse(problem)
        logs.configure(settings.log_format, settings.log_level)
        logs.take_over()
        return _serve(settings)
    except SettingsError as error:
        return _refuse(str(error))
    except ImportError as error:
        return _refuse(import_sentence(error))
    except Exception as error:
        if _has_served:
            raise
        return _refuse(failure_sentence(error))


def _serve(settings: ServerSettings) -> int:
    return _serve_alone(settings) if settings.workers == 0 else _serve_with_workers(settings)


def _serve_alone(settings: ServerSettings) -> int:
    from fitserve_service import allocator, collector
    from fitserve_service.announcement import ready_text
    from fitserve_service.assembly import StartError
    from fitserve_service.server import Server

    try:
        server = Server(settings)
        last_resort_s = settings.drain_wait_s + settings.grace_s + _CLOSING_S
        SignalWatch(server.stop, server.reload, last_resort_s).start()

        def on_ready() -> None:
            collector.settle()
            allocator.keep_freed_memory()
            _say_ready(ready_text(settings, server.port, server.metrics_port, server.registry))

        server.run(on_ready)
    except StartError as error:
        return _refuse(str(error))
    return 0


def _serve_with_workers(settings: ServerSettings) -> int:
    # The parent never imports grpc or ONNX Runtime: it must spawn processes for as long as it lives.
    from fitserve_service.workers import Workers, WorkersError

    try:
        workers = Workers(settings)
        last_resort_s = settings.drain_wait_s + settings.grace_s + 2 * _CLOSING_S
        SignalWatch(workers.stop, workers.reload, last_resort_s).start()
        workers.run(_say_ready)
    except WorkersError as error:
        return _refuse(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fitserve-serve",
        description="Serves the ONNX models of a repository over gRPC, and watches it for new versions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    for name, option in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        if option.metavar:
            parser.add_argument(flag, dest=name, metavar=option.metavar, help=option.help)
        else:
            parser.add_argument(flag, dest=name, action="store_const", const="true", help=option.help)
    return parser


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for: reading package metadata takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        _say(f"fitserve {version('fitserve')}")
        parser.exit(0)


def _refuse(sentence: str) -> int:
    print(f"fitserve-serve: {printable(sentence)}", file=sys.stderr)
    return 2


def _say_ready(line: str) -> None:
    global _has_served
    _has_served = True
    _say(line)


def _say(line: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except (OSError, ValueError):
        # A closed stdout costs the line, never the server.
        return
