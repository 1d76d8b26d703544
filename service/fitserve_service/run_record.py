"""What each thread of a worker runs at this moment, in memory that its parent reads once the worker has died.

A model that crashes the runtime takes the process with it; who was to blame must have been written down before. A run
costs two stores into memory of its thread's own, some hundred nanoseconds. Standard library only: the parent has no
more.

Layout: slots of a thread's identity (8 bytes, native), and the mark of what it runs, `model version`, empty where it
runs nothing. Behind them Python's fault handler writes which thread it was that crashed, and where.
"""

from __future__ import annotations

import faulthandler
import functools
import itertools
import mmap
import os
import re
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

VersionName: TypeAlias = tuple[str, int]
"""A model and a version of it."""

_SLOT_COUNT: Final = 512
_MARK_BYTES: Final = 152
"""The longest model name (128), a space, the longest version (18 digits), and an end."""

_IDENTITY: Final = struct.Struct("=Q")
_SLOT_BYTES: Final = _IDENTITY.size + _MARK_BYTES
_RECORD_BYTES: Final = _SLOT_COUNT * _SLOT_BYTES
_TRACE_BYTES: Final = 1 << 16

_MARK: Final = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._-]{0,127}) ([1-9][0-9]{0,17})")
_CRASHED: Final = re.compile(r"^Current thread 0x([0-9a-f]+)", re.MULTILINE)
"""As the fault handler says it; it names none where a thread of the runtime's own crashed."""
_OTHER: Final = re.compile(r"^Thread 0x([0-9a-f]+)", re.MULTILINE)
"""A thread that the fault handler says it of did not crash. It reads the frames of threads that go on running
meanwhile, and may crash at that itself, before it comes to the one that it was called for."""
_FAULT: Final = re.compile(r"Fatal Python error: ([A-Z][a-z ]+)\n")
_FAULTS: Final = {
    "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL,
    "Floating point exception": signal.SIGFPE,
    "Aborted": signal.SIGABRT,
    "Segmentation fault": signal.SIGSEGV,
}
"""The fault handler's names of signals."""


class RunRecord:
    """The parent's end: made before the worker, read after it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("fitserve-runs")
        os.ftruncate(self.descriptor, _RECORD_BYTES)

    def running(self) -> frozenset[VersionName]:
        """Gives what the process that died was running: by the thread that crashed, where that is known.

        Where it is not, what ran on threads that are not known to have gone on, or else everything that ran; nothing
        where the thread that crashed ran no version.
        """
        slots = _read_slots(os.pread(self.descriptor, _RECORD_BYTES, 0))
        trace = self.trace()
        if crashed := _CRASHED.search(trace):
            name = slots.get(int(crashed[1], 16))
            return frozenset() if name is None else frozenset((name,))
        went_on = {int(identity, 16) for identity in _OTHER.findall(trace)}
        suspects = frozenset(name for identity, name in slots.items() if identity not in went_on)
        return suspects or frozenset(slots.values())

    def fault(self) -> signal.Signals | None:
        """Gives the signal that the process crashed by first: it may have ended by another, while this one was told.

        Returns:
            None where the fault handler said nothing.
        """
        found = _FAULT.match(self.trace())
        return _FAULTS.get(found[1]) if found else None

    def trace(self) -> str:
        """Gives what the fault handler wrote of the crash; empty where there was none."""
        return os.pread(self.descriptor, _TRACE_BYTES, _RECORD_BYTES).decode(errors="replace")

    def close(self) -> None:
        """Lets the memory go."""
        os.close(self.descriptor)


class _Slots(threading.local):
    """The worker's end: a slot for each thread, taken at its first run."""

    def __init__(self, record: mmap.mmap, numbers: Iterator[int]) -> None:
        number = next(numbers)
        whole = memoryview(record if number < _SLOT_COUNT else bytearray(_RECORD_BYTES + _SLOT_BYTES))
        begin = min(number, _SLOT_COUNT) * _SLOT_BYTES
        whole[begin : begin + _IDENTITY.size] = _IDENTITY.pack(threading.get_ident())
        self.mark = whole[begin + _IDENTITY.size : begin + _SLOT_BYTES]


_slots: _Slots | None = None


def keep_in(descriptor: int) -> None:
    """Has this process write down its runs from now on, and where it crashes."""
    global _slots
    record = mmap.mmap(descriptor, _RECORD_BYTES)
    _slots = _Slots(record, itertools.count())
    # Written at the descriptor's place: behind the slots.
    os.lseek(descriptor, _RECORD_BYTES, os.SEEK_SET)
    faulthandler.enable(descriptor)


def begin(model: str, version: int) -> None:
    """Writes down that this thread runs a version from now on."""
    if _slots is not None:
        _slots.mark[:] = _mark(model, version)


def end() -> None:
    """Writes down that this thread runs nothing."""
    if _slots is not None:
        _slots.mark[0] = 0


@contextmanager
def running(model: str, version: int) -> Iterator[None]:
    """Writes down that this thread runs a version until the block ends."""
    begin(model, version)
    try:
        yield
    finally:
        end()


@functools.lru_cache(4096)
def _mark(model: str, version: int) -> bytes:
    return f"{model} {version}".encode().ljust(_MARK_BYTES, b"\0")


def _read_slots(record: bytes) -> dict[int, VersionName]:
    """Reads thread identity to what it runs; whatever has crashed may have written anything here."""
    found = {}
    for start in range(0, len(record), _SLOT_BYTES):
        (identity,) = _IDENTITY.unpack_from(record, start)
        mark = record[start + _IDENTITY.size : start + _SLOT_BYTES].split(b"\0", 1)[0]
        if match := _MARK.fullmatch(mark):
            found[identity] = (match[1].decode(), int(match[2]))
    return found
