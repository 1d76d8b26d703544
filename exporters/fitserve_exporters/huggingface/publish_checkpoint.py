"""Publishes a checkpoint: checked, loaded, exported with proof, with what a caller needs beside it.

Shapes: B examples, T tokens, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_contract.checkpoints import (
    PREPROCESSOR_FILE,
    TOKENIZER_FILE,
    Checkpoint,
    CheckpointError,
    image_size,
    max_token_count,
    open_checkpoint,
    read_preprocessing,
)
from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.errors import ExportError
from fitserve_exporters.huggingface.checkpoint import find_folder
from fitserve_exporters.huggingface.loading import CheckpointTask, Loaded, load, task_of
from fitserve_exporters.huggingface.picture_check import check_preprocessing
from fitserve_exporters.huggingface.preparation import PROMPTS_FILE, tokenizer_json
from fitserve_exporters.huggingface.sentence_modules import read_sentence_modules
from fitserve_exporters.module_export import export
from fitserve_exporters.publishing.published_version import PublishedVersion

_TEXTS: Final = 16
_TOKENS: Final = 12
_PICTURES: Final = 4
_LEAST_FREE_ID: Final = 5
"""Token ids below it are often special in small vocabularies; the others are drawn from."""


def publish_checkpoint(
    source: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str,
    *,
    task: CheckpointTask | str | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> PublishedVersion:
    """Turns a checkpoint of transformers or sentence-transformers into a verified version.

    The checkpoint is verified on token ids or pictures drawn by the seed, at every batch size and length. Its weights
    are loaded in float32. Nothing is downloaded, no code and no pickle of the checkpoint is run.

    Args:
        source: Its directory, or its id in the hub's cache.
        repository: Model repository; made where it is not there.
        name: Model name.
        task: What it is for; by default what its architecture says.
        revision: Of the hub's cache.
        seed: Of the inputs that are drawn, and of all sampling.

    Raises:
        ExportError: it cannot be opened, or not exported; nothing is published.
        NotVerifiedError: ONNX Runtime's answers are not torch's; nothing is published.
    """
    try:
        return _published(find_folder(os.fspath(source), revision), repository, name, task, seed)
    except CheckpointError as error:
        raise ExportError(str(error)) from error


def _published(
    folder: Path, repository: str | os.PathLike[str], name: str, task: CheckpointTask | str | None, seed: int
) -> PublishedVersion:
    sentence_modules = read_sentence_modules(folder)
    checkpoint = open_checkpoint(folder, sentence_modules[0] if sentence_modules else None)
    chosen = _chosen(checkpoint, task, is_sentence_model=sentence_modules is not None)
    is_pooled = sentence_modules is not None and chosen is CheckpointTask.EMBEDDING
    loaded = load(checkpoint, chosen, sentence_modules[1] if is_pooled and sentence_modules else None)
    generator = np.random.default_rng(seed)
    is_image = loaded.input_names == ("pixel_values",)
    files, facts, example = (_picture_parts if is_image else _text_parts)(checkpoint, loaded, generator)
    if chosen is CheckpointTask.TOKENS:
        facts["class_names"] = list(loaded.class_names)
    return export(
        loaded.module,
        [example[input_name] for input_name in loaded.input_names],
        repository,
        name,
        task=loaded.task,
        input_names=loaded.input_names,
        free_axes={} if is_image else {input_name: {1: "sequence"} for input_name in loaded.input_names},
        training={"checkpoint": _checkpoint_facts(checkpoint, chosen), **facts},
        extra_files=files,
        seed=seed,
    )


def _chosen(checkpoint: Checkpoint, task: CheckpointTask | str | None, *, is_sentence_model: bool) -> CheckpointTask:
    if task is None:
        return CheckpointTask.EMBEDDING if is_sentence_model else task_of(checkpoint)
    try:
        return CheckpointTask(task)
    except ValueError:
        raise ExportError(f"task: expected one of {', '.join(CheckpointTask)}, got {task!r}") from None


def _text_parts(
    checkpoint: Checkpoint, loaded: Loaded, generator: np.random.Generator
) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Array]]:
    """Returns the files of a text model, facts for the manifest, and example inputs, INT64 (B, T)."""
    files = {TOKENIZER_FILE: tokenizer_json(checkpoint)}
    prompts = checkpoint.folder / PROMPTS_FILE
    if prompts.is_file():
        files[PROMPTS_FILE] = prompts.read_bytes()
    length = max_token_count(checkpoint)
    tokens = min(_TOKENS, length) if length else _TOKENS
    return files, {"max_length": length or None}, _texts(loaded, tokens, generator)


def _texts(loaded: Loaded, tokens: int, generator: np.random.Generator) -> dict[str, Array]:
    """Draws token ids: texts of any length, padded at the end, the second half of each of another type."""
    count, pad = int(loaded.config.vocab_size), getattr(loaded.config, "pad_token_id", None)
    ids = generator.integers(min(_LEAST_FREE_ID, count - 1), count, (_TEXTS, tokens))
    lengths = generator.integers(1, tokens + 1, _TEXTS)
    lengths[:2] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    if isinstance(pad, int):
        ids = np.where(ids == pad, (pad + 1) % count, ids)
        ids = np.where(mask == 1, ids, pad)
    types = (np.arange(tokens) >= lengths[:, None] // 2) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def _picture_parts(
    checkpoint: Checkpoint, loaded: Loaded, generator: np.random.Generator
) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Array]]:
    """Returns the preprocessing of an image model, and example pictures, FP32 (B, C, H, W)."""
    content, facts = read_preprocessing(checkpoint)
    height, width = image_size(facts, checkpoint.config)
    channels = int(getattr(loaded.config, "num_channels", 3))
    check_preprocessing(facts, channels, (height, width))
    pictures = generator.normal(size=(_PICTURES, channels, height, width)).astype(np.float32)
    return {PREPROCESSOR_FILE: content}, {"preprocessing": facts}, {"pixel_values": pictures}


def _checkpoint_facts(checkpoint: Checkpoint, task: CheckpointTask) -> Mapping[str, Any]:
    config = checkpoint.config
    return {
        "name": Path(checkpoint.folder).resolve().name,
        "architecture": checkpoint.architecture or None,
        "model_type": config["model_type"],
        "task": task.value,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "transformers_version": config.get("transformers_version"),
    }
