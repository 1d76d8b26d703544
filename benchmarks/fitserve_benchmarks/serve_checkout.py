"""The server of a checkout of this project, run by this environment's Python and packages.

`PYTHONPATH` puts the checkout's source roots before those that are installed; worker and trial processes inherit it.
The serving process itself refuses to start where a module of the project came from elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import fitserve_benchmarks
from fitserve_benchmarks.processes import children, run_child
from fitserve_benchmarks.programs import free_ports
from fitserve_benchmarks.serve_load import Target
from fitserve_benchmarks.serve_requests import MODEL_INFER
from fitserve_benchmarks.serve_servers import Launch, Served, serving_options

_OPTIONAL: Final = frozenset({"--max-queue-ms"})
"""Left out where a checkout's server does not have it: older ones never refused."""

_ENTRY: Final = """
import importlib, sys
folder, module, function, *arguments = sys.argv[1:]
entry = getattr(importlib.import_module(module), function)
project = {name: found for name, found in sys.modules.items() if name.partition("_")[0].partition(".")[0] == "fitserve"}
for name, found in project.items():
    if not (found.__file__ or folder + "/").startswith(folder + "/"):
        sys.exit(f"module '{name}': expected it from '{folder}', found '{found.__file__}'")
sys.argv[1:] = arguments
entry()
"""


class CheckoutError(ValueError):
    """A directory is no checkout whose server can be run; the message is one sentence for the user."""


@dataclass(frozen=True)
class Checkout:
    """Sources of this project.

    Args:
        folder: Absolute, with `pyproject.toml`.
        roots: Source roots, absolute.
        module: Module of the server's command.
        function: Function of that module.
        subcommand: Words before the server's options.
    """

    folder: Path
    roots: tuple[Path, ...]
    module: str
    function: str
    subcommand: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the server and of the processes that it starts."""
        inherited = [path] if (path := os.environ.get("PYTHONPATH")) else []
        return {"PYTHONPATH": os.pathsep.join([*map(str, self.roots), *inherited])}

    def command(self, *arguments: str) -> list[str]:
        """Returns the command line of the server, or of its help."""
        entry = [str(self.folder), self.module, self.function]
        # -P: no module of the current directory takes the place of the checkout's.
        return [sys.executable, "-P", "-c", _ENTRY, *entry, *self.subcommand, *arguments]

    def describe(self) -> dict[str, Any]:
        """Describes what is checked out: commit (empty outside git), whether tracked files differ from it."""
        return {
            "commit": self._git("rev-parse", "HEAD"),
            "subject": self._git("log", "-1", "--format=%s"),
            "is_changed": bool(self._git("status", "--porcelain", "--untracked-files=no")),
        }

    def _git(self, *arguments: str) -> str:
        try:
            command = ["git", "-C", str(self.folder), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
        except FileNotFoundError:
            return ""


def open_checkout(folder: Path) -> Checkout:
    """Reads how a checkout's server is started: source roots and entry point from its `pyproject.toml`.

    Raises:
        CheckoutError: it has no such file, no source roots, or no command that serves.
    """
    folder = folder.resolve()
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckoutError(f"'{folder}': expected a checkout of fitserve with a pyproject.toml: {error}") from None
    names = project.get("tool", {}).get("hatch", {}).get("build", {}).get("dev-mode-dirs", [])
    roots = tuple(folder / name for name in names)
    missing = [str(root) for root in roots if not root.is_dir()]
    if not roots or missing:
        found = f"no '{missing[0]}'" if missing else "none"
        raise CheckoutError(f"'{path}': expected source roots under tool.hatch.build.dev-mode-dirs, found {found}")
    return Checkout(folder, roots, *serving_entry(project.get("project", {}).get("scripts", {})))


def own_checkout() -> Checkout:
    """Opens the checkout that this package runs from.

    Raises:
        CheckoutError: it runs from an installed wheel.
    """
    return open_checkout(Path(str(fitserve_benchmarks.__file__)).parents[2])


def serving_entry(scripts: dict[str, str]) -> tuple[str, str, tuple[str, ...]]:
    """Finds the command that serves: `fitserve-serve`, else `fitserve serve`.

    Args:
        scripts: Table `project.scripts` of pyproject.toml.

    Returns:
        Module, function, and words before the options.

    Raises:
        CheckoutError: there is neither.
    """
    for name, subcommand in (("fitserve-serve", ()), ("fitserve", ("serve",))):
        module, _, function = scripts.get(name, "").partition(":")
        if module and function:
            return module, function, subcommand
    found = ", ".join(scripts) or "none"
    raise CheckoutError(f"project.scripts: expected 'fitserve-serve' or 'fitserve' as MODULE:FUNCTION, found {found}")


def checkout_launch(name: str, checkout: Checkout, transport: str, served: Served) -> Launch:
    """Returns how a checkout's server is started, on free ports, with the options of every server that is measured.

    Raises:
        CheckoutError: its server does not start, or lacks an option.
    """
    port, metrics_port = free_ports(2)
    places = ["--repository", str(served.repository), "--port", str(port), "--metrics-port", str(metrics_port)]
    known = _known_options(checkout)
    options = []
    for option, value in serving_options(transport).items():
        if option in known:
            options += [option, value]
        elif option not in _OPTIONAL:
            raise CheckoutError(f"server of '{checkout.folder}': expected an option {option}, its help names none")
    target = Target(port, MODEL_INFER)
    return Launch(name, checkout.command(*places, *options), target, environment=checkout.environment)


def check_descendants(process_id: int, checkout: Checkout) -> None:
    """Checks that the Python processes which a server started find the checkout's modules first.

    Raises:
        CheckoutError: one of them has another PYTHONPATH, or a flag that ignores it.
    """
    waiting = children(process_id)
    while waiting:
        pid = waiting.pop()
        waiting += children(pid)
        try:
            program, *words = _strings(Path(f"/proc/{pid}/cmdline"))
            variables = dict(text.partition("=")[::2] for text in _strings(Path(f"/proc/{pid}/environ")))
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if Path(program).name.startswith("python"):
            _check_python(checkout, words, variables.get("PYTHONPATH", ""))


def _check_python(checkout: Checkout, words: list[str], python_path: str) -> None:
    flags = list(takewhile(lambda word: word.startswith("-"), words))
    expected = checkout.environment["PYTHONPATH"]
    if python_path != expected or re.search("[EI]", "".join(flags)):
        found = f"PYTHONPATH '{python_path}' and the flags {flags}"
        said = " ".join(words)[:80]
        raise CheckoutError(f"process '{said}': expected PYTHONPATH '{expected}' to hold in it, found {found}")


def _known_options(checkout: Checkout) -> set[str]:
    exit_code, output = run_child(
        checkout.command("--help"), environment=checkout.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = output.decode(errors="replace")
    if exit_code != 0:
        last = (text.strip().splitlines() or ["no output"])[-1][:300]
        raise CheckoutError(f"server of '{checkout.folder}': expected its help, got exit code {exit_code}: {last}")
    return set(re.findall(r"--[a-z][a-z-]*", text))


def _strings(path: Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
