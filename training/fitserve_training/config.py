"""A run's configuration: typed settings, where each value comes from, and the TOML file that records them.

Precedence, lowest first: the defaults below, the recipe's own, its preset for the data, `--config FILE.toml`, then
`--set key=value` and the flags. Keys are dotted: `epochs`, `data.name`, `model.input_scale`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from fitserve_training.errors import UsageError, unknown_name

Scalar: TypeAlias = str | int | float | bool
Values: TypeAlias = dict[str, Scalar]

_SECTIONS = ("data", "model")
_CHOICES: dict[str, tuple[str, ...]] = {
    "compile": ("auto", "off", "module", "step"),
    "precision": ("float32", "bfloat16"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "keep_weights": ("last", "best"),
    "memory_format": ("contiguous", "channels_last"),
    "class_weights": ("none", "balanced"),
}
_SPELLINGS = {"precision": {"fp32": "float32", "bf16": "bfloat16"}}
"""Other spellings of a value, which a run records as the first one."""

_ELSEWHERE = {
    **dict.fromkeys(("class_weight", "class_balance", "pos_weight"), "class_weights"),
    **dict.fromkeys(("grad_clip", "gradient_clip", "clip_grad_norm", "max_grad_norm", "max_norm"), "clip_norm"),
    **dict.fromkeys(("accumulate", "grad_accum", "gradient_accumulation_steps"), "micro_batch_size"),
    **dict.fromkeys(("warmup", "warmup_steps", "num_warmup_steps", "lr_warmup"), "lr_warmup_steps"),
    **dict.fromkeys(("scheduler", "schedule", "lr_scheduler", "lr_scheduler_type"), "lr_schedule"),
    **dict.fromkeys(("early_stopping", "early_stopping_patience"), "patience"),
    **dict.fromkeys(("dtype", "amp", "bf16", "fp16", "mixed_precision"), "precision"),
    **dict.fromkeys(("wd", "l2", "decay"), "weight_decay"),
    **dict.fromkeys(("learning_rate", "eta"), "lr"),
    **dict.fromkeys(("num_epochs", "max_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("bs", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("pretrained", "checkpoint", "weights", "model_name_or_path"), "model.weights"),
    **dict.fromkeys(("label", "target", "label_column"), "data.label"),
    **dict.fromkeys(("test_size", "test_split", "hold_out"), "data.hold_out"),
    **dict.fromkeys(("val_split", "validation_split", "val_size", "validation_fraction"), "validation_share"),
}
"""What other trainers call a setting, and what it is called here."""

_AT_LEAST: dict[str, float] = {
    "seed": 0,
    "threads": 0,
    "epochs": 1,
    "batch_size": 0,
    "momentum": 0,
    "weight_decay": 0,
    "lr_warmup_steps": 0,
    "clip_norm": 0,
    "micro_batch_size": 0,
    "label_smoothing": 0,
    "patience": 0,
    "log_every": 0,
    "checkpoint_every_s": 0,
    "stop_when_still": 0,
}


@dataclass(frozen=True)
class RunConfig:
    """The settings of one run.

    Args:
        seed: Root of every random stream, at least 0.
        epochs: Passes over the training examples, at least 1.
        batch_size: Examples per step; 0 means all of them at once.
        optimizer: A name from `fitserve_training.optim`.
        lr: Learning rate, above 0.
        momentum: For sgd and rmsprop.
        dampening: For sgd.
        nesterov: For sgd.
        weight_decay: L2 penalty as the optimizer applies it.
        lr_schedule: `constant`, or `linear` or `cosine` from `lr` down to 0 over all steps after the warm-up.
        lr_warmup_steps: Steps over which the learning rate rises linearly to `lr`.
        clip_norm: Largest L2 norm of all gradients together; 0 means no bound.
        micro_batch_size: Examples that go through the model at once; the gradients of a batch add up over its
            micro-batches. 0 means the whole batch.
        label_smoothing: Share of a class label that is spread over all classes, 0..1, for classification.
        class_weights: How much the examples of a class count for in the loss, for classification: `none` for all alike,
            `balanced` for as much as those of any other class together.
        patience: Stop after so many epochs in a row without a lower validation loss; 0 means never.
        keep_weights: Which weights the run ends with: the `last`, or the `best` by validation loss.
        validation_share: Share of the training examples, above 0 and below 1, that `patience` and `keep_weights=best`
            choose by and that is not trained on; without them all are trained on.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of one operation; 0 means as many as torch finds. A run records the number it took, for
            sums in another order end in other last bits.
        compile: `auto`, `off`, `module` (forward and backward) or `step` (the whole step).
        precision: `float32`, or `bfloat16` for the forward pass under autocast.
        memory_format: Of weights of four dimensions: `contiguous`, or `channels_last`, which GPUs convolve faster.
        deterministic: On a GPU the same bits each time; without it cuDNN tries what is quickest.
        log_every: A metrics line every so many epochs; 0 means every epoch up to 100, beyond that the first ten and
            then a hundred spread evenly. A run that selects logs every epoch.
        checkpoint_every_s: Seconds between checkpoints at least; they are taken where an epoch ends.
        stop_when_still: Stop once no parameter moved by more than this in an epoch; 0 means never.
        tensorboard: Write TensorBoard events into the run's folder `tensorboard`.
        data: The recipe's settings of its data; `name` says which data.
        model: The recipe's settings of its model.
    """

    seed: int = 0
    epochs: int = 10
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    lr_schedule: str = "constant"
    lr_warmup_steps: int = 0
    clip_norm: float = 0.0
    micro_batch_size: int = 0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    patience: int = 0
    keep_weights: str = "last"
    validation_share: float = 0.1
    device: str = "auto"
    threads: int = 0
    compile: str = "auto"
    precision: str = "float32"
    memory_format: str = "contiguous"
    deterministic: bool = True
    log_every: int = 0
    checkpoint_every_s: float = 1.0
    stop_when_still: float = 0.0
    tensorboard: bool = False
    data: Mapping[str, Scalar] = field(default_factory=lambda: {"name": "auto"})
    model: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def is_selecting(self) -> bool:
        """Whether a validation loss decides when the run stops or which weights it ends with."""
        return self.patience > 0 or self.keep_weights == "best"

    def to_flat(self) -> Values:
        """Gives every setting under its dotted key."""
        flat: Values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _SECTIONS}
        for section in _SECTIONS:
            flat |= {f"{section}.{key}": value for key, value in getattr(self, section).items()}
        return flat

    @staticmethod
    def from_flat(flat: Mapping[str, Scalar]) -> RunConfig:
        """Builds the configuration from dotted keys and checks every value's range.

        Raises:
            UsageError: a value is out of its range; the message names key, expected and found.
        """
        check_ranges(flat)
        top: dict[str, Any] = {key: value for key, value in flat.items() if "." not in key}
        for section in _SECTIONS:
            prefix = f"{section}."
            top[section] = {key.removeprefix(prefix): v for key, v in flat.items() if key.startswith(prefix)}
        return RunConfig(**top)


def check_ranges(flat: Mapping[str, Scalar]) -> None:
    """Checks the settings that every recipe has.

    Raises:
        UsageError: a value is out of its range.
    """
    for key, least in _AT_LEAST.items():
        if float(flat[key]) < least:
            raise UsageError(f"setting {key!r}: expected at least {least:g}, got {flat[key]}")
    if float(flat["lr"]) <= 0:
        raise UsageError(f"setting 'lr': expected a number above 0, got {flat['lr']}")
    if not 0 < float(flat["validation_share"]) < 1:
        raise UsageError(
            "setting 'validation_share': expected a share above 0 and below 1, got "
            f"{float(flat['validation_share']):g}; without patience and keep_weights=best nothing is set aside"
        )
    if float(flat["label_smoothing"]) >= 1:
        raise UsageError(f"setting 'label_smoothing': expected below 1, got {flat['label_smoothing']}")
    for key, choices in _CHOICES.items():
        if flat[key] not in choices:
            raise UsageError(f"setting {key!r}: expected one of {', '.join(choices)}, got {flat[key]!r}")


def merge(base: Mapping[str, Scalar], changes: Mapping[str, Scalar], origin: str) -> Values:
    """Lays `changes` over `base`; a value takes the type that its key has in `base`.

    Args:
        base: Every key that exists, with its value so far.
        changes: Keys to change.
        origin: Where the changes come from, for the error text.

    Raises:
        UsageError: a key does not exist, or a value does not have the type of its key.
    """
    merged = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise unknown_name(f"setting in {origin}", key, base, _ELSEWHERE.get(key, ""))
        known = _as_type_of(base[key], value, f"{origin}: setting {key!r}")
        merged[key] = _SPELLINGS.get(key, {}).get(str(known), known)
    return merged


def _as_type_of(known: Scalar, value: Scalar, what: str) -> Scalar:
    wanted = type(known)
    if type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if isinstance(value, str):
        return _parse(wanted, value, what)
    raise UsageError(f"{what}: expected {_NAMES[wanted]}, got {value!r}")


_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def _parse(wanted: type, text: str, what: str) -> Scalar:
    try:
        if wanted is bool:
            return {"true": True, "false": False}[text.lower()]
        value: Scalar = wanted(text)
    except (ValueError, KeyError):
        raise UsageError(f"{what}: expected {_NAMES[wanted]}, got {text!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{what}: expected {_NAMES[wanted]}, got {text!r}")
    return value


def parse_assignments(assignments: Iterable[str]) -> Values:
    """Reads `key=value` texts, later ones winning.

    Raises:
        UsageError: a text has no `=` or no key.
    """
    values: Values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set: expected key=value, got {text!r}")
        values[key.strip()] = value.strip()
    return values


def read_toml(path: Path) -> Values:
    """Reads a configuration file into dotted keys.

    Raises:
        UsageError: the file cannot be read or is not TOML, or a value is neither text, number nor truth value.
    """
    try:
        nested = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {path}: not TOML: {error}") from None
    return _flatten(nested, str(path))


def _flatten(nested: Mapping[str, Any], origin: str, prefix: str = "") -> Values:
    flat: Values = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flatten(value, origin, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool):
            flat[prefix + key] = value
        else:
            raise UsageError(f"config file {origin}: setting {prefix + key!r}: expected one value, got {value!r}")
    return flat


def to_toml(flat: Mapping[str, Scalar]) -> str:
    """Writes dotted keys as TOML that `read_toml` gives back unchanged."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in flat.items() if "." not in key]
    sections = dict.fromkeys(key.partition(".")[0] for key in flat if "." in key)
    for section in sections:
        lines += ["", f"[{section}]"]
        for key, value in flat.items():
            if key.startswith(f"{section}."):
                lines.append(f"{key.partition('.')[2]} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
