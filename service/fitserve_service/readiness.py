"""Whether the server as a whole takes requests: the first load is settled, workers agree, and it does not drain."""

from __future__ import annotations

from collections.abc import Callable


class Readiness:
    """One for the server. Lives on the loop thread."""

    def __init__(self) -> None:
        self._is_settled = False
        self._is_agreed = True
        self._is_draining = False
        self._is_ended = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_ready(self) -> bool:
        """The server takes requests."""
        return self._is_settled and self._is_agreed and not self._is_draining

    @property
    def has_been_ready(self) -> bool:
        """The first load is settled: callers may have come."""
        return self._is_settled

    @property
    def is_draining(self) -> bool:
        """The server is on its way out; it may still take calls."""
        return self._is_draining

    @property
    def is_ended(self) -> bool:
        """Nothing is left to answer: whoever watches need wait no longer."""
        return self._is_ended

    def on_change(self, callback: Callable[[], None]) -> None:
        """Registers what to do after each change."""
        self._callbacks.append(callback)

    def settle(self) -> None:
        """Says that every aspired version of the first look at the repository is READY or FAILED."""
        self._is_settled = True
        self._tell()

    def agree(self, *, is_agreed: bool) -> None:
        """Says whether the workers agree on what they answer: while they do not, none of them is ready."""
        if is_agreed != self._is_agreed:
            self._is_agreed = is_agreed
            self._tell()

    def drain(self) -> None:
        """Says that the server stops; there is no way back."""
        self._is_draining = True
        self._tell()

    def end(self) -> None:
        """Says that the last request is answered, after `drain`."""
        self._is_ended = True
        self._tell()

    def _tell(self) -> None:
        for callback in self._callbacks:
            callback()
