"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from fitserve_client.comparison import Comparison, merged_comparison
from fitserve_client.connection import (
    CALLS_IN_FLIGHT,
    DEFAULT_TARGET,
    POLL_PAUSE_S,
    Connection,
    ConnectionOptions,
    Drive,
    check_timeout,
    grpc_timeout_s,
    more_telling,
    not_ready_in_time,
)
from fitserve_client.errors import CallCancelledError, FitserveError
from fitserve_client.evaluation import Evaluation, merged
from fitserve_client.messages import Call, Inputs, timing_of
from fitserve_client.models import Model, Selector, VersionDetails
from fitserve_client.operations import EvaluationPlan, Operation, Operations, Result, check_no_examples
from fitserve_client.prediction import Prediction
from fitserve_client.retry import Attempts, Timing
from fitserve_client.tensors import ArrayLike
from fitserve_contract.sums import Sums


class Client:
    """Talks to one server; blocks until the answer. Thread-safe. Close it, or use it as a context manager.

    Every method takes `timeout_s`, the deadline of the whole call with its retries, and raises FitserveError.

    Args:
        target: `host:port` of the server.
        timing: Clock and chance, for tests.
        sleep: How to pause, seconds, for tests.
        on_timing: Takes where the server's time went, by part in microseconds, for each answer that tells it; on the
            calling thread.
        **connection: The other fields of `Connection`, which see.

    Example:
        with Client("localhost:8001") as client:
            logits = client.predict("lenet", images).array
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timing: Timing | None = None,
        sleep: Callable[[float], None] = time.sleep,
        on_timing: Callable[[Mapping[str, int]], None] | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        self._connection = Connection(target, **connection)
        self._timing = timing or Timing()
        self._sleep = sleep
        self._on_timing = on_timing
        self._operations = Operations()
        self._channel = _channel(self._connection)
        self._is_closed = False

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        outputs: Sequence[str] = (),
        routing_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Runs a model on one batch of examples.

        Args:
            model: Model name.
            inputs: Input name to array; or the array itself, where the model has one input. Cast to the signature's
                datatypes where that loses nothing but float precision.
            version: Version to run; by default the server's choice.
            label: Label of the version to run, instead of a number.
            outputs: Names of the outputs wanted; by default all.
            routing_key: Requests with one key, printable ASCII, land on one side of a traffic share; by default each
                request is drawn by itself. It means nothing where version or label is given.
            timeout_s: Deadline, seconds; by default the client's.

        Raises:
            InvalidArgumentError: an input does not fit the signature.
            NotFoundError: no such model, version or label.
            FitserveError: any other failure.
        """
        operation = self._operations.predict(Selector(model, version, label), inputs, tuple(outputs), routing_key)
        return self._run(operation, timeout_s)

    def evaluate(
        self,
        model: str,
        inputs: Inputs,
        labels: ArrayLike,
        *,
        batch_size: int | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> Evaluation:
        """Scores a model on a labelled data set, in batches, all of them by one version.

        Where a hot swap takes that version away meanwhile, the evaluation begins anew with the next one.

        Args:
            model: Model name.
            inputs: As for predict; the first axis counts the examples.
            labels: One label per example: class numbers (B), class numbers per position (B, S) with -100 where one
                does not count, zeros and ones (B, classes), or values like the output.
            batch_size: Examples per call; by default what suits the model.
            version: Version to score; by default the server's choice.
            label: Label of the version to score, instead of a number.
            timeout_s: Deadline of each batch, seconds; by default the client's.

        Raises:
            InvalidArgumentError: inputs or labels do not fit the model or each other.
            FailedPreconditionError: the version declares no task.
            FitserveError: any other failure.
        """
        selector, restart_count = Selector(model, version, label), 0
        while True:
            plan = self._run(self._operations.plan_evaluation(selector, inputs, labels, batch_size), timeout_s)
            try:
                return merged(model, plan.details.version.version, self._scores(plan, timeout_s))
            except FitserveError as error:
                plan.check_restart(error, restart_count)
                restart_count += 1

    def evaluate_held_out(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout_s: float | None = None
    ) -> Evaluation:
        """Scores a version on the held-out examples that it carries, on the server, in one call.

        Args:
            model: Model name.
            version: Version to score; by default the server's choice.
            label: Label of the version to score, instead of a number.
            timeout_s: Deadline, seconds; by default the client's.

        Raises:
            FailedPreconditionError: the version declares no task, or carries no such examples.
            FitserveError: any other failure.
        """
        return self._run(self._operations.evaluate_held_out(Selector(model, version, label)), timeout_s)

    def compare(
        self,
        model: str,
        versions: tuple[int | str, int | str],
        inputs: Inputs | None = None,
        labels: ArrayLike | None = None,
        *,
        batch_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Comparison:
        """Compares two versions on the same labelled examples, in one pass.

        Args:
            model: Model name.
            versions: The two, each by its number or by a label.
            inputs: As for evaluate; None: the held-out examples that the first version carries, for both.
            labels: One label per example, with `inputs`.
            batch_size: Examples per call; by default what suits the first version.
            timeout_s: Deadline of each batch, seconds; by default the client's.

        Raises:
            FailedPreconditionError: the versions have different tasks, or none, or the first carries no examples.
            InvalidArgumentError: inputs or labels do not fit the versions or each other.
            FitserveError: any other failure.
        """
        first, second = (Selector.of(model, version) for version in versions)
        if inputs is None or labels is None:
            check_no_examples(inputs, labels)
            return self._run(self._operations.compare_held_out(first, second), timeout_s)
        operation = self._operations.plan_comparison((first, second), inputs, labels, batch_size)
        plan = self._run(operation, timeout_s)
        with ThreadPoolExecutor(CALLS_IN_FLIGHT, "fitserve-compare") as pool:
            return merged_comparison(
                list(pool.map(lambda batch: self._run(plan.compare(batch), timeout_s), plan.batches))
            )

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Lists the server's models, by name."""
        return self._run(self._operations.models(), timeout_s)

    def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Gives one model with its versions. NotFoundError: there is none of that name."""
        return self._run(self._operations.model(name), timeout_s)

    def details(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout_s: float | None = None
    ) -> VersionDetails:
        """Gives one version with its signature, task and manifest."""
        return self._run(self._operations.details(Selector(model, version, label)), timeout_s)

    def version_file(
        self,
        model: str,
        file_name: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Gives a file that travels with a READY version, such as `tokenizer.json`. NotFoundError: it has none such."""
        return self._run(self._operations.version_file(Selector(model, version, label), file_name), timeout_s)

    def load(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Has the server load a model. FailedPreconditionError: no version of it could be loaded."""
        return self._run(self._operations.load(name), timeout_s)

    def unload(self, name: str, *, timeout_s: float | None = None) -> None:
        """Has the server unload a model, and keep it so until `load`."""
        self._run(self._operations.unload(name), timeout_s)

    def wait_until_ready(
        self, model: str | None = None, *, version: int | None = None, timeout_s: float | None = None
    ) -> None:
        """Waits until the server answers and, where one is named, until the model or version is READY.

        Raises:
            FailedPreconditionError: it FAILED to load.
            DeadlineExceededError: it was not READY in time.
        """
        deadline_s = self._deadline_s(timeout_s)
        obstacle: FitserveError | None = None
        while found := self._drive(self._operations.obstacle(model, version), deadline_s):
            obstacle = more_telling(obstacle, found)
            if self._timing.clock() + POLL_PAUSE_S >= deadline_s:
                raise not_ready_in_time(model, version, obstacle)
            self._sleep(POLL_PAUSE_S)

    def run(self, operation: Operation[Result], *, timeout_s: float | None = None) -> Result:
        """Runs an operation of `fitserve_client.control`: labels, shares of the traffic, the shadow's report."""
        return self._run(operation, timeout_s)

    def close(self) -> None:
        """Closes the connection; calls under way fail with CallCancelledError."""
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scores(self, plan: EvaluationPlan, timeout_s: float | None) -> list[Sums]:
        with ThreadPoolExecutor(CALLS_IN_FLIGHT, "fitserve-evaluate") as pool:
            return list(pool.map(lambda batch: self._run(plan.score(batch), timeout_s), plan.batches))

    def _run(self, operation: Operation[Result], timeout_s: float | None) -> Result:
        return self._drive(operation, self._deadline_s(timeout_s))

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self._timing.clock() + check_timeout(self._connection.timeout_s if timeout_s is None else timeout_s)

    def _drive(self, operation: Operation[Result], deadline_s: float) -> Result:
        drive = Drive(operation)
        while drive.call is not None:
            try:
                response = self._answer(drive.call, deadline_s)
            except FitserveError as error:
                drive.fail(error)
            else:
                drive.answer(response)
        return drive.result

    def _answer(self, call: Call[Any], deadline_s: float) -> Any:
        attempts = Attempts(self._connection.retry, deadline_s, self._timing)
        while True:
            remaining_s = attempts.begin()
            if self._is_closed:
                raise CallCancelledError("client: expected to be open, got a call after close()")
            try:
                return self._attempt(call, remaining_s)
            except grpc.RpcError as failed:
                error = self._connection.error(failed)
            self._sleep(attempts.pause_after(error, is_retryable=call.may_repeat(error) and not self._is_closed))

    def _attempt(self, call: Call[Any], remaining_s: float) -> Any:
        method: Any = self._channel.unary_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        options = {"timeout": grpc_timeout_s(remaining_s), "metadata": self._connection.call_metadata(call.metadata)}
        if self._on_timing is None:
            return method(call.request, **options)
        response, answered = method.with_call(call.request, **options)
        if timing := timing_of(answered.trailing_metadata()):
            self._on_timing(timing)
        return response


def _channel(connection: Connection) -> grpc.Channel:
    options = connection.channel_options()
    credentials = connection.channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(connection.target, options=options)
    return grpc.secure_channel(connection.target, credentials, options=options)
