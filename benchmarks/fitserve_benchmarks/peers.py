"""Other servers of ONNX models, each installed from the package index into an environment of its own.

The environments lie in the user's cache and are made once, on request. A peer that does not install, or does not come
up, is left out of the measurement with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fitserve_benchmarks.processes import run_child

_MARKER: Final = "installed.json"
_NICE: Final = 19
_SOURCE_ROOTS: Final = ("fitserve_benchmarks", "fitserve_oip")


class PeerError(RuntimeError):
    """A peer that cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that others made.

    Args:
        name: As `--peers` takes it.
        package: Its distribution, whose version is reported.
        requirements: What pip installs, beside the ONNX Runtime that is measured.
        path: What is called: a gRPC method or an HTTP path.
        protocol: "grpc", or "http" for HTTP/1.1.
        encoding: "bytes" of the message, or "base64" within JSON where the server takes nothing else.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    path: str
    protocol: Literal["grpc", "http"]
    encoding: Literal["bytes", "base64"] = "bytes"

    @property
    def program(self) -> str:
        """Module that runs it, in its environment."""
        return f"fitserve_benchmarks.peers_{self.name}"


_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"

PEERS: Final[Mapping[str, Peer]] = {
    peer.name: peer
    for peer in (
        Peer("mlserver", "mlserver", ("mlserver",), _INFER, "grpc"),
        Peer("pytriton", "nvidia-pytriton", ("nvidia-pytriton",), _INFER, "grpc"),
        Peer("ray", "ray", ("ray[serve]", "protobuf>=6.31.1"), "/", "http"),
        Peer("litserve", "litserve", ("litserve", "protobuf>=6.31.1"), "/predict", "http", "base64"),
        Peer("bentoml", "bentoml", ("bentoml", "protobuf>=6.31.1"), "/infer", "http", "base64"),
    )
}


def chosen_peers(text: str) -> tuple[Peer, ...]:
    """Reads `--peers`: "none", "auto" for those whose environment is there already, "all", or names with commas.

    Raises:
        ValueError: a name is none of a peer.
    """
    if text == "none":
        return ()
    if text == "auto":
        return tuple(peer for peer in PEERS.values() if (_folder(peer) / _MARKER).exists())
    names = tuple(PEERS) if text == "all" else tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"peers: expected none, auto, all or some of {', '.join(PEERS)}, got '{unknown[0][:64]}'")
    return tuple(PEERS[name] for name in names)


def install(peer: Peer, runtime_version: str, *, say: Callable[[str], None]) -> Path:
    """Makes a peer's environment where it is not there yet.

    Args:
        peer: Whose.
        runtime_version: Version of ONNX Runtime that everybody runs.
        say: Takes a line of progress.

    Returns:
        The environment's Python.

    Raises:
        PeerError: pip could not install it.
    """
    folder = _folder(peer)
    python, marker = folder / "bin" / "python", folder / _MARKER
    wanted = {"requirements": [*peer.requirements, f"onnxruntime=={runtime_version}"]}
    if marker.exists() and json.loads(marker.read_text()).get("requirements") == wanted["requirements"]:
        return python
    say(f"{peer.name}: installing into {folder}")
    venv.create(folder, with_pip=True, symlinks=True)
    command = ["nice", f"-n{_NICE}", str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    exit_code, output = run_child([*command, *wanted["requirements"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if exit_code != 0:
        raise PeerError(f"not installed: {_last_error(output.decode(errors='replace'))}")
    marker.write_text(json.dumps(wanted) + "\n")
    return python


def installed_version(peer: Peer, python: Path) -> str:
    """Tells which version of a peer its environment has."""
    script = f"import importlib.metadata as m; print(m.version('{peer.package}'))"
    _, output = run_child([str(python), "-c", script], stdout=subprocess.PIPE)
    return output.decode().strip()


def peer_command(peer: Peer, python: Path, port: int, thread_count: int, models: Sequence[str]) -> list[str]:
    """Writes the command that serves models, `NAME=FILE` each."""
    return [str(python), "-m", peer.program, str(port), str(thread_count), *models]


def peer_environment(python: Path) -> dict[str, str]:
    """Gives the variables a peer runs with: its own programs first, our sources behind its own packages."""
    roots = {str(Path(sys.modules[name].__file__ or "").parent.parent) for name in _SOURCE_ROOTS if name in sys.modules}
    return {
        "PATH": os.pathsep.join((str(python.parent), os.environ.get("PATH", ""))),
        "PYTHONPATH": os.pathsep.join(sorted(roots)),
        "PYTHONWARNINGS": "ignore",
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _folder(peer: Peer) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache, "fitserve", "peers", peer.name)


def _last_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return (errors or text.splitlines() or ["pip said nothing"])[-1][:200]
