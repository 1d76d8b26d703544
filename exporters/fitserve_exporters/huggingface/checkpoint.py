"""A checkpoint's directory: what is in it, checked before any library opens it.

transformers would run code that a checkpoint brings (auto_map), unpickle its weights, and fill weights that are missing
with random numbers. Here each is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fitserve_exporters.errors import ExportError

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"

_MAX_JSON_BYTES: Final = 64 << 20
_FOREIGN_WEIGHTS: Final = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that can be opened.

    Args:
        folder: The whole of it; of sentence-transformers it holds modules.json.
        model_folder: Where config.json and the weights lie.
        config: What config.json says.
    """

    folder: Path
    model_folder: Path
    config: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Class that the weights were saved from; empty where config.json names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""


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


def open_checkpoint(folder: Path, model_folder: Path | None = None) -> Checkpoint:
    """Checks a directory and reads its config.json.

    Raises:
        ExportError: no config.json, code of its own, an adapter, quantized weights, or weights that are no safetensors.
    """
    place = model_folder or folder
    if not (place / CONFIG_FILE).is_file():
        if (place / "adapter_config.json").is_file():
            raise ExportError(f"checkpoint '{place}': expected a whole model, got an adapter; {_MERGE}")
        raise ExportError(
            f"checkpoint '{place}': expected {CONFIG_FILE}, found none; name a directory that save_pretrained wrote"
        )
    config = read_json(place / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise ExportError(f"checkpoint '{place}': {CONFIG_FILE}: expected a model_type, found none")
    if config.get("auto_map"):
        raise ExportError(
            f"checkpoint '{place}': {CONFIG_FILE}: expected an architecture of transformers, got code of its own "
            "(auto_map), which is never run; load it yourself and give the module to fitserve_exporters.export"
        )
    if config.get("quantization_config"):
        raise ExportError(
            f"checkpoint '{place}': {CONFIG_FILE}: expected plain weights, got quantized ones (quantization_config); "
            "name the checkpoint that they were made from"
        )
    if (place / "adapter_config.json").is_file():
        raise ExportError(f"checkpoint '{place}': expected a whole model, got an adapter beside it; {_MERGE}")
    check_weights(place)
    return Checkpoint(folder, place, config)


_MERGE: Final = "merge it first: model.merge_and_unload().save_pretrained(...)"


def check_weights(folder: Path, least: str = WEIGHTS_FILE) -> None:
    """Holds the weights of a directory to be safetensors, all of them there.

    Raises:
        ExportError: they are of another format, or a shard is missing.
    """
    if (folder / least).is_file():
        return
    if (folder / INDEX_FILE).is_file():
        _check_shards(folder)
        return
    others = sorted(path.name for pattern in _FOREIGN_WEIGHTS for path in folder.glob(pattern))
    if others:
        raise ExportError(
            f"checkpoint '{folder}': expected {least}, got {others[0]}, which may run code when it is read, or is of "
            "another framework; load it where you trust it, and write it with save_pretrained(..., "
            "safe_serialization=True)"
        )
    raise ExportError(f"checkpoint '{folder}': expected {least} or {INDEX_FILE}, found neither")


def _check_shards(folder: Path) -> None:
    shards = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ExportError(f"checkpoint '{folder}': {INDEX_FILE}: expected a weight_map, found none")
    for name in sorted({str(name) for name in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ExportError(
                f"checkpoint '{folder}': {INDEX_FILE}: expected names of safetensors files beside it, got '{name[:80]}'"
            )
        if not (folder / name).is_file():
            raise ExportError(f"checkpoint '{folder}': expected the shard {name}, found none; fetch all files again")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. ExportError: it is none, or larger than 64 MiB."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ExportError(f"'{path}': expected at most {_MAX_JSON_BYTES} bytes, got {path.stat().st_size}")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"'{path}': expected JSON, got {str(error)[:120]}") from error
    if not isinstance(document, dict):
        raise ExportError(f"'{path}': expected a JSON object, got {type(document).__name__}")
    return document


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
            f"{str(labels)[:120]}"
        )
    return tuple(str(labels[str(index)]) for index in range(count))
