"""A process that tries models out before the server loads them, and is thrown away: what kills it kills nothing else.

Run as `python -m fitserve_service.canary`, by `canary_trials` alone. It loads and runs each version as the server
would, on the CPU, with bounded memory and time, without network, with nothing to read but the repository and itself.

| from   | kind      | means                                                                                         |
|--------|-----------|-----------------------------------------------------------------------------------------------|
| server | `begin`   | what all trials have in common: `repository`, `variant`, `is_proof_required`                  |
| canary | `ready`   | send versions: `in_force`, the limits that the kernel took                                    |
| server | `try_out` | load and run this one: `model`, `version`, `overrides`, `memory_bytes`, `cpu_s`               |
| canary | `verdict` | it ran (`refusal` is empty), or what the loader said; `is_runaway`: it took more than it may   |
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fitserve_service import canary_limits
from fitserve_service.stopping import die_with
from fitserve_service.worker_link import Link, Message


def main() -> NoReturn:
    """Tries out what it is sent until the link ends; the arguments are the link's descriptor and the parent's id."""
    descriptor, parent = map(int, sys.argv[1:])
    die_with(parent)
    in_force = [canary_limits.NETWORK] if canary_limits.leave_network() else []
    link = Link(socket.socket(fileno=descriptor))
    begin = link.receive()
    if begin is None:
        sys.exit(1)
    try_out = _loading(begin)
    canary_limits.bound_resources()
    if canary_limits.read_only([begin["repository"], sys.prefix, sys.base_prefix, *filter(os.path.isabs, sys.path)]):
        in_force.append(canary_limits.FILES)
    link.send("ready", in_force=in_force)
    while (message := link.receive()) is not None:
        link.send("verdict", **try_out(message))
    sys.exit(0)


def _loading(begin: Message) -> Callable[[Message], Message]:
    # Only now: numpy and the runtime may start threads, and a process with threads cannot give up the network.
    from fitserve_contract.repository import version_path
    from fitserve_service.loader import Loader, LoadError
    from fitserve_service.model_config import Overrides
    from fitserve_service.session import RunawayError

    repository = Path(begin["repository"])
    loader = Loader("cpu", variant=begin["variant"], is_proof_required=begin["is_proof_required"])

    def try_out(message: Message) -> Message:
        path = version_path(repository, message["model"], message["version"])
        canary_limits.bound_run(message["memory_bytes"], message["cpu_s"])
        try:
            loader.load(path, Overrides(message["overrides"]))
        except LoadError as error:
            return {"refusal": str(error), "is_runaway": isinstance(error.__cause__, RunawayError)}
        except MemoryError:
            return {"refusal": "model: wants more memory than a model of its size may", "is_runaway": True}
        return {"refusal": "", "is_runaway": False}

    return try_out


if __name__ == "__main__":
    main()
