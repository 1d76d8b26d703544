"""Says what `make setup` is about to download, with sizes, before it does. Stdlib only: nothing is installed yet.

usage: plan_downloads.py PIP_PYTHON CONSTRAINTS REQUIREMENT...  [-- PIP_OPTION...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any

_WORTH_SAYING_BYTES = 10_000_000
_TIMEOUT_S = 10


def main(arguments: list[str]) -> int:
    """Prints the plan; always exits 0, since a size that cannot be found out must not stop an installation."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    python, constraints, *requirements = arguments[:cut]
    try:
        installs = _planned(python, constraints, requirements, arguments[cut + 1 :])
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        print(f"setup: what will be downloaded could not be found out ({type(error).__name__}); going on")
        return 0
    sizes = {_title(entry): _size_bytes(entry["download_info"]["url"]) for entry in installs}
    for title, size_bytes in sorted(sizes.items(), key=lambda item: -(item[1] or 0)):
        if size_bytes is None or size_bytes >= _WORTH_SAYING_BYTES:
            print(f"setup: {title:<40} {_megabytes(size_bytes):>10}")
    total = sum(size or 0 for size in sizes.values())
    print(
        f"setup: {'together, before smaller packages':<40} {_megabytes(total):>10}  (the pip cache may have some of it)"
    )
    if any(name.startswith("nvidia-") for name in sizes) and not _has_gpu():
        print("setup: this is a CUDA build of torch and there is no GPU here; a CPU build is much smaller:")
        print("setup: interrupt, and run `make setup TORCH_INDEX=<the index of CPU builds that pytorch.org names>`")
    return 0


def _planned(python: str, constraints: str, requirements: list[str], options: list[str]) -> list[dict[str, Any]]:
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", "-c", constraints]
    done = subprocess.run([*command, *options, *requirements], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    installs: list[dict[str, Any]] = report["install"]
    return installs


def _title(entry: dict[str, Any]) -> str:
    return f"{entry['metadata']['name']} {entry['metadata']['version']}"


def _size_bytes(url: str) -> int | None:
    parts = urllib.parse.urlsplit(url)
    try:
        if parts.scheme == "file":
            return os.path.getsize(urllib.request.url2pathname(parts.path))
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_S) as response:
            return int(response.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def _megabytes(size_bytes: int | None) -> str:
    return "size unknown" if size_bytes is None else f"{size_bytes / 1e6:,.0f} MB"


def _has_gpu() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
