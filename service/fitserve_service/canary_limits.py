"""What a process may still do while it tries a model out: read the repository, compute for a while, and no more.

Linux alone. Each measure says whether the kernel took it; none is needed for the others. Standard library only: a
process gives up the network before it loads anything that could start a thread.
Sources: unshare(2), prctl(2), getrlimit(2), landlock(7) and linux/landlock.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterable
from typing import Final

NETWORK: Final = "no network"
FILES: Final = "read-only files"

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_PR_SET_NO_NEW_PRIVS: Final = 38

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION_FLAG, _LANDLOCK_RULE_PATH_BENEATH = 1, 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_FILE_RIGHTS_BY_ABI: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the file rights an ABI knows; the later ones add none."""
_TCP_RIGHTS: Final = 0b11

_SYSTEM_FOLDERS: Final = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev", "/etc/ld.so.cache")
"""What shared libraries and the runtime's look at the processors read."""


def leave_network() -> bool:
    """Gives up all network interfaces; a process of one thread may do so without being root."""
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None).unshare
    return bool(unshare(_CLONE_NEWNET) == 0 or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def read_only(folders: Iterable[str]) -> bool:
    """Gives up writing, starting programs, and reading outside of folders and of what the system's libraries need."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_FLAG)
    if abi < 1:
        return False
    rights = (1 << _FILE_RIGHTS_BY_ABI.get(abi, 16)) - 1
    handled = struct.pack("=QQ", rights, _TCP_RIGHTS) if abi >= 4 else struct.pack("=Q", rights)
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    for folder in (*folders, *_SYSTEM_FOLDERS):
        _let_read(libc, rules, folder)
    is_sealed = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    is_restricted = is_sealed and libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return bool(is_restricted)


def be_killed_first() -> None:
    """Has the kernel end this process before any other where the machine has no memory left."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def bound_resources() -> None:
    """Bounds what is the same for every model: no core dumps, no growing files, few open ones."""
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 256)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def bound_run(memory_bytes: int, cpu_s: float) -> None:
    """Bounds what is tried out next: so much more memory than now, so much more processor time than was spent."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    most = ((resource.RLIMIT_AS, _address_space_bytes() + memory_bytes),
            (resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + cpu_s) + 1))  # fmt: skip
    for kind, soft in most:
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _let_read(libc: ctypes.CDLL, rules: int, folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights = _READ_FILE | (_READ_FOLDER if os.path.isdir(folder) else 0)
    # Packed, as the kernel has it: the rights, then the descriptor.
    rule = struct.pack("=Qi", rights, descriptor)
    libc.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    os.close(descriptor)


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 16 << 30
