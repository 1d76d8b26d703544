"""The asynchronous client: `Client` on grpc.aio, method for method."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
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


class AsyncClient:
    """Talks to one server from one event loop, the one of its first call. Arguments and errors are those of `Client`.

    Example:
        async with AsyncClient("localhost:8001") as client:
            prediction = await client.predict("lenet", images)
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timing: Timing | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_timing: Callable[[Mapping[str, int]], None] | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        self._connection = Connection(target, **connection)
        self._timing = timing or Timing()
        self._sleep = sleep
        self._on_timing = on_timing
        self._operations = Operations()
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    async def predict(
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
        """Runs a model on one batch of examples; see `Client.predict`."""
        operation = self._operations.predict(Selector(model, version, label), inputs, tuple(outputs), routing_key)
        return await self._run(operation, timeout_s)

    async def evaluate(
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
        """Scores a model on a labelled data set; see `Client.evaluate`."""
        selector, restart_count = Selector(model, version, label), 0
        while True:
            plan = await self._run(self._operations.plan_evaluation(selector, inputs, labels, batch_size), timeout_s)
            try:
                return merged(model, plan.details.version.version, await self._scores(plan, timeout_s))
            except FitserveError as error:
                plan.check_restart(error, restart_count)
                restart_count += 1

    async def evaluate_held_out(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout_s: float | None = None
    ) -> Evaluation:
        """Scores a version on the held-out examples that it carries; see `Client.evaluate_held_out`."""
        return await self._run(self._operations.evaluate_held_out(Selector(model, version, label)), timeout_s)

    async def compare(
        self,
        model: str,
        versions: tuple[int | str, int | str],
        inputs: Inputs | None = None,
        labels: ArrayLike | None = None,
        *,
        batch_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Comparison:
        """Compares two versions on the same labelled examples, in one pass; see `Client.compare`."""
        first, second = (Selector.of(model, version) for version in versions)
        if inputs is None or labels is None:
            check_no_examples(inputs, labels)
            return await self._run(self._operations.compare_held_out(first, second), timeout_s)
        operation = self._operations.plan_comparison((first, second), inputs, labels, batch_size)
        plan = await self._run(operation, timeout_s)
        return merged_comparison(await self._batches(plan.compare, plan.batches, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Lists the server's models, by name."""
        return await self._run(self._operations.models(), timeout_s)

    async def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Gives one model with its versions. NotFoundError: there is none of that name."""
        return await self._run(self._operations.model(name), timeout_s)

    async def details(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout_s: float | None = None
    ) -> VersionDetails:
        """Gives one version with its signature, task and manifest."""
        return await self._run(self._operations.details(Selector(model, version, label)), timeout_s)

    async def version_file(
        self,
        model: str,
        file_name: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Gives a file that travels with a version; see `Client.version_file`."""
        return await self._run(self._operations.version_file(Selector(model, version, label), file_name), timeout_s)

    async def load(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Has the server load a model. FailedPreconditionError: no version of it could be loaded."""
        return await self._run(self._operations.load(name), timeout_s)

    async def unload(self, name: str, *, timeout_s: float | None = None) -> None:
        """Has the server unload a model, and keep it so until `load`."""
        await self._run(self._operations.unload(name), timeout_s)

    async def wait_until_ready(
        self, model: str | None = None, *, version: int | None = None, timeout_s: float | None = None
    ) -> None:
        """Waits until the server answers and the model or version is READY; see `Client.wait_until_ready`."""
        deadline_s = self._deadline_s(timeout_s)
        obstacle: FitserveError | None = None
        while found := await self._drive(self._operations.obstacle(model, version), deadline_s):
            obstacle = more_telling(obstacle, found)
            if self._timing.clock() + POLL_PAUSE_S >= deadline_s:
                raise not_ready_in_time(model, version, obstacle)
            await self._sleep(POLL_PAUSE_S)

    async def run(self, operation: Operation[Result], *, timeout_s: float | None = None) -> Result:
        """Runs an operation of `fitserve_client.control`; see `Client.run`."""
        return await self._run(operation, timeout_s)

    async def close(self) -> None:
        """Closes the connection."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _scores(self, plan: EvaluationPlan, timeout_s: float | None) -> list[Sums]:
        return await self._batches(plan.score, plan.batches, timeout_s)

    async def _batches(
        self, operation: Callable[[slice], Operation[Result]], batches: Sequence[slice], timeout_s: float | None
    ) -> list[Result]:
        """Each of a few tasks takes the next batch from one iterator; the first failure ends them all."""
        shared = iter(batches)
        tasks = [asyncio.ensure_future(self._take(operation, shared, timeout_s)) for _ in range(CALLS_IN_FLIGHT)]
        try:
            return [part for parts in await asyncio.gather(*tasks) for part in parts]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(
        self, operation: Callable[[slice], Operation[Result]], batches: Iterator[slice], timeout_s: float | None
    ) -> list[Result]:
        return [await self._run(operation(batch), timeout_s) for batch in batches]

    async def _run(self, operation: Operation[Result], timeout_s: float | None) -> Result:
        return await self._drive(operation, self._deadline_s(timeout_s))

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self._timing.clock() + check_timeout(self._connection.timeout_s if timeout_s is None else timeout_s)

    async def _drive(self, operation: Operation[Result], deadline_s: float) -> Result:
        drive = Drive(operation)
        while drive.call is not None:
            try:
                response = await self._answer(drive.call, deadline_s)
            except FitserveError as error:
                drive.fail(error)
            else:
                drive.answer(response)
        return drive.result

    async def _answer(self, call: Call[Any], deadline_s: float) -> Any:
        attempts = Attempts(self._connection.retry, deadline_s, self._timing)
        while True:
            remaining_s = attempts.begin()
            if self._is_closed:
                raise CallCancelledError("client: expected to be open, got a call after close()")
            try:
                return await self._attempt(call, remaining_s)
            except grpc.aio.AioRpcError as failed:
                error = self._connection.error(failed)
            await self._sleep(attempts.pause_after(error, is_retryable=call.may_repeat(error) and not self._is_closed))

    async def _attempt(self, call: Call[Any], remaining_s: float) -> Any:
        if self._channel is None:
            self._channel = _channel(self._connection)
        method = self._channel.unary_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response_type.FromString,
        )
        metadata = self._connection.call_metadata(call.metadata)
        begun = method(call.request, timeout=grpc_timeout_s(remaining_s), metadata=metadata)
        response = await begun
        if self._on_timing is not None and (timing := timing_of(await begun.trailing_metadata())):
            self._on_timing(timing)
        return response


def _channel(connection: Connection) -> grpc.aio.Channel:
    options = connection.channel_options()
    credentials = connection.channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(connection.target, options=options)
    return grpc.aio.secure_channel(connection.target, credentials, options=options)
