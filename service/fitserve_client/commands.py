"""What each command of `fitserve-client` does with a client; nothing here prints."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from fitserve_client import control
from fitserve_client.client import Client
from fitserve_client.errors import AccessError
from fitserve_client.evaluation import batches
from fitserve_client.example_files import labels_of
from fitserve_client.messages import named_inputs
from fitserve_client.models import Selector, VersionDetails
from fitserve_client.operations import check_ready
from fitserve_client.prediction import Prediction
from fitserve_client.reports import (
    Report,
    details_report,
    model_report,
    models_report,
    prediction_report,
)
from fitserve_client.reports_scores import comparison_report, evaluation_report
from fitserve_client.table_examples import examples_of
from fitserve_client.tensors import Subject, as_array
from fitserve_client.texts import TOKENIZER_FILE, encoded_texts, texts_report
from fitserve_contract.tensor_bytes import Array


def list_models(client: Client, arguments: argparse.Namespace) -> Report:
    """Lists the models of the server."""
    del arguments
    return models_report(client.models())


def show(client: Client, arguments: argparse.Namespace) -> Report:
    """Describes one version of a model."""
    details = client.details(arguments.model, version=arguments.model_version, label=arguments.label)
    return details_report(details)


def predict(client: Client, arguments: argparse.Namespace) -> Report:
    """Runs a model on the examples of a file, or on texts."""
    asking = _Asking(client, arguments.model, arguments.model_version, arguments.label, arguments.routing_key)
    details = _details(client, arguments)
    if arguments.text:
        return _predict_texts(asking, details, arguments.text)
    examples = examples_of(client, Path(arguments.file), details, is_inverted=arguments.invert)
    prediction = asking.predict(details, named_inputs(details, examples.inputs))
    return prediction_report(
        prediction, asking.details_of(prediction, details), row_limit=arguments.rows, notes=examples.notes
    )


def evaluate(client: Client, arguments: argparse.Namespace) -> Report:
    """Scores a model on the labelled examples of a file, or on those that the version carries."""
    details = _details(client, arguments)
    if arguments.held_out:
        evaluation = client.evaluate_held_out(arguments.model, version=details.version.version)
        return evaluation_report(evaluation, details)
    path = Path(arguments.file)
    examples = examples_of(client, path, details)
    evaluation = client.evaluate(
        arguments.model,
        examples.inputs,
        labels_of(examples, path),
        batch_size=arguments.batch_size,
        version=arguments.model_version,
        label=arguments.label,
    )
    report = evaluation_report(evaluation, details)
    return replace(report, notes=[*report.notes, *examples.notes])


def compare(client: Client, arguments: argparse.Namespace) -> Report:
    """Compares two versions on the labelled examples of a file, or on those that the first carries."""
    with _loaded(client, arguments.model, arguments.versions):
        return _comparison(client, arguments)


def _comparison(client: Client, arguments: argparse.Namespace) -> Report:
    if arguments.held_out:
        return comparison_report(client.compare(arguments.model, arguments.versions))
    path, first = Path(arguments.file), Selector.of(arguments.model, arguments.versions[0])
    details = check_ready(client.details(first.model, version=first.version, label=first.label))
    examples = examples_of(client, path, details)
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
    details = client.details(arguments.model, version=arguments.model_version, label=arguments.label)
    return check_ready(details)


@contextmanager
def _loaded(client: Client, model: str, versions: Sequence[int | str]) -> Iterator[None]:
    """Has versions that are UNLOADED beside one that answers loaded meanwhile, by labels that are deleted again."""
    known = client.model(model)
    unloaded = [each.version for each in known.versions if each.version in versions and each.state == "UNLOADED"]
    labels = {version: f"compare-{secrets.token_hex(4)}" for version in unloaded if known.is_ready}
    with ExitStack() as stack:
        for version, label in labels.items():
            try:
                client.run(control.set_label(model, label, version, expected=0, why="loaded for a comparison"))
            except AccessError:
                # Whoever may not load it is told that it is UNLOADED, and what an operator can do.
                continue
            stack.callback(client.run, control.delete_label(model, label, expected=version, why="comparison is over"))
        yield


def _predict_texts(asking: _Asking, details: VersionDetails, texts: Sequence[str]) -> Report:
    """Encodes texts as the version that answers does: each carries its own tokenizer."""
    tokenizer = asking.tokenizer(details)
    prediction = asking.predict(details, encoded_texts(texts, tokenizer, details))
    answering = asking.details_of(prediction, details)
    if answering is not details and (its_own := asking.tokenizer(answering)) != tokenizer:
        pinned = replace(asking, version=prediction.version, label=None)
        prediction = pinned.predict(answering, encoded_texts(texts, its_own, answering))
        tokenizer = its_own
    return texts_report(texts, tokenizer, prediction, answering)


@dataclass(frozen=True, slots=True)
class _Asking:
    """How `predict` asks: as the user said, so that shares of the traffic and the shadow take part.

    Args:
        client: The server.
        model: Model name.
        version: Version that the user named.
        label: Label that the user named.
        routing_key: Routing key that the user named.
    """

    client: Client
    model: str
    version: int | None
    label: str | None
    routing_key: str | None

    def predict(self, details: VersionDetails, inputs: Mapping[str, object]) -> Prediction:
        """Predicts; more examples than a request may have go in several calls, all answered by one version."""
        arrays = {name: as_array(Subject.input(name), value) for name, value in inputs.items()}
        largest = details.version.max_batch_size
        counts = {len(array) if array.ndim else 0 for array in arrays.values()}
        if largest == 0 or len(counts) != 1 or max(counts) <= largest:
            return self._call(arrays)
        parts = [{name: array[batch] for name, array in arrays.items()} for batch in batches(counts.pop(), largest)]
        # One key puts all parts on one side of a share; where the version changed meanwhile, the last one answers all.
        keyed = replace(self, routing_key=self.routing_key or secrets.token_hex(16))
        predictions = [keyed._call(part) for part in parts]
        if len({prediction.version for prediction in predictions}) > 1:
            pinned = replace(self, version=predictions[-1].version, label=None)
            predictions = [pinned._call(part) for part in parts]
        return _joined(predictions)

    def details_of(self, prediction: Prediction, details: VersionDetails) -> VersionDetails:
        """Gives the version that answered: these details, or those of another version."""
        if prediction.version == details.version.version:
            return details
        return self.client.details(self.model, version=prediction.version)

    def tokenizer(self, details: VersionDetails) -> bytes:
        """Gives a version's tokenizer."""
        return self.client.version_file(self.model, TOKENIZER_FILE, version=details.version.version)

    def _call(self, arrays: Mapping[str, Array]) -> Prediction:
        return self.client.predict(
            self.model, arrays, version=self.version, label=self.label, routing_key=self.routing_key
        )


def _joined(parts: Sequence[Prediction]) -> Prediction:
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    return Prediction(parts[0].model, parts[0].version, outputs)
