"""What callers use in all workers, in memory that these share: a quota holds for the server, not for each worker.

A caller's entry has the level of its bucket of requests and, for each worker, the bytes and examples under way there. A
worker writes its own column alone and adds up the others; the parent clears the column of a worker that has ended. An
entry is read and written under a lock on its group of entries (`fcntl`, which the kernel releases when its holder
dies), some microseconds a request. So the sums are exact, but for two cases. A lock that is not to be had within 100
tries (its holder was stopped) is done without. A caller whose group has eight others at work is counted by each worker
for itself.

Layout: groups of eight entries; an entry is a digest of the caller (16 bytes), the level of its bucket, when that was
filled, when the entry was used (monotonic seconds, which all processes share; 0: free), then two integers a worker.
Native byte order throughout. Standard library only: the parent has no more.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_GROUPS: Final = 512
_WAYS: Final = 8
_HEAD: Final = struct.Struct("=16sddd")
_COLUMN: Final = struct.Struct("=qq")
_LOCK_TRIES: Final = 100


class Shared(Protocol):
    """What of an account the workers share."""

    level: float
    filled_s: float
    byte_count: int
    example_count: int
    other_bytes: int
    """Of the other workers."""
    other_examples: int


class QuotaMemory:
    """The parent's end.

    Args:
        worker_count: Workers, each with a column.
    """

    def __init__(self, worker_count: int) -> None:
        self.descriptor = os.memfd_create("fitserve-quotas")
        size = _GROUPS * _group_bytes(worker_count)
        os.ftruncate(self.descriptor, size)
        self._worker_count = worker_count
        self._memory = mmap.mmap(self.descriptor, size)

    def give_back(self, number: int) -> None:
        """Clears what a worker that ended had under way."""
        entry_bytes = _entry_bytes(self._worker_count)
        for start in range(0, len(self._memory), entry_bytes):
            column = start + _HEAD.size + number * _COLUMN.size
            if _COLUMN.unpack_from(self._memory, column) != (0, 0):
                _COLUMN.pack_into(self._memory, column, 0, 0)

    def close(self) -> None:
        """Lets the memory go."""
        self._memory.close()
        os.close(self.descriptor)


class SharedQuotas:
    """A worker's end. Lives on the loop thread.

    Args:
        descriptor: Of a `QuotaMemory`.
        number: This worker's place among them.
        worker_count: As the memory was made for.
    """

    def __init__(self, descriptor: int, number: int, worker_count: int) -> None:
        self._descriptor = descriptor
        self._number = number
        self._worker_count = worker_count
        self._memory = mmap.mmap(descriptor, _GROUPS * _group_bytes(worker_count))

    @contextmanager
    def opened(self, caller: str, account: Shared) -> Iterator[None]:
        """Brings an account up to date with the other workers, and writes down what the block made of it.

        Args:
            caller: Whose it is.
            account: Its level and the others' sums are set, where the caller has an entry or gets one.
        """
        digest = hashlib.blake2b(caller.encode(errors="surrogateescape"), digest_size=16).digest()
        group = int.from_bytes(digest[:4], "little") % _GROUPS * _group_bytes(self._worker_count)
        is_locked = self._try_lock(group)
        try:
            entry = self._entry(group, digest)
            if entry is None:
                account.other_bytes = account.other_examples = 0
            else:
                self._read(entry, digest, account)
            yield
            if entry is not None:
                _HEAD.pack_into(self._memory, entry, digest, account.level, account.filled_s, time.monotonic())
                column = entry + _HEAD.size + self._number * _COLUMN.size
                _COLUMN.pack_into(self._memory, column, account.byte_count, account.example_count)
        finally:
            if is_locked:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, group)

    def _read(self, entry: int, digest: bytes, account: Shared) -> None:
        known, level, filled_s, _ = _HEAD.unpack_from(self._memory, entry)
        if known == digest:
            account.level, account.filled_s = level, filled_s
        used = [found for number, found in enumerate(self._columns(entry)) if number != self._number]
        account.other_bytes = sum(byte_count for byte_count, _ in used)
        account.other_examples = sum(example_count for _, example_count in used)

    def _entry(self, group: int, digest: bytes) -> int | None:
        """Finds a caller's entry, or one that is free or idle for longest; None where all are in use."""
        entry_bytes = _entry_bytes(self._worker_count)
        idle: dict[int, float] = {}
        for entry in range(group, group + _WAYS * entry_bytes, entry_bytes):
            known, _, _, used_s = _HEAD.unpack_from(self._memory, entry)
            if known == digest and used_s:
                return entry
            if not any(map(any, self._columns(entry))):
                idle[entry] = used_s
        return min(idle, key=idle.__getitem__) if idle else None

    def _columns(self, entry: int) -> Iterator[tuple[int, int]]:
        start = entry + _HEAD.size
        end = start + self._worker_count * _COLUMN.size
        found: Iterator[tuple[int, int]] = _COLUMN.iter_unpack(self._memory[start:end])
        return found

    def _try_lock(self, group: int) -> bool:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, group)
            except OSError:
                os.sched_yield()
            else:
                return True
        return False


def _entry_bytes(worker_count: int) -> int:
    return _HEAD.size + worker_count * _COLUMN.size


def _group_bytes(worker_count: int) -> int:
    return _WAYS * _entry_bytes(worker_count)
