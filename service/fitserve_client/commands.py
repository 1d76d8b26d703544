"""What each command of `fitserve-client` does with a client; nothing here prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from fitserve_client.client import Client
from fitserve_client.evaluation import batches
from fitserve_client.example_files import labels_of, read_examples
from fitserve_client.messages import named_inputs
from fitserve_client.models import Selector, VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.reports import (
    Report,
    details_report,
    model_report,
    models_report,
    prediction_report,
)
from fitserve_client.reports_scores import comparison_report, evaluation_report
from fitserve_client.tensors import Subject, as_array
from fitserve_client.texts import TOKENIZER_FILE, encoded_texts, texts_report


def list_models(client: Client, arguments: argparse.Namespace) -> Report:
    """Lists the models of the server."""
    del arguments
    return models_report(client.models())


def show(client: Client, arguments: argparse.Namespace) -> Report:
    """Describes one version of a model."""
    return details_report(_details(client, arguments))


def predict(client: Client, arguments: argparse.Namespace) -> Report:
    """Runs a model on the examples of a file, or on texts."""
    details = _details(client, arguments)
    if arguments.text:
        version = details.version.version
        tokenizer = client.version_file(details.model, TOKENIZER_FILE, version=version)
        inputs = encoded_texts(arguments.text, tokenizer, details)
        return texts_report(arguments.text, _predict_all(client, details, inputs), details)
    examples = read_examples(Path(arguments.file), details, is_inverted=arguments.invert)
    prediction = _predict_all(client, details, named_inputs(details, examples.inputs))
    return prediction_report(prediction, details, row_limit=arguments.rows, notes=examples.notes)


def evaluate(client: Client, arguments: argparse.Namespace) -> Report:
    """Scores a model on the labelled examples of a file, or on those that the version carries."""
    details = _details(client, arguments)
    if arguments.held_out:
        evaluation = client.evaluate_held_out(arguments.model, version=details.version.version)
        return evaluation_report(evaluation, details)
    path = Path(arguments.file)
    examples = read_examples(path, details)
    evaluation = client.evaluate(
        arguments.model,
        examples.inputs,
        labels_of(examples, path),
        batch_size=arguments.batch_size,
        version=arguments.model_version,
        label=arguments.label,
    )
    return evaluation_report(evaluation, details)


def compare(client: Client, arguments: argparse.Namespace) -> Report:
    """Compares two versions on the labelled examples of a file, or on those that the first carries."""
    if arguments.held_out:
        return comparison_report(client.compare(arguments.model, arguments.versions))
    path, first = Path(arguments.file), Selector.of(arguments.model, arguments.versions[0])
    examples = read_examples(path, client.details(first.model, version=first.version, label=first.label))
    comparison = client.compare(
        arguments.model,
        arguments.versions,
        examples.inputs,
        labels_of(examples, path),
        batch_size=arguments.batch_size,
    )
    return comparison_report(comparison)


def load(client: Client, arguments: argparse.Namespace) -> Report:
    """Has the server load a model."""
    return model_report(client.load(arguments.model))


def unload(client: Client, arguments: argparse.Namespace) -> Report:
    """Has the server unload a model."""
    client.unload(arguments.model)
    return Report({"model": arguments.model}, above=[f"{arguments.model} is unloaded"])


def wait(client: Client, arguments: argparse.Namespace) -> Report:
    """Waits for the server or for a model."""
    client.wait_until_ready(arguments.model, version=arguments.model_version)
    what = "the server" if arguments.model is None else arguments.model
    return Report({"model": arguments.model, "is_ready": True}, above=[f"{what} is ready"])


COMMANDS: Final[Mapping[str, Callable[[Client, argparse.Namespace], Report]]] = {
    "models": list_models,
    "show": show,
    "predict": predict,
    "evaluate": evaluate,
    "compare": compare,
    "load": load,
    "unload": unload,
    "wait": wait,
}


def _details(client: Client, arguments: argparse.Namespace) -> VersionDetails:
    return client.details(arguments.model, version=arguments.model_version, label=arguments.label)


def _predict_all(client: Client, details: VersionDetails, inputs: Mapping[str, object]) -> Prediction:
    """More examples than the server joins go in several calls, all to one version."""
    arrays = {name: as_array(Subject.input(name), value) for name, value in inputs.items()}
    largest, version = details.version.max_batch_size, details.version.version
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if largest == 0 or len(counts) != 1 or max(counts) <= largest:
        return client.predict(details.model, arrays, version=version)
    parts = [
        client.predict(details.model, {name: array[batch] for name, array in arrays.items()}, version=version)
        for batch in batches(counts.pop(), largest)
    ]
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    return Prediction(parts[0].model, version, outputs)
