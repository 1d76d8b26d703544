"""Writes the hashed lock of what `make setup` installs beside torch: each pinned archive with its SHA-256.

usage: write_lock.py PIP_PYTHON CONSTRAINTS OUTPUT

    PYTHON -m pip install --require-hashes --no-deps -r requirements.lock

pip then refuses an archive that is not the one that was locked. The lock holds for the Python and the platform that
wrote it, which its first line names, and for archives of the same index: on others it is written anew. torch and what
only its builds bring are left out: which build is right depends on the machine and comes from an index of its own,
whose pages name the hashes.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_LEFT_OUT = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def main(arguments: list[str]) -> int:
    """Writes the lock; 2 where an archive has no hash or cannot be found."""
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    python, constraints, output = arguments
    pins = [line for line in Path(constraints).read_text().splitlines() if "==" in line and not line.startswith("#")]
    try:
        report = _report(python, [pin for pin in pins if not _LEFT_OUT.match(pin)])
        text = lock_text(report, f"{platform.python_implementation()} {_python_version(python)} on {_platform()}")
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"lock: {getattr(error, 'stderr', '') or error}", file=sys.stderr)
        return 2
    Path(output).write_text(text)
    print(f"lock: {text.count('--hash')} archives in {output}")
    return 0


def lock_text(report: dict[str, Any], where: str) -> str:
    """Makes the lock from pip's report of an installation.

    Args:
        report: What `pip install --report` wrote.
        where: The Python and platform that it holds for.

    Raises:
        ValueError: an archive of the report has no SHA-256.
    """
    lines = [f"# Written by setup/write_lock.py for {where}; without torch, whose build depends on the machine."]
    for entry in sorted(report["install"], key=lambda entry: str(entry["metadata"]["name"]).lower()):
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"{name} {version}: expected an archive with a SHA-256, got {digest or 'none'}")
        lines += [f"{name}=={version} \\", f"    --hash=sha256:{digest}"]
    return "\n".join(lines) + "\n"


def _report(python: str, pins: list[str]) -> dict[str, Any]:
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    done = subprocess.run([*command, "--report", "-", *pins], capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _python_version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _platform() -> str:
    return f"{platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
