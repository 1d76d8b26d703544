"""A checkpoint's directory: what is in it, checked before any library opens it.

transformers would run code that a checkpoint brings (auto_map), unpickle its weights, and fill weights that are missing
with random numbers. Here each is refused. Neither torch nor transformers is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
TOKENIZER_FILE: Final = "tokenizer.json"
PREPROCESSOR_FILE: Final = "preprocessor_config.json"

_MAX_JSON_BYTES: Final = 64 << 20
_FOREIGN_WEIGHTS: Final = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf")
_VOCABULARIES: Final = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_MERGE: Final = "merge it first: model.merge_and_unload().save_pretrained(...)"


_UNLIMITED: Final = 1_000_000
"""transformers writes 1e30 for a tokenizer without a limit."""


_POSITIONS: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length")
"""What configurations call the length of their table of positions: BERT, GPT-2, CTRL, MPT."""


class CheckpointError(Exception):
    """A checkpoint cannot be used as it stands; the message names what was expected, what was found, and the cure."""


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

    def find_file(self, name: str) -> Path | None:
        """Finds a file beside the weights, else beside modules.json."""
        places = (self.model_folder / name, self.folder / name)
        return next((path for path in places if path.is_file()), None)


def open_checkpoint(folder: Path, model_folder: Path | None = None) -> Checkpoint:
    """Checks a directory and reads its config.json.

    Raises:
        CheckpointError: no config.json, code of its own, an adapter, quantized weights, or weights that are no
            safetensors.
    """
    place = model_folder or folder
    if not (place / CONFIG_FILE).is_file():
        if (place / "adapter_config.json").is_file():
            raise CheckpointError(f"checkpoint '{place}': expected a whole model, got an adapter; {_MERGE}")
        raise CheckpointError(
            f"checkpoint '{place}': expected {CONFIG_FILE}, found none; name a directory that save_pretrained wrote"
        )
    config = read_json(place / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"checkpoint '{place}': {CONFIG_FILE}: expected a model_type, found none")
    if config.get("auto_map"):
        raise CheckpointError(
            f"checkpoint '{place}': {CONFIG_FILE}: expected an architecture of transformers, got code of its own "
            "(auto_map), which is never run; load it yourself and give the module to fitserve_exporters.export"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"checkpoint '{place}': {CONFIG_FILE}: expected plain weights, got quantized ones (quantization_config); "
            "name the checkpoint that they were made from"
        )
    if (place / "adapter_config.json").is_file():
        raise CheckpointError(f"checkpoint '{place}': expected a whole model, got an adapter beside it; {_MERGE}")
    check_weights(place)
    return Checkpoint(folder, place, config)


def check_weights(folder: Path, least: str = WEIGHTS_FILE) -> None:
    """Holds the weights of a directory to be safetensors, all of them there.

    Raises:
        CheckpointError: they are of another format, or a shard is missing.
    """
    if (folder / least).is_file():
        return
    if (folder / INDEX_FILE).is_file():
        _check_shards(folder)
        return
    others = sorted(path.name for pattern in _FOREIGN_WEIGHTS for path in folder.glob(pattern))
    if others:
        raise CheckpointError(
            f"checkpoint '{folder}': expected {least}, got {others[0]}, which may run code when it is read, or is of "
            "another framework; load it where you trust it, and write it with save_pretrained(..., "
            "safe_serialization=True)"
        )
    raise CheckpointError(f"checkpoint '{folder}': expected {least} or {INDEX_FILE}, found neither")


def _check_shards(folder: Path) -> None:
    shards = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"checkpoint '{folder}': {INDEX_FILE}: expected a weight_map, found none")
    for name in sorted({str(name) for name in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"checkpoint '{folder}': {INDEX_FILE}: expected names of safetensors files beside it, got '{name[:80]}'"
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"checkpoint '{folder}': expected the shard {name}, found none; fetch all files again"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. CheckpointError: it is none, or larger than 64 MiB."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"'{path}': expected at most {_MAX_JSON_BYTES} bytes, got {path.stat().st_size}")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}': expected JSON, got {str(error)[:120]}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"'{path}': expected a JSON object, got {type(document).__name__}")
    return document


def check_tokenizer(checkpoint: Checkpoint) -> Path:
    """Finds tokenizer.json or the vocabulary that one can be made of; transformers would make an empty one of nothing.

    Raises:
        CheckpointError: there is neither, or a tokenizer of code of its own.
    """
    if path := checkpoint.find_file(TOKENIZER_FILE):
        return path
    config = checkpoint.find_file("tokenizer_config.json")
    if config and read_json(config).get("auto_map"):
        raise CheckpointError(
            f"'{config}': expected a tokenizer of transformers, got code of its own, which is never run"
        )
    path = next((path for name in _VOCABULARIES if (path := checkpoint.find_file(name))), None)
    if path is None:
        raise CheckpointError(
            f"checkpoint '{checkpoint.folder}': expected {TOKENIZER_FILE} or a vocabulary "
            f"({', '.join(_VOCABULARIES)}), found neither; write it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return path


def max_token_count(checkpoint: Checkpoint) -> int:
    """Returns the largest number of tokens that the model takes; 0 where no file tells."""
    path = checkpoint.find_file("tokenizer_config.json")
    known = [sentence_config(checkpoint).get("max_seq_length"), read_json(path).get("model_max_length") if path else 0]
    positions = next((size for key in _POSITIONS if (size := checkpoint.config.get(key))), None)
    pad = checkpoint.config.get("pad_token_id")
    if isinstance(positions, int) and isinstance(pad, int) and "roberta" in str(checkpoint.config["model_type"]):
        positions -= pad + 1  # its positions begin behind the padding's
    found = [int(one) for one in (*known, positions) if isinstance(one, int | float) and 0 < one < _UNLIMITED]
    return min(found, default=0)


def sentence_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what sentence-transformers says of the transformer; empty where it says nothing."""
    path = checkpoint.find_file("sentence_bert_config.json")
    return read_json(path) if path else {}


def read_preprocessing(checkpoint: Checkpoint) -> tuple[bytes, dict[str, Any]]:
    """Returns preprocessor_config.json of a model of images, and what it says.

    Raises:
        CheckpointError: there is none: nobody would know which pictures the model takes.
    """
    path = checkpoint.find_file(PREPROCESSOR_FILE)
    if path is None:
        raise CheckpointError(
            f"checkpoint '{checkpoint.folder}': expected {PREPROCESSOR_FILE} with the preprocessing of images, found "
            "none; write it with AutoImageProcessor.from_pretrained(...).save_pretrained(...)"
        )
    return path.read_bytes(), read_json(path)


def image_size(facts: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of a model's pictures: after the crop, else the config's, else after the resize.

    Args:
        facts: What preprocessor_config.json says.
        config: What config.json says.

    Raises:
        CheckpointError: no file tells.
    """
    crop = facts.get("crop_size") if facts.get("do_center_crop", "crop_size" in facts) else None
    for value in (crop, config.get("image_size"), facts.get("size")):
        pair = _pair(value)
        if pair:
            return pair
    raise CheckpointError(f"{PREPROCESSOR_FILE}: expected a crop_size or size of height and width, got neither")


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        found = (value.get("height"), value.get("width"))
        value = found if None not in found else value.get("shortest_edge")
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int) for one in value):
        return value[0], value[1]
    return None
