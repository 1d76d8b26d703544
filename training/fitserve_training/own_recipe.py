"""A user's own recipe: one Python file with a function `recipe` that returns the model, the data, the loss, the config.

    def recipe():
        x, y = torch.randn(500, 4), torch.randint(0, 3, (500,))
        return nn.Linear(4, 3), (x, y), nn.CrossEntropyLoss(), {"lr": 0.1, "epochs": 20}

- model: an nn.Module.
- data: (inputs, targets), of which a share is held out by the seed, or {"train": (inputs, targets), "test": (inputs,
  targets)}, with "val" to select by and "class_names" if there are any. Targets int64 (N,) are classes, bool (N, C)
  any of C labels, real numbers (N, D) values; these decide the metrics and the task that is served.
- loss: called with the model's outputs and the targets, gives a scalar, a mean over the examples.
- config: settings by dotted key, as for --set.

A run keeps a copy of the file and goes on with that, so that it can be resumed and exported after the file has changed.
torch's generators are seeded before the function is called, once for the data and once for the model.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fitserve_contract.repository import is_model_name
from fitserve_training.config import RunConfig, Scalar, Values, merge
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.hold_out import hold_out
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.objectives import Classification, MultiLabel, Objective, Regression
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.recipes.own_data import Sigmoid
from fitserve_training.seeding import seed_global

FUNCTION = "recipe"
_HELD_OUT_SHARE = 0.2
_DATA_KEYS = {"train", "test", "val", "class_names"}


@dataclass(frozen=True)
class Parts:
    """What the user's function returned, checked."""

    model: nn.Module
    data: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    config: Mapping[str, Scalar]


def load_own_recipe(path: Path, source: bytes | None = None) -> Recipe:
    """Makes a recipe of a user's file, which is run by this.

    Args:
        path: The file.
        source: What to run in its place; the file need not be there then.

    Raises:
        UsageError: there is no such file, its function fails, or returns something else; the message names the place.
    """
    source = _read(path) if source is None else source
    if not is_model_name(path.stem):
        raise UsageError(
            f"recipe {path}: expected a file name of letters, digits, '.', '_' and '-', for a model's name"
        )
    function = _function(path, source)
    parts = _called(function, path)
    own = Recipe(
        name=path.stem,
        file=str(path.resolve()),
        source=source,
        defaults=_defaults(parts.config, path),
        choose_data=lambda _name, _places: "own",
        data_names=("own",),
        load_data=lambda config, _places: _load_data(function, path, config, source),
        build_model=lambda _config: _called(function, path).model,
        objective=Classification(),
        inputs=(ServedInput("x", torch.float32, ("batch",)),),
        output_name="logits",
        for_form=lambda form: _for_form(own, parts.loss, form),
    )
    return own


def _defaults(config: Mapping[str, Scalar], path: Path) -> Values:
    own: Values = {"data.name": "own", "data.hold_out": _HELD_OUT_SHARE}
    for key, value in config.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | bool):
            raise UsageError(f"recipe {path}: config: expected settings with one value each, got {key!r}: {value!r}")
        if key.startswith(("data.", "model.")):
            own.setdefault(key, value)
    merged = merge({**RunConfig().to_flat(), **own}, config, f"the config of recipe {path}")
    return own | {key: merged[key] for key in config}


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"recipe {path}: expected a Python file, found none")
    try:
        source = path.read_bytes()
        source.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: expected a Python file in UTF-8, got {error}") from None
    return source


def _function(path: Path, source: bytes) -> Callable[[], Any]:
    module = ModuleType(f"own_recipe_{path.stem}")
    module.__file__ = str(path)
    with _told(path):
        sys.modules[module.__name__] = module
        exec(compile(source, str(path), "exec"), module.__dict__)
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise UsageError(f"recipe {path}: expected a function named {FUNCTION}, found none")
    return function  # type: ignore[no-any-return]


def _called(function: Callable[[], Any], path: Path) -> Parts:
    with _told(path):
        found = function()
    if not isinstance(found, tuple) or len(found) != 4:
        raise UsageError(f"recipe {path}: expected (model, data, loss, config) from {FUNCTION}(), got {_kind(found)}")
    model, data, loss, config = found
    if not isinstance(model, nn.Module):
        raise UsageError(f"recipe {path}: expected an nn.Module as the model, got {_kind(model)}")
    if not callable(loss) or not isinstance(config, Mapping):
        raise UsageError(
            f"recipe {path}: expected a function as the loss and a dict as the config, "
            f"got {_kind(loss)} and {_kind(config)}"
        )
    return Parts(model, data, loss, config)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what the user's code raises into one sentence with its line."""
    try:
        yield
    except Exception as error:  # a user's code may raise anything
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = f" line {own[-1].lineno}" if own else f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        text = str(error).splitlines()[0] if str(error) else "no message"
        raise UsageError(f"recipe {path}{line}: {type(error).__name__}: {text}") from error


def _load_data(function: Callable[[], Any], path: Path, config: RunConfig, source: bytes) -> DataSet:
    seed_global(config.seed, "data")
    data = _called(function, path).data
    names: tuple[str, ...] = ()
    validation = None
    if isinstance(data, Mapping):
        _check_keys(data, path)
        train, held_out = (_split(data[key], f"recipe {path}: data[{key!r}]") for key in ("train", "test"))
        validation = _split(data["val"], f"recipe {path}: data['val']") if "val" in data else None
        names = tuple(map(str, data.get("class_names", ())))
    else:
        every, share = _split(data, f"recipe {path}: data"), float(config.data["hold_out"])
        train, held_out = hold_out(every.inputs, every.targets, share, config.seed)
    digest = hashlib.sha256(source).hexdigest()
    told = f"data of {path} ({len(train):,} to train on, {len(held_out):,} held out)"
    splits = (train, held_out) if validation is None else (train, held_out, validation)
    names = names or _class_names(*(split.targets for split in splits))
    return DataSet("own", told, train, held_out, names, checksums={path.name: digest}, validation=validation)


def _check_keys(data: Mapping[Any, Any], path: Path) -> None:
    found = ", ".join(map(str, data))
    if not {"train", "test"} <= set(data):
        raise UsageError(f"recipe {path}: data: expected keys train and test, got {found}")
    if unknown := set(data) - _DATA_KEYS:
        known = ", ".join(sorted(_DATA_KEYS))
        raise UsageError(f"recipe {path}: data: expected no keys but {known}, got {', '.join(map(str, unknown))}")


def _split(pair: Any, what: str) -> Split:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UsageError(f"{what}: expected (inputs, targets), got {_kind(pair)}")
    inputs, targets = pair
    tensors = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    for tensor in (*tensors, targets):
        if not isinstance(tensor, Tensor) or tensor.ndim < 1 or len(tensor) != len(targets) or len(tensor) < 2:
            raise UsageError(f"{what}: expected tensors (N, …) of one N, at least 2, got {_kind(tensor)}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(f"{what}: expected finite numbers, got NaN or infinity")
    if targets.is_floating_point() and targets.ndim == 1:
        targets = targets.unsqueeze(1)
    return Split(tensors, targets)


def _class_names(*targets: Tensor) -> tuple[str, ...]:
    if targets[0].is_floating_point():
        return ()
    count = targets[0].shape[1] if targets[0].ndim == 2 else int(max(each.max() for each in targets)) + 1
    return tuple(str(index) for index in range(count))


class OwnObjective:
    """The user's loss with the metrics of the task."""

    is_summed = False

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], metrics_of: Objective) -> None:
        self._loss, self._of = loss, metrics_of
        self.kind, self.sum_count = metrics_of.kind, metrics_of.sum_count
        self.sums, self.metrics, self.figures = metrics_of.sums, metrics_of.metrics, metrics_of.figures
        self.weight = metrics_of.weight

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives what the user's function gives."""
        return self._loss(outputs, targets)


def _for_form(recipe: Recipe, loss: Callable[[Tensor, Tensor], Tensor], form: Form) -> Recipe:
    shapes = form.input_shapes
    names = ["x"] if len(shapes) == 1 else [f"x{index}" for index in range(len(shapes))]
    inputs = tuple(
        ServedInput(name, dtype, ("batch", *shape))
        for name, dtype, shape in zip(names, form.input_dtypes, shapes, strict=True)
    )
    if not form.class_names:
        return replace(recipe, inputs=inputs, output_name="y", objective=OwnObjective(loss, Regression()))
    if form.target_shape:
        objective = OwnObjective(loss, MultiLabel(len(form.class_names)))
        return replace(recipe, inputs=inputs, output_name="probabilities", objective=objective, served=Sigmoid)
    return replace(recipe, inputs=inputs, objective=OwnObjective(loss, Classification()))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
