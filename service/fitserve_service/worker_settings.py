"""The server's settings on their way from the parent to a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fitserve_service.settings import ServerSettings


def settings_fields(settings: ServerSettings) -> dict[str, Any]:
    """Writes settings for the link."""
    return {
        name: {"path": str(value)} if isinstance(value, Path) else value for name, value in asdict(settings).items()
    }


def settings_of(fields: Mapping[str, Any]) -> ServerSettings:
    """Reads what `settings_fields` wrote."""
    return ServerSettings(**{name: _value(value) for name, value in fields.items()})


def _value(value: Any) -> Any:
    return Path(value["path"]) if isinstance(value, dict) else value
