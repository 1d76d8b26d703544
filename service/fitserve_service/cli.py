"""fitserve-serve: the command that serves a model repository."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fitserve_service import logs
from fitserve_service.settings import ENVIRONMENT_PREFIX, OPTIONS, ServerSettings, SettingsError, resolve

if TYPE_CHECKING:
    from fitserve_service.server import Server

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SHOWN_MODELS = 5
_CLOSING_S = 2.0
"""How long the process may take to end once the grace time is over."""

_EPILOG = f"""example:
  fitserve-serve --repository models
  fitserve-client predict lenet digit.png

Every setting can also stand in a TOML file (--config FILE, keys as above with _ for -), or in the
environment as {ENVIRONMENT_PREFIX}<SETTING>, for example {ENVIRONMENT_PREFIX}PORT=9001.
SIGTERM or Ctrl-C answers what is in flight and stops; a second one stops at once."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serves until a signal stops it; the exit code is 0 then, and 2 where it could not start."""
    # grpcio's C core writes its own lines to stderr, about cases that are answered in words here.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    options = vars(_parser().parse_args(arguments))
    config = options.pop("config")
    flags = {name: text for name, text in options.items() if text is not None}
    try:
        settings = resolve(flags, os.environ, config)
        logs.configure(settings.log_format, settings.log_level)
        return _serve(settings)
    except SettingsError as error:
        return _refuse(str(error))


def _serve(settings: ServerSettings) -> int:
    # Blocked before the first thread starts, so that the one that waits for signals alone gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    from fitserve_service.server import Server, StartError

    try:
        server = Server(settings)
        threading.Thread(target=_watch_signals, args=(server,), name="signals", daemon=True).start()
        server.run(lambda: _say(ready_text(server)))
    except StartError as error:
        return _refuse(str(error))
    return 0


def ready_text(server: Server) -> str:
    """Says in a line where the server listens and what it serves; or what to do where there is nothing to serve."""
    settings = server.settings
    place = f"fitserve is ready on {settings.host}:{server.port}"
    if server.metrics_port is not None:
        page = f"http://{settings.host}:{server.metrics_port}/"
        place += f", status page on {page}, metrics on {page}metrics"
    models = server.registry.snapshot()
    if not models:
        return (
            f"{place}. The repository '{settings.repository}' holds no model yet: export one into it with "
            f"`fitserve-export RUN_DIR --repository {settings.repository}`, or copy a file to "
            f"{settings.repository}/NAME/1/model.onnx; it is served as soon as it is there."
        )
    shown = [_model_text(server, model.name) for model in models[:_SHOWN_MODELS]]
    more = f" and {len(models) - _SHOWN_MODELS} more models" if len(models) > _SHOWN_MODELS else ""
    return f"{place}: {'; '.join(shown)}{more}"


def _model_text(server: Server, name: str) -> str:
    versions = server.registry.model(name).versions
    served = [version.served for version in versions if version.served is not None]
    if not served:
        return f"{name} (not loaded: {next((version.reason for version in versions if version.reason), 'no version')})"
    numbers = ", ".join(str(version.version) for version in served)
    return f"{name} version {numbers} on {served[-1].provider}"


def _watch_signals(server: Server) -> None:
    signal.sigwait(_STOP_SIGNALS)
    server.stop()
    # A run or a load that never ends cannot be broken off, and its thread would keep the process.
    last_resort = threading.Timer(server.settings.grace_s + _CLOSING_S, os._exit, (0,))
    last_resort.daemon = True
    last_resort.start()
    second = signal.sigwait(_STOP_SIGNALS)
    os._exit(128 + second)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    print(f"fitserve-serve: {sentence}", file=sys.stderr)
    return 2


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        # A closed stdout costs the line, never the server.
        return
