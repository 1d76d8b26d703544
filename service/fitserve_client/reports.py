"""What a command says: a table for people, or one JSON document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from fitserve_client.answers import NamedClass, named_classes
from fitserve_client.models import READY, Model, ModelVersion, VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.tables import table
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.printable import printable
from fitserve_contract.tasks import Task, TaskKind
from fitserve_contract.tensor_bytes import Array, shape_text

SHOWN_VALUES: Final = 8
"""Values of one example that a table shows."""

_HELD: Final = (READY, "UNLOADING")
"""States in which the server holds the version, and knows more of it."""

_NO_MODELS: Final = "The server has no models. Publish one: fitserve-export RUN_DIR --repository DIR"


@dataclass(frozen=True, slots=True)
class Report:
    """What a command says.

    Args:
        document: For programs; finite numbers only, the rest as "NaN", "Infinity" and "-Infinity".
        header: Titles of the table; empty where there is none.
        rows: Cells of the table.
        above: Lines before the table.
        below: Lines after it.
        notes: Sentences for people on how the command was understood; they go to standard error.
        is_refused: The command was carried out, and came to a refusal: exit code 1.
    """

    document: Any
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    above: Sequence[str] = ()
    below: Sequence[str] = ()
    notes: Sequence[str] = field(default=())
    is_refused: bool = False

    def lines(self, width: int | None) -> list[str]:
        """Lays it out for people; a width in terminal cells, None for no terminal. Names of a server stay harmless."""
        found = table(self.header, self.rows, width) if self.header else []
        return [printable(line) for line in (*self.above, *found, *self.below)]


def models_report(models: Sequence[Model]) -> Report:
    """Lists models, a row per version."""
    rows = [_version_row(model.name, version) for model in models for version in model.versions]
    rows += [[model.name, "", "no versions", *[""] * 6] for model in models if not model.versions]
    header = ("model", "version", "state", "labels", "task", "provider", "verified", "joining", "reason")
    document = {"models": [asdict(model) for model in models]}
    return Report(document, header, rows) if models else Report(document, above=[_NO_MODELS])


def model_report(model: Model) -> Report:
    """Describes one model after a change."""
    listing = models_report([model])
    return Report(asdict(model), listing.header, listing.rows)


def details_report(details: VersionDetails) -> Report:
    """Describes one version: signature, task, and what the server inferred from the file or was told to override."""
    document = asdict(details)
    document["manifest"] = _manifest(document.pop("manifest_json"))
    rows = [_spec_row("input", spec) for spec in details.inputs] + [
        _spec_row("output", spec) for spec in details.outputs
    ]
    toml = details.effective_config_toml.rstrip().splitlines()
    return Report(
        json_value(document),
        ("", "name", "datatype", "shape"),
        rows,
        above=[_title(details), *_task_lines(details.task)],
        below=["", *toml] if toml else [],
    )


def prediction_report(
    prediction: Prediction, details: VersionDetails, *, row_limit: int, notes: Sequence[str]
) -> Report:
    """Describes what Predict answered: class names where there are any, else the values.

    Args:
        prediction: The answer.
        details: The version that gave it.
        row_limit: Rows of the table at most.
        notes: Sentences on the file.
    """
    task = details.task if details.task and details.task.output in prediction.outputs else None
    answers = named_classes(task, prediction.outputs[task.output]) if task else None
    if task and answers is not None:
        header, rows = _class_rows(task, answers[:row_limit])
        row_count = len(answers)
    else:
        header, rows, row_count = _value_rows(prediction, details.version.max_batch_size > 0, row_limit)
    hidden = row_count - len(rows)
    return Report(
        _prediction_document(prediction, answers),
        header,
        rows,
        above=[f"{prediction.model} version {prediction.version}"],
        below=[f"… and {hidden:,} more: --rows N shows more of them, --json all"] if hidden else [],
        notes=notes,
    )


def json_value(value: Any) -> Any:
    """Gives a value as JSON can say it: numbers that are not finite as strings, bytes as text, as protobuf's JSON does.

    Source: Protocol Buffers, ProtoJSON format, "float, double".
    """
    if isinstance(value, Mapping):
        return {key: json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _manifest(manifest_json: str) -> Any:
    """A manifest that is no JSON is given as the text that it is."""
    try:
        return json.loads(manifest_json) if manifest_json else None
    except (ValueError, RecursionError):
        return manifest_json


def _title(details: VersionDetails) -> str:
    version = details.version
    facts = [
        version.execution_provider,
        f"labels {', '.join(version.labels)}" if version.labels else "",
        version.reason,
    ]
    if version.state in _HELD:
        facts.append("verified" if version.is_verified else "unverified: no certificate")
    told = ", ".join(printable(fact) for fact in facts if fact)
    return f"{printable(details.model)} version {version.version} is {version.state}{': ' if told else ''}{told}"


def _task_lines(task: Task | None) -> list[str]:
    if task is None:
        return []
    classes = f": {', '.join(map(printable, task.class_names))}" if task.class_names else ""
    return [f"{task.kind} by {task.scores} in '{printable(task.output)}'{classes}"]


def _spec_row(kind: str, spec: TensorSpec) -> list[str]:
    shape = "any" if spec.shape is None else shape_text(spec.shape)
    return [kind, spec.name, spec.datatype, shape + (", may be left out" if spec.is_optional else "")]


def _version_row(model: str, version: ModelVersion) -> list[str]:
    return [
        model,
        str(version.version),
        version.state,
        ", ".join(version.labels),
        version.task,
        version.execution_provider.removesuffix("ExecutionProvider"),
        ("yes" if version.is_verified else "no") if version.state in _HELD else "",
        version.joining,
        version.reason,
    ]


def _class_rows(task: Task, answers: Sequence[Sequence[NamedClass]]) -> tuple[Sequence[str], list[list[str]]]:
    if task.kind is TaskKind.MULTI_LABEL:
        shown = [", ".join(map(_class_text, classes)) or "none" for classes in answers]
        return ("example", "classes"), [[str(index), text] for index, text in enumerate(shown)]
    header = ("example", "class", "probability", "second", "third")
    return header, [_class_row(index, classes) for index, classes in enumerate(answers)]


def _class_row(index: int, classes: Sequence[NamedClass]) -> list[str]:
    others = [_class_text(other) for other in classes[1:]]
    return [str(index), classes[0].name, _percent(classes[0].probability), *others, *[""] * (2 - len(others))]


def _class_text(named: NamedClass) -> str:
    return f"{named.name} {_percent(named.probability)}"


def _percent(share: float) -> str:
    return "NaN" if math.isnan(share) else f"{100 * share:.1f} %"


def _value_rows(
    prediction: Prediction, has_batch_axis: bool, row_limit: int
) -> tuple[Sequence[str], list[list[str]], int]:
    """Examples down and outputs across where every output has a row per example; else outputs down."""
    counts = {len(array) if array.ndim else 0 for array in prediction.outputs.values()}
    if not has_batch_axis or len(counts) != 1:
        rows = [[name, shape_text(array.shape), _values(array)] for name, array in prediction.outputs.items()]
        return ("output", "shape", "values"), rows[:row_limit], len(rows)
    count = counts.pop()
    rows = [
        [str(index), *(_values(array[index]) for array in prediction.outputs.values())]
        for index in range(min(count, row_limit))
    ]
    return ("example", *prediction.outputs), rows, count


def _values(array: Array) -> str:
    flat = np.asarray(array).reshape(-1)
    shown = ", ".join(map(_value, flat[:SHOWN_VALUES].tolist()))
    return shown if flat.size <= SHOWN_VALUES else f"{shown}, … ({flat.size:,} values)"


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(json_value(value))


def _prediction_document(prediction: Prediction, answers: list[tuple[NamedClass, ...]] | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": prediction.model,
        "version": prediction.version,
        "outputs": {
            name: {"shape": list(array.shape), "data": json_value(array.tolist())}
            for name, array in prediction.outputs.items()
        },
    }
    if answers is not None:
        document["answers"] = [json_value([asdict(named) for named in classes]) for classes in answers]
    return document
