"""`fitserve-serve doctor`: what this machine has for serving, what is missing, and which package has it."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fitserve_contract.arguments import CommandParser
from fitserve_contract.printable import printable
from fitserve_service.control_groups import available_cores
from fitserve_service.cuda_libraries import (
    Driver,
    Library,
    ask_driver,
    driver_problem,
    driver_version,
    libraries,
    missing_file,
)
from fitserve_service.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    SessionError,
    check_runtime,
    cuda_problem,
    cuda_version,
    preload_cuda,
    provider_names,
    runtime_version,
)

_QUERY_LIMIT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: What.
        found: What is there, or why not and what to do.
        is_there: Whether it is.
        is_needed: Whether the device that was asked for needs it.
    """

    name: str
    found: str
    is_there: bool
    is_needed: bool


def run(arguments: Sequence[str]) -> int:
    """Runs the command: 0 where the device that was asked for can serve, 1 where it cannot."""
    options = _parser().parse_args(arguments)
    findings = examine(options.device)
    print(json.dumps([_as_json(one) for one in findings], indent=2) if options.json else _findings_text(findings))
    return 0 if all(one.is_there for one in findings if one.is_needed) else 1


def examine(device: str) -> tuple[Finding, ...]:
    """Looks at everything that serving on a device needs, "cpu", "cuda" or "auto" (CUDA where it works).

    Nothing is changed, and no model is loaded.
    """
    needs_cuda = device == "cuda"
    problem = cuda_problem()
    preload_cuda()
    providers = provider_names()
    return (
        Finding("Python", platform.python_version(), True, True),
        _runtime(),
        Finding("CPU", f"{available_cores()} cores for this process", CPU_PROVIDER in providers, True),
        Finding("providers compiled in", ", ".join(providers), CUDA_PROVIDER in providers, needs_cuda),
        Finding("kernel's NVIDIA module", driver_version() or "none is loaded", bool(driver_version()), False),
        _gpus(),
        _cuda(ask_driver(), needs_cuda),
        *(_library(library, needs_cuda) for library in libraries(cuda_version())),
        Finding("CUDA sessions", problem or "can run: the CUDA provider's libraries load", problem is None, needs_cuda),
    )


def _findings_text(findings: Sequence[Finding]) -> str:
    """Writes findings for people, and in the last line what follows from them."""
    width = max(len(one.name) for one in findings)
    lines = [f"{'ok ' if one.is_there else 'no '} {one.name.ljust(width)}  {printable(one.found)}" for one in findings]
    missing = [one for one in findings if one.is_needed and not one.is_there]
    cuda = findings[-1]
    if missing:
        verdict = f"cannot serve as asked: {missing[-1].found}"
    else:
        verdict = (
            "can serve on CUDA and on the CPU" if cuda.is_there else f"can serve on the CPU; not on CUDA: {cuda.found}"
        )
    return "\n".join([*lines, printable(verdict)])


def _as_json(one: Finding) -> dict[str, object]:
    return {"name": one.name, "found": one.found, "is_there": one.is_there, "is_needed": one.is_needed}


def _runtime() -> Finding:
    try:
        check_runtime()
    except SessionError as error:
        return Finding("ONNX Runtime", f"{error}: pip install 'fitserve[service]'", False, True)
    built_for = f", built for CUDA {cuda_version()}" if cuda_version() else ", built without CUDA"
    return Finding("ONNX Runtime", runtime_version() + built_for, True, True)


def _gpus() -> Finding:
    """Asks NVIDIA's own program, which tells more than is needed: a container may well go without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        text = "no nvidia-smi to tell"
        return Finding("driver and GPUs", text, False, False)
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_QUERY_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("driver and GPUs", f"nvidia-smi does not answer: {error}", False, False)
    lines = [" ".join(line.split()) for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0 or not lines:
        reason = (answer.stderr or answer.stdout).strip().splitlines()
        return Finding("driver and GPUs", f"nvidia-smi: {reason[0] if reason else 'no GPU'}", False, False)
    return Finding("driver and GPUs", "; ".join(lines), True, False)


def _cuda(driver: Driver, is_needed: bool) -> Finding:
    """Holds what the driver knows against what this ONNX Runtime was built for."""
    problem = driver_problem(driver, cuda_version())
    known = ".".join(map(str, driver.cuda_version))
    return Finding("CUDA of the driver", problem or f"{known}, {driver.gpu_count} GPU(s)", not problem, is_needed)


def _library(library: Library, needs_cuda: bool) -> Finding:
    """Tells whether a library loads, and which package it is or would be from."""
    is_needed = needs_cuda and library.is_required
    if missing := missing_file(library.file):
        which = missing if missing == library.file else f"{library.file} needs {missing}, which"
        optional = "" if library.is_required else "; only some operators need it"
        return Finding(library.name, f"{which} is missing: {library.remedy}{optional}", False, is_needed)
    try:
        found = f"{library.package} {version(library.package)}"
    except PackageNotFoundError:
        found = "not from a package: the system has it"
    return Finding(library.name, f"{library.file} loads ({found})", True, is_needed)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fitserve-serve doctor",
        description="Tells what this machine has for serving: driver, CUDA, cuDNN, providers, and why not.",
        epilog="exit codes: 0 the device can serve; 1 it cannot, the last line says why",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what has to work; auto: the CPU at least (auto)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser
