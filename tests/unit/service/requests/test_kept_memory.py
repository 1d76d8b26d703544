"""A large request is let go of before its answer goes out: beside the answer, each copy of either is one too many."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from tests.bundles_world import Call, World, infer_message

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1.tensor_pb2 import Tensor
from fitserve_contract.tensor_bytes import Array
from fitserve_service.requests.contents import LARGE_BYTES
from fitserve_service.session import Session

ROWS = np.ones((1 << 17, 4), np.float32)


def predict_message(array: Array) -> bytes:
    request = pb.PredictRequest()
    request.model.name = "m"
    request.inputs.append(Tensor(name="x", datatype="FP32", shape=array.shape, content=array.tobytes()))
    return request.SerializeToString()


class Watching(Call):
    """Notes, as it is answered, which of the arrays that were fed and fetched are still there."""

    def __init__(self, watched: list[weakref.ref[Any]]) -> None:
        super().__init__()
        self._watched = watched
        self.kept: list[int] = []

    def reply(self, message: bytes, trailing: Any = ()) -> None:
        self.kept = [array.nbytes for each in self._watched if (array := each()) is not None]
        super().reply(message, trailing)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """References to what sessions are fed and give."""
    found: list[weakref.ref[Any]] = []
    run = Session.run

    def watching(session: Session, inputs: Any, *arguments: Any) -> Any:
        outputs = run(session, inputs, *arguments)
        found.extend(weakref.ref(tensor.array) for tensor in (*inputs.values(), *outputs.values()))
        return outputs

    monkeypatch.setattr(Session, "run", watching)
    return found


@pytest.mark.parametrize("make", [infer_message, predict_message])
def test_neither_inputs_nor_outputs_lie_beside_a_large_answer(
    tmp_path: Path, watched: list[weakref.ref[Any]], make: Callable[[Array], bytes]
) -> None:
    world = World(tmp_path)
    world.serve(builders.scaled(width=4))
    # Of the warm-up.
    watched.clear()
    call = Watching(watched)
    gc.disable()
    try:
        (world.infer if make is infer_message else world.predict)(call, make(ROWS))
        world.settle()
    finally:
        gc.enable()
    assert len(watched) == 2
    assert len(call.message) > LARGE_BYTES
    assert call.kept == []
