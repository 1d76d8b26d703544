"""Remembers what each loaded version was loaded from, and tells whether its folder should be read again.

A version's folder may be written to, deleted and made anew, or swapped with another, while it serves: its name and
number are the same. What changes cheaply tells that a second look is due; only other content is another version, so
that a new owner, mode or inode number alone reloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from fitserve_service.loading.version_files import Stamp
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion

_OF_POLICY: Final = ("versions", "keep_versions")
"""Overrides that say which versions are loaded, and nothing of how."""


@dataclass(frozen=True, slots=True)
class _Known:
    stamp: Stamp
    settings: Mapping[str, Any]


class ReplacedFiles:
    """Knows the files and settings of loaded instances. It keeps none of them loaded. Thread-safe."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[ServedVersion, _Known] = WeakKeyDictionary()

    def remember(self, served: ServedVersion, stamp: Stamp, overrides: Overrides) -> None:
        """Notes what a version was loaded from, or that other files hold the same.

        Args:
            served: The version.
            stamp: Of its files, the same before and after they were read.
            overrides: By which it was loaded.
        """
        self._known[served] = _Known(stamp, _settings(overrides))

    def has_moved(self, served: ServedVersion, stamp: Stamp) -> bool:
        """Tells whether files may be others than those that it was loaded from, or that were compared last."""
        known = self._known.get(served)
        return known is not None and known.stamp != stamp

    def has_other_settings(self, served: ServedVersion, overrides: Overrides) -> bool:
        """Tells whether `model.toml` says something else of it now."""
        known = self._known.get(served)
        return known is not None and known.settings != _settings(overrides)


def _settings(overrides: Overrides) -> Mapping[str, Any]:
    return {key: value for key, value in overrides.values.items() if key not in _OF_POLICY}
