"""What the last look at the repository has to say to people beside its models: on pages, in metrics, in messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """The repository at one look.

    Args:
        absence: Why it is taken to be away; empty where it is there.
        absence_count: How often it went away since the start.
        notes: What lies in the wrong place or cannot be read, with the cure.
    """

    absence: str = ""
    absence_count: int = 0
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Gives all that there is to say, the weightiest first."""
        return (self.absence, *self.notes) if self.absence else self.notes
