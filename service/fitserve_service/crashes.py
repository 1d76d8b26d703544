"""Which versions have crashed workers too often: what the parent of the workers counts, and what comes of it.

Pure: the clock is the caller's. Only a signal that a process brings on itself counts: `kill -9` says nothing about a
model, and neither does an end that was asked for.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from fitserve_service.run_record import VersionName

_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A version that no worker loads until its files change or a call asks for it.

    Args:
        model: Model name.
        version: Version number.
        reason: What it did, fit for a caller.
        stamp: What its files were; see `source.version_stamp`.
    """

    model: str
    version: int
    reason: str
    stamp: tuple[int, ...]

    @staticmethod
    def of(fields: dict[str, Any]) -> SetAside:
        """Reads what `dataclasses.asdict` wrote, by way of JSON."""
        return SetAside(fields["model"], fields["version"], fields["reason"], tuple(fields["stamp"]))


def crash_of(exit_code: int | None, fault: signal.Signals | None = None) -> str:
    """Names the signal by which a process crashed; empty where it ended otherwise.

    Args:
        exit_code: As subprocess has it: negative where a signal ended it.
        fault: What it had crashed by before, where that is known; see `run_record.RunRecord.fault`.
    """
    if exit_code is None or -exit_code not in _CRASHES:
        return ""
    return (fault or signal.Signals(-exit_code)).name


@dataclass(slots=True)
class Crashes:
    """Counts crashes by version and by the files that it was loaded from.

    Args:
        limit: A version that took part in so many within the window is set aside; 0: none ever is.
        window_s: How long a crash counts.
        stamp_of: Returns what changes when a version's files do: crashes of other files do not count against these.
    """

    limit: int
    window_s: float
    stamp_of: Callable[[VersionName], tuple[int, ...]] = lambda _: ()
    totals: Counter[VersionName] = field(default_factory=Counter)
    """All crashes since the start, by version."""
    _times: dict[VersionName, list[float]] = field(default_factory=dict)
    _stamps: dict[VersionName, tuple[int, ...]] = field(default_factory=dict)

    def add(self, running: Iterable[VersionName], now_s: float) -> list[VersionName]:
        """Counts a crash.

        Args:
            running: What the process was running when it crashed.
            now_s: Monotonic seconds.

        Returns:
            The versions that are to be set aside now. Of several that ran at once, those that took part in the most
            crashes: one that was only beside another, now and then, goes on.
        """
        names = list(running)
        for name in names:
            if (stamp := self.stamp_of(name)) != self._stamps.get(name):
                self._times.pop(name, None)
                self._stamps[name] = stamp
            kept = [at_s for at_s in self._times.get(name, []) if at_s > now_s - self.window_s]
            self._times[name] = [*kept, now_s]
            self.totals[name] += 1
        most = max((len(self._times[name]) for name in names), default=0)
        if not self.limit or most < self.limit:
            return []
        return sorted(name for name in names if len(self._times[name]) == most)

    def forgive(self, model: str) -> None:
        """Forgets what a model's versions did: somebody wants them loaded all the same."""
        for name in [name for name in self._times if name[0] == model]:
            del self._times[name]
            del self._stamps[name]

    def reason(self, crash: str, others: Iterable[VersionName]) -> str:
        """Says why a version was set aside, in words for a caller.

        Args:
            crash: The signal of the last crash.
            others: What ran beside it then.
        """
        beside = ", ".join(f"{model} version {number}" for model, number in sorted(others))
        shared = f"; beside it ran {beside}" if beside else ""
        return (
            f"set aside: it crashed its worker {self.limit} times in {self.window_s:g} s (last by {crash}{shared}) "
            "and is tried again when its files change or LoadModel is called"
        )
