"""Takes made-up requests the whole way before the first real one comes, so that it does not pay for all that is cold.

What a first call costs above a later one is the interpreter's specializing of code, protobuf's and the allocator's
first use of their memory and the processor's caches: none of it knows whose request it was. So requests are taken from
bytes to bytes by servicers, an intake, an engine and counters of the rehearsal's own; the version is a twin with
statistics of its own. Nothing of it is counted, traced, shadowed or charged to anybody.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Final, ParamSpec, TypeVar

from fitserve.inference.v1 import inference_pb2 as native
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_oip import inference_pb2 as oip
from fitserve_service import codec
from fitserve_service.calls import Metadata, Origin, UnaryMethod
from fitserve_service.costs import row_elements
from fitserve_service.engine import Engine
from fitserve_service.errors import ServiceError
from fitserve_service.intake import Intake
from fitserve_service.known_model import ModelSnapshot
from fitserve_service.lanes import INLINE_LIMIT_S
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers.inference import InferenceServicer
from fitserve_service.servicers.oip import OipInferServicer
from fitserve_service.shadow import Shadow
from fitserve_service.signature import Tensor
from fitserve_service.statistics import VersionStatistics
from fitserve_service.telemetry import Telemetry
from fitserve_service.traffic import Draw
from fitserve_service.warmup import made_up_rows

_ROUNDS: Final = 12
"""Each with servicers that have seen nothing: the interpreter specializes code that has run eight times."""

_REPEATS: Final = 3
"""Calls in a round: servicers know a message when it has come twice."""

_BUDGET_S: Final = 0.1
_DEADLINE_S: Final = 60.0

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)


def rehearse(models: Sequence[ModelSnapshot], clock: Callable[[], float] = time.monotonic) -> int:
    """Takes requests through, on the thread that is to serve, to each version whose runs happen there.

    Args:
        models: What is loaded; once the time for all of it is spent the rest is left out.
        clock: Monotonic seconds.

    Returns:
        Calls that were answered.
    """
    until_s, answered = clock() + _BUDGET_S, 0
    loaded = [version.served for model in models for version in model.versions if version.served is not None]
    for served in loaded:
        try:
            answered += _rehearse(served, until_s, clock)
        except Exception:
            # A version that cannot be rehearsed serves all the same.
            _log.exception("%s version %d could not be rehearsed", served.model, served.version)
    return answered


def _rehearse(served: ServedVersion, until_s: float, clock: Callable[[], float]) -> int:
    inputs = None if served.session.has_loops or clock() >= until_s else _short_row(served)
    if inputs is None:
        return 0
    messages = (_predict_message(served, inputs), _infer_message(served, inputs))
    stage, answered = _Stage(served), 0
    try:
        for _ in range(_ROUNDS):
            for method, message in zip(stage.methods(), messages, strict=True):
                for _ in range(_REPEATS):
                    answered += stage.is_answered(method, message)
            if clock() >= until_s:
                break
    finally:
        stage.close()
    return answered


def _short_row(served: ServedVersion) -> dict[str, Tensor] | None:
    """Gives one row that is known to run, in a time in which it runs on the loop thread; None where there is none."""
    for inputs in made_up_rows(served.session.inputs):
        if served.costs.floor_s(1, row_elements(inputs, 1)) <= INLINE_LIMIT_S:
            return inputs
    return None


class _Stage:
    """All that a request passes, apart from what serves."""

    def __init__(self, served: ServedVersion) -> None:
        self._turn = _Turn()
        self._registry = registry = Registry()
        self._name = (served.model, served.version)
        registry.set_present(served.model, [served.version], {})
        registry.set_ready(replace(served, statistics=VersionStatistics()))
        telemetry = Telemetry(registry, dict, {})
        self._engine = Engine(self._turn, telemetry, runners=_AtOnce())
        draw = Draw()
        shadow = Shadow(registry, self._engine, self._turn, draw)
        self._intake = Intake(registry, self._engine, telemetry, shadow, draw)

    def methods(self) -> tuple[UnaryMethod, UnaryMethod]:
        """Gives Predict and ModelInfer of servicers that have seen nothing."""
        return InferenceServicer(self._intake).predict, OipInferServicer(self._intake).model_infer

    def is_answered(self, method: UnaryMethod, message: bytes) -> bool:
        """Makes one call, and tells whether it was answered well."""
        call = _Call(time.monotonic() + _DEADLINE_S)
        method(call, message)
        self._turn.run()
        return call.is_answered

    def close(self) -> None:
        """Lets the version go. What is left here knows each other, and waits for the collector: it must not hold it."""
        self._engine.close()
        self._registry.retire(*self._name, lambda: None)


class _AtOnce(Executor):
    """Carries out what is submitted before it returns: a run that was short before need not be so now."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        done: Future[R] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class _Turn:
    """A loop that goes round when it is told to."""

    def __init__(self) -> None:
        self._callbacks: deque[Callable[[], None]] = deque()

    def post(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    call_soon = post

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Leaves it out: nothing that is rehearsed waits."""

    def run(self) -> None:
        while self._callbacks:
            self._callbacks.popleft()()


class _Call:
    """A call that nobody made."""

    method = "rehearsal"
    metadata: Metadata = ()

    def __init__(self, deadline_s: float | None) -> None:
        self.deadline_s = deadline_s
        self.is_answered = False

    def origin(self) -> Origin:
        return Origin("")

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Leaves it out: nobody goes away."""

    def fail(self, error: ServiceError) -> None:
        _log.debug("rehearsal: %s", error)

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:  # noqa: ARG002
        self.is_answered = bool(message)


def _predict_message(served: ServedVersion, inputs: dict[str, Tensor]) -> bytes:
    spec = tensor_pb2.ModelSpec(name=served.model)
    tensors = [codec.encode_tensor(name, tensor) for name, tensor in inputs.items()]
    return native.PredictRequest(model=spec, inputs=tensors).SerializeToString()


def _infer_message(served: ServedVersion, inputs: dict[str, Tensor]) -> bytes:
    request = oip.ModelInferRequest(model_name=served.model)
    for name, tensor in inputs.items():
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.array.shape)
        request.raw_input_contents.append(tensor_bytes.encode(tensor.array, tensor.datatype))
    return bytes(request.SerializeToString())
