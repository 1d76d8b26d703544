"""Where a checkpoint lies, and the names of its classes; `fitserve_contract.checkpoints` checks what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitserve_contract.checkpoints import CONFIG_FILE
from fitserve_exporters.errors import ExportError


def find_folder(source: str, revision: str | None = None) -> Path:
    """Finds a checkpoint's directory: one of that path, else its snapshot in the hub's cache. Downloads nothing.

    Raises:
        ExportError: there is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ExportError(
            f"checkpoint '{source}': expected the directory of a checkpoint, got a file; name its directory"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    missing = (
        f"checkpoint '{source}': expected a directory, or the id of a checkpoint in the hub's cache, found neither"
    )
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ExportError(f"{missing}; nothing is downloaded: fetch it first, with `hf download {source}`") from error
    except HFValidationError as error:
        raise ExportError(missing) from error


def check_id2label(config: Mapping[str, Any]) -> None:
    """Checks what can be known of id2label before a model is made. ExportError: no mapping of numbers to names."""
    labels = config.get("id2label")
    if labels is None:
        return
    is_named = isinstance(labels, dict) and all(isinstance(name, str | int | float) for name in labels.values())
    if not is_named or not all(str(key).isdecimal() for key in labels):
        raise ExportError(
            f"{CONFIG_FILE}: id2label: expected a mapping of class index to name, as {{'0': 'bad', '1': 'good'}}, got "
            f"{str(labels)[:120]}; name every class"
        )


def class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Returns the names of the classes in order, from id2label.

    Raises:
        ExportError: not one text for each of 0..count - 1.
    """
    labels = config.get("id2label")
    if labels is None:
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(labels, dict) or sorted(map(str, labels)) != sorted(map(str, range(count))):
        raise ExportError(
            f"{CONFIG_FILE}: id2label: expected one name for each of the {count} outputs, 0 to {count - 1}, got "
            f"{str(labels)[:120]}; number them without a gap, or take id2label out of {CONFIG_FILE}"
        )
    return tuple(str(labels[str(index)]) for index in range(count))
