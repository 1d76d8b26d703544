"""What the CUDA provider needs beside itself, NVIDIA's driver and CUDA's libraries, and which package has what.

Nothing here imports ONNX Runtime: the libraries are opened as the loader of shared objects would.
Sources: ONNX Runtime's `preload_dlls` for the files; cuda.h for the driver's functions and codes.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DRIVER_LIBRARY: Final = "libcuda.so.1"
DRIVER_VERSION_FILE: Final = Path("/proc/driver/nvidia/version")

_EXTRA_MAJOR: Final = 13
"""CUDA for which the extra `cuda` brings libraries."""

_NO_DEVICE, _STUB, _MISMATCH = 100, 34, 803
_REASONS: Final = {
    _NO_DEVICE: "it sees no GPU: is one given to this process (CUDA_VISIBLE_DEVICES, the container's devices)?",
    _STUB: "it is the stub that CUDA's toolkit is linked against: take the driver's own library first",
    _MISMATCH: "its library and the kernel's module are of different versions: restart the machine, or mount both",
}


@dataclass(frozen=True, slots=True)
class Library:
    """A library that the CUDA provider opens.

    Args:
        name: What people call it.
        file: What the loader looks for.
        package: The Python package that brings it.
        is_required: No session runs without it; the others only some operators need.
    """

    name: str
    file: str
    package: str
    is_required: bool

    @property
    def remedy(self) -> str:
        """What to do where it is missing."""
        if self.package.endswith("-cu12"):
            return f"pip install {self.package}"
        return f"pip install 'fitserve[cuda]' brings it (package {self.package})"


@dataclass(frozen=True, slots=True)
class Driver:
    """What NVIDIA's driver says of itself.

    Args:
        problem: Why nothing can run on it; empty where it can.
        cuda_version: Highest CUDA that it knows, (major, minor); (0, 0) where it does not say.
        gpu_count: GPUs that this process sees.
    """

    problem: str
    cuda_version: tuple[int, int] = (0, 0)
    gpu_count: int = 0


def libraries(cuda_version: str) -> tuple[Library, ...]:
    """Lists what a provider built for a CUDA version opens, each after what it needs itself.

    Args:
        cuda_version: For example "13.0"; of an unknown one the newest is taken.
    """
    major = int(found[0]) if (found := re.match(r"\d+", cuda_version)) else _EXTRA_MAJOR
    suffix = "" if major >= _EXTRA_MAJOR else f"-cu{major}"
    cufft = 12 if major >= _EXTRA_MAJOR else 11
    return (
        Library("CUDA runtime", f"libcudart.so.{major}", f"nvidia-cuda-runtime{suffix}", True),
        Library("cuBLASLt", f"libcublasLt.so.{major}", f"nvidia-cublas{suffix}", True),
        Library("cuBLAS", f"libcublas.so.{major}", f"nvidia-cublas{suffix}", True),
        Library("cuRAND", "libcurand.so.10", f"nvidia-curand{suffix}", True),
        Library("NVRTC", f"libnvrtc.so.{major}", f"nvidia-cuda-nvrtc{suffix}", False),
        # The provider opens it at its first convolution: without this look nothing would be said before a request.
        Library("cuDNN", "libcudnn.so.9", f"nvidia-cudnn-cu{major}", True),
        Library("cuFFT", f"libcufft.so.{cufft}", f"nvidia-cufft{suffix}", False),
    )


def missing_file(library: str) -> str:
    """Names the file that keeps a library from loading, itself or one that it needs; empty where it loads."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return Path(str(error).split(":")[0]).name
    return ""


def load_failure(library: str) -> str:
    """Tells why a library that is there does not load; empty where it does."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        where, _, reason = str(error).partition(": ")
        return f"{Path(where).name} does not load: {reason[:200]}"
    return ""


def libraries_problem(cuda_version: str) -> str:
    """Names the first library that no session runs without and that does not load, and its package; empty: all load."""
    for library in libraries(cuda_version):
        missing = missing_file(library.file) if library.is_required else ""
        if missing:
            needed = "" if missing == library.file else f", which {library.file} needs,"
            return f"{missing}{needed} is missing ({library.name}): {library.remedy}"
    return ""


def ask_driver(library: str = DRIVER_LIBRARY) -> Driver:
    """Asks NVIDIA's driver what it can.

    Args:
        library: Its library.
    """
    if missing := missing_file(library):
        return Driver(f"{missing} is missing: no NVIDIA driver is installed, or the container was started without it")
    cuda = ctypes.CDLL(library)
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    known = (version.value // 1000, version.value % 1000 // 10)
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or count.value == 0:
        return Driver(f"the NVIDIA driver cannot be used: {_reason(code or _NO_DEVICE)}", known)
    return Driver("", known, count.value)


def driver_problem(driver: Driver, cuda_version: str, index: int = 0) -> str:
    """Tells why a driver does not do for a CUDA version and one of its GPUs; empty where it does.

    Args:
        driver: What it says.
        cuda_version: That the provider was built for, for example "13.0".
        index: Of the GPU.
    """
    if driver.problem:
        return driver.problem
    major = int(found[0]) if (found := re.match(r"\d+", cuda_version)) else 0
    if driver.cuda_version[0] and driver.cuda_version[0] < major:
        known = ".".join(map(str, driver.cuda_version))
        return f"NVIDIA driver: expected one that knows CUDA {major}, got one that knows CUDA {known}: update it"
    if index >= driver.gpu_count:
        return f"GPU {index}: expected 0..{driver.gpu_count - 1}, the driver has {driver.gpu_count}"
    return ""


def driver_version() -> str:
    """Reads the version of the kernel's NVIDIA module; empty where there is none."""
    try:
        text = DRIVER_VERSION_FILE.read_text()
    except OSError:
        return ""
    found = re.search(r"\b(\d+\.\d+(\.\d+)?)\b", text)
    return found[1] if found else text.split("\n", 1)[0][:80]


def _reason(code: int) -> str:
    return _REASONS.get(code, f"its function cuInit gave code {code}")
