"""From a checked directory to the module that is served: one of transformers' own classes, with every weight there.

Shapes: B examples, T tokens, C classes or channels, H height, W width.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import torch
from torch import nn

from fitserve_contract.checkpoints import CONFIG_FILE, WEIGHTS_FILE, Checkpoint
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.errors import ExportError
from fitserve_exporters.huggingface.checkpoint import check_id2label, class_names
from fitserve_exporters.texts import first_line, sentence

_TEXT_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
_IMAGE_INPUT: Final = "pixel_values"


class CheckpointTask(StrEnum):
    """What checkpoints are turned into versions for."""

    TEXT = "text-classification"
    TOKENS = "token-classification"
    IMAGE = "image-classification"
    EMBEDDING = "embedding"


_CLASSES: Final = {
    CheckpointTask.TEXT: "AutoModelForSequenceClassification",
    CheckpointTask.TOKENS: "AutoModelForTokenClassification",
    CheckpointTask.IMAGE: "AutoModelForImageClassification",
    CheckpointTask.EMBEDDING: "AutoModel",
}

_SUFFIXES: Final = {
    "ForSequenceClassification": CheckpointTask.TEXT,
    "ForTokenClassification": CheckpointTask.TOKENS,
    "ForImageClassification": CheckpointTask.IMAGE,
    "Model": CheckpointTask.EMBEDDING,
}

_UNUSED: Final = ("pooler.",)
"""Weights that an embedding of hidden states does without."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint as a module.

    Args:
        module: Takes the inputs by position and returns a mapping of tensors.
        input_names: In order.
        task: What can be scored; None for embeddings.
        class_names: Of the outputs' last axis; empty for embeddings.
        config: transformers' own.
    """

    module: nn.Module
    input_names: tuple[str, ...]
    task: Task | None
    class_names: tuple[str, ...]
    config: Any


class CheckpointModule(nn.Module):
    """A model of transformers behind tensors by position.

    Args:
        model: Of transformers.
        names: Its inputs.
        head: Takes what the model returns and the inputs by name, and returns a mapping of tensors.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self._names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Takes one tensor per input: (B, T), or (B, C, H, W) of images."""
        inputs = dict(zip(self._names, tensors, strict=True))
        answers: dict[str, torch.Tensor] = self.head(self.model(**inputs), inputs)
        return answers


class Logits(nn.Module):
    """Takes the logits of a classifier as they are: (B, C), or (B, T, C) of tokens."""

    def forward(self, answer: Any, _: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns `logits`."""
        return {"logits": answer.logits}


class Probabilities(nn.Module):
    """Takes the sigmoid of each logit (B, C), as any of the classes may hold."""

    def forward(self, answer: Any, _: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns `probabilities`."""
        return {"probabilities": torch.sigmoid(answer.logits)}


class HiddenState(nn.Module):
    """Takes the last hidden state: (B, T, C)."""

    def forward(self, answer: Any, _: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns `last_hidden_state`."""
        return {"last_hidden_state": answer.last_hidden_state}


def task_of(checkpoint: Checkpoint) -> CheckpointTask:
    """Finds what a checkpoint is for by the class that it was saved from.

    Raises:
        ExportError: it is for something else.
    """
    name = checkpoint.architecture
    found = next((task for suffix, task in _SUFFIXES.items() if name.endswith(suffix)), None)
    if found is None:
        raise ExportError(
            f"checkpoint '{checkpoint.folder}': expected a classifier of texts, tokens or images, or a model of "
            f"embeddings, got architecture {name or 'none'}; --task ({', '.join(CheckpointTask)}) takes it for another"
        )
    return found


def load(checkpoint: Checkpoint, task: CheckpointTask, embedding: nn.Module | None = None) -> Loaded:
    """Loads a checkpoint's weights in float32 into transformers' class for a task.

    Args:
        checkpoint: Checked.
        task: What for.
        embedding: What makes embeddings of the hidden state; None: the hidden state itself is served.

    Raises:
        ExportError: transformers does not know the architecture, weights are missing or do not fit, or the model takes
            other inputs than tokens or pictures.
    """
    check_id2label(checkpoint.config)
    model = _model(checkpoint, task)
    config = model.config
    if getattr(config, "is_encoder_decoder", False) and task is CheckpointTask.EMBEDDING:
        raise ExportError(
            f"checkpoint '{checkpoint.folder}': expected an encoder for embeddings, got an encoder with a decoder "
            f"({config.model_type}); save its encoder alone: model.get_encoder().save_pretrained(...)"
        )
    names = _input_names(checkpoint, model)
    if embedding is not None and "attention_mask" not in names:
        raise ExportError(f"checkpoint '{checkpoint.folder}': pooling: expected a model with an attention_mask")
    head, score_task, classes = _head(checkpoint, task, config, embedding)
    return Loaded(CheckpointModule(model, names, head), names, score_task, classes, config)


def _model(checkpoint: Checkpoint, task: CheckpointTask) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's library is imported: transformers asks it
    import transformers

    logs: Any = transformers.logging
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    maker = getattr(transformers, _CLASSES[task])
    where = f"checkpoint '{checkpoint.folder}'"
    try:
        model, info = maker.from_pretrained(
            str(checkpoint.model_folder),
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            dtype=torch.float32,
        )
    except Exception as error:  # the library raises ValueError, KeyError, OSError, RuntimeError and others
        kind = checkpoint.config["model_type"]
        raise ExportError(
            f"{where}: transformers {transformers.__version__} does not load it as {task} (model_type '{kind}'): "
            f"{first_line(error)}; {_cure(str(error))}"
        ) from error
    _check_complete(where, info, is_embedding=task is CheckpointTask.EMBEDDING)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model.eval()


def _cure(text: str) -> str:
    """Returns what to do about a message of transformers or safetensors."""
    if "deserializing" in text:
        return f"{WEIGHTS_FILE} or a shard is cut short, or no safetensors: fetch all files of it again"
    if "mismatch" in text:
        return f"{CONFIG_FILE} is of other sizes than the weights: look at num_labels, id2label and vocab_size"
    if "model type" in text or "recognize" in text:
        return "it may be newer than the installed transformers: pip install --upgrade transformers"
    return f"see that {CONFIG_FILE} and the weights are those that save_pretrained(...) wrote together"


def _check_complete(where: str, info: Mapping[str, Any], *, is_embedding: bool) -> None:
    """Refuses weights that are not in the files: transformers would draw them at random."""
    missing = sorted(str(key) for key in info.get("missing_keys", ()))
    if is_embedding:
        missing = [key for key in missing if not key.startswith(_UNUSED)]
    if missing:
        raise ExportError(
            f"{where}: expected all weights of the model, missing {', '.join(missing[:4])}"
            f"{f' and {len(missing) - 4} more' if len(missing) > 4 else ''}; they would be random: is it a checkpoint "
            "of another task?"
        )
    mismatched = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get("mismatched_keys", ())]
    if mismatched or info.get("error_msgs"):
        raise ExportError(f"{where}: expected weights of the shapes in config.json, got others: {mismatched[:4]}")


def _input_names(checkpoint: Checkpoint, model: Any) -> tuple[str, ...]:
    main = getattr(model, "main_input_name", "")
    parameters = inspect.signature(model.forward).parameters
    if main == _IMAGE_INPUT and "input_ids" not in parameters:
        return (_IMAGE_INPUT,)
    if main == "input_ids" and _IMAGE_INPUT not in parameters:
        has_types = getattr(model.config, "type_vocab_size", 0) or 0
        return tuple(
            name for name in _TEXT_INPUTS if name in parameters and (name != "token_type_ids" or has_types > 1)
        )
    raise ExportError(
        f"checkpoint '{checkpoint.folder}': expected a model of tokens (input_ids) or of pictures (pixel_values), got "
        f"one of {main or 'other inputs'} ({checkpoint.config['model_type']})"
    )


def _head(
    checkpoint: Checkpoint, task: CheckpointTask, config: Any, embedding: nn.Module | None
) -> tuple[nn.Module, Task | None, tuple[str, ...]]:
    """Chooses what is served, what it means, and the names of the classes."""
    if task is CheckpointTask.EMBEDDING:
        return embedding or HiddenState(), None, ()
    count = int(config.num_labels)
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or (count == 1 and problem is None and task is CheckpointTask.TEXT):
        return Logits(), Task(TaskKind.REGRESSION, "logits", Scores.VALUES), ()
    names = class_names(checkpoint.config, count)
    try:
        if task is CheckpointTask.TOKENS:
            return Logits(), Task(TaskKind.TOKEN_CLASSIFICATION, "logits", Scores.LOGITS, names), names
        if problem == "multi_label_classification":
            return Probabilities(), Task(TaskKind.MULTI_LABEL, "probabilities", Scores.PROBABILITIES, names), names
        return Logits(), Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, names), names
    except ValueError as error:
        raise ExportError(f"checkpoint '{checkpoint.folder}': {sentence(error)}") from error
