"""What a client can do, without a channel: generators that yield calls, are sent the answers, and return the result.

The blocking and the asynchronous client drive the same generators; a call that fails is thrown into the generator as
its FitserveError.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve_client import messages
from fitserve_client.comparison import Comparison
from fitserve_client.errors import (
    INVALID_LABELS,
    NOT_READY,
    DeadlineExceededError,
    FailedPreconditionError,
    FitserveError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from fitserve_client.evaluation import Evaluation, batches, default_batch_size
from fitserve_client.models import FAILED, READY, Model, ModelVersion, Selector, VersionDetails, details_of, model_of
from fitserve_client.prediction import Prediction
from fitserve_client.sums_messages import comparison_of, evaluation_of, sums_of
from fitserve_client.tensors import ArrayLike, Subject, as_array
from fitserve_contract.cures import state_cure, with_cure
from fitserve_contract.sums import Sums
from fitserve_contract.tensor_bytes import Array

Result = TypeVar("Result")

Operation: TypeAlias = Generator[messages.Call[Any], Any, Result]

_MAX_KNOWN: Final = 1024
"""Signatures that are kept; a client that lives long meets ever new versions."""

_MAX_RESTARTS: Final = 2

_ON_THE_WAY: Final = frozenset({"PENDING", "LOADING"})

_SWAPPED: Final = frozenset({NOT_READY})


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """A data set cut into batches, and the one version that is to score them all.

    Args:
        wanted: What the caller asked for.
        pinned: The version that it stood for when the evaluation began.
        details: That version.
        arrays: Input name to array, the first axis counts examples.
        label_datatype: Datatype of the labels.
        labels: One label per example.
        batches: Slices of the first axis.
    """

    wanted: Selector
    pinned: Selector
    details: VersionDetails
    arrays: Mapping[str, Array]
    label_datatype: str
    labels: Array
    batches: Sequence[slice]

    def score(self, batch: slice) -> Operation[Sums]:
        """Scores one batch."""
        tensors = messages.input_tensors(self.details, {name: array[batch] for name, array in self.arrays.items()})
        labels = messages.label_tensor(self.label_datatype, self.labels[batch])
        # A version that the server chose and took away comes not back: begin anew at once instead of trying again.
        final = _SWAPPED if self.wanted.version is None else frozenset[str]()
        response: inference_pb2.EvaluateResponse = yield messages.evaluate_call(self.pinned, tensors, labels, final)
        return sums_of(response)

    def check_restart(self, error: FitserveError, restart_count: int) -> None:
        """Lets an evaluation begin anew where a hot swap took its version away under it.

        Raises:
            FitserveError: the error itself, where the caller named the version, or anything else failed.
        """
        is_gone = error.reason in _SWAPPED or isinstance(error, NotFoundError)
        if self.wanted.version is not None or not is_gone or restart_count >= _MAX_RESTARTS:
            raise error


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """A data set cut into batches, and the two versions that are to be compared on them.

    Args:
        examples: The data set, and the first version.
        second: The second version.
    """

    examples: EvaluationPlan
    second: Selector

    @property
    def batches(self) -> Sequence[slice]:
        """Slices of the first axis."""
        return self.examples.batches

    def compare(self, batch: slice) -> Operation[Comparison]:
        """Compares on one batch."""
        plan = self.examples
        tensors = messages.input_tensors(plan.details, {name: array[batch] for name, array in plan.arrays.items()})
        labels = messages.label_tensor(plan.label_datatype, plan.labels[batch])
        response = yield messages.compare_call(plan.pinned, self.second, (tensors, labels))
        return comparison_of(response, batch.start)


class Operations:
    """Makes the generators, and remembers signatures. Thread-safe: what it remembers may only be out of date."""

    def __init__(self) -> None:
        self._known: dict[Selector, VersionDetails] = {}
        self._met: set[tuple[Selector, int]] = set()

    def models(self) -> Operation[tuple[Model, ...]]:
        """Lists the models."""
        response: control_pb2.ListModelsResponse = yield messages.list_models_call()
        return tuple(map(model_of, response.models))

    def model(self, name: str) -> Operation[Model]:
        """Gives one model."""
        response: control_pb2.GetModelResponse = yield messages.get_model_call(name)
        return model_of(response.model)

    def load(self, name: str) -> Operation[Model]:
        """Loads a model."""
        response: control_pb2.LoadModelResponse = yield messages.load_call(name)
        return model_of(response.model)

    def unload(self, name: str) -> Operation[None]:
        """Unloads a model."""
        yield messages.unload_call(name)

    def details(self, selector: Selector) -> Operation[VersionDetails]:
        """Gives one version with its signature, as the server has it now."""
        response: control_pb2.GetModelVersionResponse = yield messages.get_version_call(selector)
        details = details_of(response)
        if details.version.state == READY:
            self._remember(selector, details)
        return details

    def version_file(self, selector: Selector, file_name: str) -> Operation[bytes]:
        """Gives a file that travels with a version."""
        response: control_pb2.GetModelVersionFileResponse = yield messages.get_version_file_call(selector, file_name)
        return response.content

    def predict(
        self, selector: Selector, inputs: messages.Inputs, outputs: Sequence[str], routing_key: str | None = None
    ) -> Operation[Prediction]:
        """Predicts with the signature that is known; asks for it anew where that no longer fits the server's."""
        known = self._known.get(selector)
        if known is None:
            ready = yield from self._ready(selector)
            return (yield from self._predict_as(ready, selector, inputs, outputs, routing_key))
        try:
            return (yield from self._predict_as(known, selector, inputs, outputs, routing_key))
        except InvalidArgumentError:
            newer = yield from self._ready(selector)
            if (newer.inputs, newer.outputs) == (known.inputs, known.outputs):
                raise
        return (yield from self._predict_as(newer, selector, inputs, outputs, routing_key))

    def plan_evaluation(
        self, selector: Selector, inputs: messages.Inputs, labels: ArrayLike, batch_size: int | None
    ) -> Operation[EvaluationPlan]:
        """Pins the version and cuts the data set into batches.

        Raises:
            InvalidArgumentError: inputs and labels differ in length, there are none, or they cannot be cast; the
                batch size is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise InvalidArgumentError(f"batch_size: expected at least 1, got {batch_size}")
        details = yield from self._ready(selector)
        arrays = {
            name: as_array(Subject.input(name), value) for name, value in messages.named_inputs(details, inputs).items()
        }
        label_datatype, label_array = messages.cast_labels(details, labels)
        _check_lengths(arrays, label_array)
        return EvaluationPlan(
            wanted=selector,
            pinned=replace(selector, version=details.version.version, label=None),
            details=details,
            arrays=arrays,
            label_datatype=label_datatype,
            labels=label_array,
            batches=batches(len(label_array), batch_size or default_batch_size(details, arrays)),
        )

    def evaluate_held_out(self, selector: Selector) -> Operation[Evaluation]:
        """Scores a version on the examples that it carries."""
        return evaluation_of((yield messages.evaluate_held_out_call(selector)))

    def compare_held_out(self, first: Selector, second: Selector) -> Operation[Comparison]:
        """Compares two versions on the examples that the first carries."""
        return comparison_of((yield messages.compare_call(first, second, None)))

    def plan_comparison(
        self,
        versions: tuple[Selector, Selector],
        inputs: messages.Inputs,
        labels: ArrayLike,
        batch_size: int | None,
    ) -> Operation[ComparisonPlan]:
        """Pins both versions and cuts the data set into batches; errors as for `plan_evaluation`."""
        plan = yield from self.plan_evaluation(versions[0], inputs, labels, batch_size)
        second = yield from self._ready(versions[1])
        return ComparisonPlan(plan, replace(versions[1], version=second.version.version, label=None))

    def obstacle(self, model: str | None, version: int | None) -> Operation[FitserveError | None]:
        """Gives what keeps the server or, where they are named, the model or version from being READY; None: nothing.

        Raises:
            FailedPreconditionError: what is waited for has FAILED.
        """
        try:
            if model is None:
                yield from self.models()
                return None
            return _obstacle((yield from self.model(model)), version)
        except (NotFoundError, UnavailableError, DeadlineExceededError) as error:
            return error

    def _predict_as(
        self,
        details: VersionDetails,
        selector: Selector,
        inputs: messages.Inputs,
        outputs: Sequence[str],
        routing_key: str | None,
    ) -> Operation[Prediction]:
        tensors = messages.input_tensors(details, messages.named_inputs(details, inputs))
        prediction = messages.prediction_of((yield messages.predict_call(selector, tensors, outputs, routing_key)))
        if prediction.version != details.version.version and (selector, prediction.version) not in self._met:
            # Once for each version: where a canary takes its share, answers of two versions alternate for long.
            self._met.add((selector, prediction.version))
            self._known.pop(selector, None)
        return prediction

    def _ready(self, selector: Selector) -> Operation[VersionDetails]:
        return check_ready((yield from self.details(selector)))

    def _remember(self, selector: Selector, details: VersionDetails) -> None:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
            self._met.clear()
        self._known[selector] = details


def check_ready(details: VersionDetails) -> VersionDetails:
    """Gives the details back: those of a version that answers.

    Raises:
        FailedPreconditionError: the version FAILED to load.
        UnavailableError: it is in any other state but READY.
    """
    if details.version.state != READY:
        raise _not_ready(details.model, details.version)
    return details


def check_no_examples(inputs: object, labels: object) -> None:
    """Refuses inputs without labels and labels without inputs.

    Raises:
        InvalidArgumentError: one of them is given.
    """
    if inputs is not None or labels is not None:
        given, missing = ("inputs", "labels") if labels is None else ("labels", "inputs")
        raise InvalidArgumentError(f"{missing}: expected them with {given}, got none", reason=INVALID_LABELS)


def _obstacle(model: Model, version: int | None) -> FitserveError | None:
    wanted = [each for each in model.versions if version in (None, each.version)]
    if any(each.state == READY for each in wanted):
        return None
    if wanted and all(each.state == FAILED for each in wanted):
        raise _not_ready(model.name, wanted[-1])
    if wanted:
        return _not_ready(model.name, wanted[-1], is_waiting=True)
    return NotFoundError(f"model '{model.name}': expected version {version or 'of any number'}, found none")


def _not_ready(model: str, version: ModelVersion, *, is_waiting: bool = False) -> FitserveError:
    """Makes the error of a version that does not answer, with the cure; who waits already is not told to wait."""
    text = f"model '{model}' version {version.version}: expected state READY, got {version.state}"
    cure = "" if is_waiting and version.state in _ON_THE_WAY else state_cure(model, version.version, version.state)
    if version.state == FAILED:
        return FailedPreconditionError(with_cure(f"{text}: {version.reason}", cure), reason="MODEL_FAILED")
    return UnavailableError(with_cure(text, cure), reason=NOT_READY)


def _check_lengths(arrays: Mapping[str, Array], labels: Array) -> None:
    for subject, array in {**{f"input '{name}'": array for name, array in arrays.items()}, "labels": labels}.items():
        if array.ndim == 0:
            raise InvalidArgumentError(f"{subject}: expected an axis of examples, got a scalar", reason=INVALID_LABELS)
    for name, array in arrays.items():
        if len(array) != len(labels):
            raise InvalidArgumentError(
                f"labels: expected {len(array)}, as many as input '{name}', got {len(labels)}", reason=INVALID_LABELS
            )
    if not len(labels):
        raise InvalidArgumentError("labels: expected at least 1 example, got 0", reason=INVALID_LABELS)
