"""One of several workers: a server of its own on the shared port, held to the others by its parent.

Run as `python -m fitserve_service.worker`, by `workers` alone. It loads what it aspires to before it listens, so that a
restarted worker never gets a call that it cannot answer; and it dies with its parent. What it needs is imported once
the link is there: a package that is missing is a sentence for the parent, not a traceback.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from fitserve_service import run_record
from fitserve_service.start_errors import failure_sentence, import_sentence
from fitserve_service.stopping import SignalWatch, die_with
from fitserve_service.worker_link import Message, PostedLink

if TYPE_CHECKING:
    from fitserve_service.server import Server

_CLOSING_S: Final = 2.0
"""How long the process may take to end once the grace time is over."""

_has_listened = False

_FAREWELL_S: Final = 2.0
"""How long a last message may take to the parent."""


def main() -> NoReturn:
    """Serves until it is told to stop; the arguments are the descriptors of link and record, and the parent's id."""
    descriptor, record, parent = map(int, sys.argv[1:])
    die_with(parent)
    run_record.keep_in(record)
    link = PostedLink(socket.socket(fileno=descriptor))
    begin = link.receive()
    if begin is None:
        sys.exit(1)
    try:
        refusal = _serve(begin, link)
    except ImportError as error:
        refusal = import_sentence(error)
    except Exception as error:
        if _has_listened:
            raise
        refusal = failure_sentence(error)
    if refusal:
        link.send("refused", text=refusal)
        link.flush(_FAREWELL_S)
    sys.exit(2 if refusal else 0)


def _serve(begin: Message, link: PostedLink) -> str:
    """Serves; returns why it cannot start, or nothing once it has ended well."""
    from fitserve_service import logs
    from fitserve_service.assembly import StartError
    from fitserve_service.fleet import Fleet
    from fitserve_service.server import Server
    from fitserve_service.worker_settings import settings_of

    settings = settings_of(begin["settings"])
    logs.configure(settings.log_format, settings.log_level)
    logs.take_over()
    try:
        fleet = Fleet(link, begin)
        server = Server(settings, fleet)
        watch = SignalWatch(server.stop, server.reload, settings.drain_wait_s + settings.grace_s + _CLOSING_S)
        watch.start()
        fleet.join(server, watch.stop)
        server.run(lambda: _say_listening(server, link))
    except StartError as error:
        return str(error)
    finally:
        logs.forget_unwritten()
    return ""


def _say_listening(server: Server, link: PostedLink) -> None:
    from fitserve_service import allocator, collector
    from fitserve_service.announcement import ready_text

    global _has_listened
    _has_listened = True
    collector.settle()
    allocator.keep_freed_memory()
    link.send("listening", text=ready_text(server.settings, server.port, server.settings.metrics_port, server.registry))


if __name__ == "__main__":
    main()
