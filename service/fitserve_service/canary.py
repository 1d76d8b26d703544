"""A process that tries models out before the server loads them, and is thrown away: what kills it kills nothing else.

Run as `python -m fitserve_service.canary`, by `canary_trials` alone. It loads and runs each version as the server
would, on the CPU, with bounded memory and time, without network, with nothing to read but the repository and itself.

| from   | kind      | means                                                                                         |
|--------|-----------|-----------------------------------------------------------------------------------------------|
| server | `begin`   | for all trials: `repository`, `follow_links` or null, `variant`, `is_proof_required`          |
| canary | `ready`   | send versions: `in_force`, the limits that the kernel took                                    |
| server | `try_out` | load and run this one: `model`, `version`, `overrides`, `memory_bytes`, `cpu_s`               |
| canary | `step`    | it goes on: a run begins that may take `expected_s`, or one has ended                         |
| canary | `verdict` | it ran (`refusal` is empty), or what the loader said; `is_out_of_memory`: it needs more;       |
|        |           | `is_stale`: another folder took the repository's place, which this process may not read       |
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from fitserve_service import canary_limits
from fitserve_service.stopping import die_with
from fitserve_service.worker_link import Link, Message

_SHORT_S: Final = 0.5


def main() -> NoReturn:
    """Tries out what it is sent until the link ends; the arguments are the link's descriptor and the parent's id."""
    descriptor, parent = map(int, sys.argv[1:])
    die_with(parent)
    for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Service managers ask all processes of a server at once: who dies of it would be told as the model's fault.
        signal.signal(asked, signal.SIG_IGN)
    canary_limits.be_killed_first()
    in_force = [canary_limits.NETWORK] if canary_limits.leave_network() else []
    link = Link(socket.socket(fileno=descriptor))
    begin = link.receive()
    if begin is None:
        sys.exit(1)
    try_out = _loading(begin, link)
    canary_limits.bound_resources()
    places = [place for place in (begin["repository"], begin["follow_links"]) if place]
    if canary_limits.read_only([*places, sys.prefix, sys.base_prefix, *filter(os.path.isabs, sys.path)]):
        in_force.append(canary_limits.FILES)
    link.send("ready", in_force=in_force)
    while (message := link.receive()) is not None:
        link.send("verdict", **try_out(message))
    sys.exit(0)


def _loading(begin: Message, link: Link) -> Callable[[Message], Message]:
    # Only now: numpy and the runtime may start threads, and a process with threads cannot give up the network.
    from fitserve_contract.repository import version_path
    from fitserve_contract.repository_view import RepositoryRoot
    from fitserve_service.loader import Loader
    from fitserve_service.loading.load_errors import MEMORY, THREADS, LoadError
    from fitserve_service.model_config import Overrides

    outside = Path(begin["follow_links"]) if begin["follow_links"] else None
    repository = RepositoryRoot(Path(begin["repository"]), outside)
    # The server ends the process, and with it a run that no limit in here could end.
    loader = Loader(
        "cpu",
        variant=begin["variant"],
        is_proof_required=begin["is_proof_required"],
        run_limit_s=math.inf,
        on_run=_Steps(link).tell,
    )

    def try_out(message: Message) -> Message:
        verdict = load(message)
        return verdict | {"is_stale": bool(verdict["refusal"]) and not _can_read(begin)}

    def load(message: Message) -> Message:
        path = version_path(repository, message["model"], message["version"])
        canary_limits.bound_run(message["memory_bytes"], message["cpu_s"])
        try:
            loader.load(path, Overrides(message["overrides"]))
        except LoadError as error:
            # Where the address space is bounded, a thread's stack is what does not fit into it.
            is_out_of_memory = error.kind in (MEMORY, THREADS)
            return {"refusal": str(error), "refusal_kind": error.kind, "is_out_of_memory": is_out_of_memory}
        except Exception:
            return {"refusal": "internal error while loading; the log has it", "trace": traceback.format_exc()}
        return {"refusal": "", "is_out_of_memory": False}

    return try_out


def _can_read(begin: Message) -> bool:
    """Tells whether this process may read what lies at the repository's path: it gave up all folders but those then."""
    try:
        for place in filter(None, (begin["repository"], begin["follow_links"])):
            os.listdir(place)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


class _Steps:
    """Tells the server that a trial goes on, where it would else wait in vain: not for each of many short runs."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._told_s = time.monotonic()

    def tell(self, expected_s: float) -> None:
        """Is told of each run, as `SessionOptions.on_run` says."""
        now_s = time.monotonic()
        if max(expected_s, now_s - self._told_s) > _SHORT_S:
            self._told_s = now_s
            self._link.send("step", expected_s=expected_s)


if __name__ == "__main__":
    main()
