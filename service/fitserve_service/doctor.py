"""`fitserve-serve doctor`: what this machine has for serving, what is missing, and which package has it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fitserve_service.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    SessionError,
    check_runtime,
    cuda_problem,
    provider_names,
    runtime_version,
)

_LIBRARIES: Final = {
    "CUDA runtime": ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"),
    "cuBLAS": ("nvidia-cublas", "nvidia-cublas-cu12"),
    "cuDNN": ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
    "cuFFT": ("nvidia-cufft", "nvidia-cufft-cu12"),
    "cuRAND": ("nvidia-curand", "nvidia-curand-cu12"),
}
"""What the CUDA provider loads, and the packages that may bring it: those of the extra `cuda` first."""

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
    print(json.dumps([_as_json(one) for one in findings], indent=2) if options.json else findings_text(findings))
    return 0 if all(one.is_there for one in findings if one.is_needed) else 1


def examine(device: str) -> tuple[Finding, ...]:
    """Looks at everything that serving on a device needs, "cpu", "cuda" or "auto" (CUDA where it works).

    Nothing is changed, and no model is loaded.
    """
    needs_cuda = device == "cuda"
    problem = cuda_problem()
    libraries = [_library(name, packages) for name, packages in _LIBRARIES.items()]
    providers = provider_names()
    return (
        Finding("Python", platform.python_version(), True, True),
        _runtime(),
        Finding("CPU", f"{len(os.sched_getaffinity(0))} cores for this process", CPU_PROVIDER in providers, True),
        Finding("providers compiled in", ", ".join(providers), CUDA_PROVIDER in providers, needs_cuda),
        _driver(needs_cuda),
        *libraries,
        Finding("CUDA sessions", problem or "can run: the CUDA provider's libraries load", problem is None, needs_cuda),
    )


def findings_text(findings: Sequence[Finding]) -> str:
    """Writes findings for people, and in the last line what follows from them."""
    width = max(len(one.name) for one in findings)
    lines = [f"{'ok ' if one.is_there else 'no '} {one.name.ljust(width)}  {one.found}" for one in findings]
    missing = [one for one in findings if one.is_needed and not one.is_there]
    cuda = findings[-1]
    if missing:
        verdict = f"cannot serve as asked: {missing[-1].found}"
    else:
        verdict = (
            "can serve on CUDA and on the CPU" if cuda.is_there else f"can serve on the CPU; not on CUDA: {cuda.found}"
        )
    return "\n".join([*lines, verdict])


def _as_json(one: Finding) -> dict[str, object]:
    return {"name": one.name, "found": one.found, "is_there": one.is_there, "is_needed": one.is_needed}


def _runtime() -> Finding:
    try:
        check_runtime()
    except SessionError as error:
        return Finding("ONNX Runtime", f"{error}: pip install 'fitserve[service]'", False, True)
    return Finding("ONNX Runtime", runtime_version(), True, True)


def _driver(is_needed: bool) -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        text = "no nvidia-smi: no NVIDIA driver is installed, or the container was started without it"
        return Finding("driver and GPUs", text, False, is_needed)
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_QUERY_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("driver and GPUs", f"nvidia-smi does not answer: {error}", False, is_needed)
    lines = [" ".join(line.split()) for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0 or not lines:
        reason = (answer.stderr or answer.stdout).strip().splitlines()
        return Finding("driver and GPUs", f"nvidia-smi: {reason[0] if reason else 'no GPU'}", False, is_needed)
    return Finding("driver and GPUs", "; ".join(lines), True, is_needed)


def _library(name: str, packages: Sequence[str]) -> Finding:
    """Looks for a package that brings a library; the system's own may do as well, so that none is needed."""
    for package in packages:
        try:
            return Finding(name, f"{package} {version(package)}", True, False)
        except PackageNotFoundError:
            continue
    text = f"no package {packages[0]} (pip install 'fitserve[cuda]'); the system may have the library"
    return Finding(name, text, False, False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
