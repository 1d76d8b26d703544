"""What a result was measured on: hardware, versions, load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.threads import available_processors

_PACKAGES: Final = (
    *("fitserve", "torch", "triton", "onnxruntime-gpu", "onnxruntime", "onnx", "onnxscript", "transformers"),
    *("numpy", "grpcio", "protobuf", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cublas"),
)
_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_PRELOAD", "MALLOC_ARENA_MAX")
"""What changes a measurement from outside."""


def describe_environment() -> dict[str, Any]:
    """Describes this machine and what is installed, JSON-safe."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "processor_count": os.cpu_count(),
        "usable_processors": list(available_processors()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpu_names(),
        "load_average": list(os.getloadavg()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "compiler": compiler_version(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "packages": {name: version for name in _PACKAGES if (version := _version_of(name)) is not None},
    }


def processor_name() -> str:
    """Names the processor as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def compiler_version() -> str:
    """Names the C++ compiler that torch.compile uses on the CPU; empty where there is none."""
    program = shutil.which(os.environ.get("CXX", "c++"))
    if program is None:
        return ""
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return answer.stdout.partition("\n")[0] if answer.returncode == 0 else ""


def gpu_names() -> list[str]:
    """Names the NVIDIA GPUs and their drivers; empty where `nvidia-smi` finds none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
