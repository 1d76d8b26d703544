"""Which disagreements of workers last: one that comes and goes while versions load is none.

Pure: the clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Disagreements:
    """Remembers how long workers have differed.

    Args:
        patience_s: What lasts longer is a lasting disagreement.
    """

    patience_s: float
    lasting: dict[str, str] = field(default_factory=dict)
    """What the workers differ in, by model."""
    _since_s: dict[str, float] = field(default_factory=dict)

    def update(self, found: Mapping[str, str], now_s: float) -> tuple[list[str], list[str]]:
        """Takes how workers differ now.

        Args:
            found: A text by model; an empty one where a worker still loads, which neither begins nor ends anything.
            now_s: Monotonic seconds.

        Returns:
            The texts of those that last from now on, and the models of those that are over.
        """
        over = [model for model in self.lasting if model not in found]
        for model in [model for model in self._since_s if model not in found]:
            del self._since_s[model]
            self.lasting.pop(model, None)
        begun = []
        for model, text in found.items():
            if not text:
                continue
            since_s = self._since_s.setdefault(model, now_s)
            if now_s - since_s >= self.patience_s:
                if model not in self.lasting:
                    begun.append(text)
                self.lasting[model] = text
        return begun, over
