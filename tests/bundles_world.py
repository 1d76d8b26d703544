"""One model behind servicers, intake and engine on a loop whose turns a test makes, and the calls that come to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
from tests.engine_world import Free
from virtual_loop import VirtualLoop

from fitserve.inference.v1 import inference_pb2 as native
from fitserve_contract.tensor_bytes import Array
from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from fitserve_service.calls import Metadata, Origin, UnaryMethod
from fitserve_service.costs import CostTable
from fitserve_service.engine import Engine
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.intake import Intake
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers.inference import InferenceServicer
from fitserve_service.servicers.oip import OipInferServicer
from fitserve_service.shadow import Shadow
from fitserve_service.telemetry import Telemetry
from fitserve_service.traffic import NO_TRAFFIC, Draw, Traffic

LEARNT = 3
"""So often a kind of request comes until it has a template that has written an answer."""


class Call:
    """A call that takes whatever it is answered, once."""

    method = "/t.T/M"

    def __init__(self, deadline_s: float | None = None, *, is_broken: bool = False) -> None:
        self.deadline_s = deadline_s
        self.metadata: Metadata = ()
        self.answers: list[bytes | ServiceError] = []
        self.trailing: Metadata = ()
        self._is_broken = is_broken

    def origin(self) -> Origin:
        return Origin("")

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.cancel = callback

    def fail(self, error: ServiceError) -> None:
        self.answers.append(error)

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        self.answers.append(message)
        self.trailing = trailing
        if self._is_broken:
            raise OSError("the caller is gone")

    @property
    def message(self) -> bytes:
        (answer,) = self.answers
        assert isinstance(answer, bytes), answer
        return answer

    @property
    def array(self) -> Array:
        response = ModelInferResponse.FromString(self.message)
        return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(list(response.outputs[0].shape))

    @property
    def reason(self) -> Reason:
        (answer,) = self.answers
        assert isinstance(answer, ServiceError), answer
        return answer.reason


@dataclass
class World:
    """One model behind servicers, intake and engine, on a loop whose turns the test makes."""

    root: Path
    admit: Callable[[ServedVersion, int], None] | None = None
    loop: VirtualLoop = field(default_factory=VirtualLoop)
    registry: Registry = field(default_factory=Registry)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(self.registry, dict, {})
        self.engine = Engine(self.loop, self.telemetry)
        draw = Draw(0)
        self.shadow = Shadow(self.registry, self.engine, self.loop, draw)
        intake = Intake(self.registry, self.engine, self.telemetry, self.shadow, draw, admit=self.admit)
        self.infer: UnaryMethod = OipInferServicer(intake).model_infer
        self.predict: UnaryMethod = InferenceServicer(intake).predict
        self.runs: list[tuple[int, int]] = []
        count = self.telemetry.on_batch
        self.telemetry.on_batch = lambda served, batch: (  # type: ignore[method-assign]
            count(served, batch),
            self.runs.append((batch.request_count, batch.example_count)),
        )

    def serve(
        self,
        model: bytes,
        version: int = 1,
        traffic: Traffic = NO_TRAFFIC,
        costs: CostTable | None = None,
        **config: Any,
    ) -> ServedVersion:
        path = builders.bare_version(self.root, "m", version, model)
        served = Loader("cpu").load(path, Overrides({}))
        served = replace(served, costs=costs or Free(), config=replace(served.config, **config))
        self.registry.set_present("m", list(range(1, version + 1)), {}, traffic)
        self.registry.set_ready(served)
        return served

    def ask(self, array: Array, call: Call | None = None, name: str = "x", datatype: str = "FP32") -> Call:
        call = call or Call()
        self.infer(call, infer_message(array, name, datatype))
        return call

    def learn(self, array: Array, **names: str) -> None:
        for _ in range(LEARNT):
            self.ask(array, **names)
            self.settle()
        self.runs.clear()

    def settle(self) -> None:
        self.loop.run_until(self.engine.is_idle)


def infer_message(array: Array, name: str = "x", datatype: str = "FP32") -> bytes:
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name=name, datatype=datatype, shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


def predict_message(array: Array) -> bytes:
    request = native.PredictRequest()
    request.model.name = "m"
    request.inputs.add(name="x", datatype="FP32", shape=array.shape, content=array.tobytes())
    return request.SerializeToString()


def row(value: float, rows: int = 1) -> Array:
    return np.full((rows, 2), value, np.float32) + np.arange(rows, dtype=np.float32)[:, None]
