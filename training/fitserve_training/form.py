"""What a recipe has to know of its data before it can build its model; kept in the run, which then opens without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fitserve_training.data.dataset import DataSet
from fitserve_training.errors import UsageError

FILE = "form.json"
FOLDER = "files"


@dataclass(frozen=True)
class Form:
    """The form of a data set.

    Args:
        class_names: In class order; empty for regression.
        input_shapes: Shape of one example, per input.
        input_dtypes: Elements, per input.
        target_shape: Shape of one example's target.
        files: What the model is of no use without, by file name, for example its tokenizer. It travels in the version.
    """

    class_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[torch.dtype, ...]
    target_shape: tuple[int, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @staticmethod
    def of(data: DataSet) -> Form:
        """Gives the form of a data set."""
        train = data.train
        return Form(
            data.class_names, train.input_shapes, train.input_dtypes, tuple(train.targets.shape[1:]), data.files
        )

    def write(self, folder: Path) -> None:
        """Writes the form into a run's folder."""
        document = {
            "class_names": list(self.class_names),
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "input_dtypes": [str(dtype).removeprefix("torch.") for dtype in self.input_dtypes],
            "target_shape": list(self.target_shape),
            "files": sorted(self.files),
        }
        (folder / FOLDER).mkdir(exist_ok=True)
        for name, content in self.files.items():
            (folder / FOLDER / name).write_bytes(content)
        (folder / FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Form:
        """Reads what `write` wrote.

        Raises:
            UsageError: a file is missing or damaged; the message names it.
        """
        try:
            document = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return Form(
                class_names=tuple(document["class_names"]),
                input_shapes=tuple(tuple(shape) for shape in document["input_shapes"]),
                input_dtypes=tuple(getattr(torch, name) for name in document["input_dtypes"]),
                target_shape=tuple(document["target_shape"]),
                files={name: (folder / FOLDER / name).read_bytes() for name in document["files"]},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"run file {folder / FILE}: cannot be read: {error}") from None
