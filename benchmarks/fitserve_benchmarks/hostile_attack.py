"""One attacker: sends hostile requests to every unary method and counts what came back; a process of its own.

Run as `python -m fitserve_benchmarks.hostile_attack`, by `hostile` alone: its plan comes as JSON on stdin, its result
goes to stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_benchmarks.hostile_messages import HostileMessages, unary_methods
from fitserve_benchmarks.hostile_models import VICTIMS
from fitserve_oip import inference_pb2 as oip_pb2

_IN_FLIGHT: Final = 48
_TIMEOUT_S: Final = 60.0
_MAX_EXAMPLES: Final = 10
_FAULTS_OF_OURS: Final = ("INTERNAL", "UNKNOWN")
_WEIGHTS: Final = {
    **{"Predict": 6, "ModelInfer": 6, "Evaluate": 3, "CompareVersions": 2},
    **{"UnloadModel": 0.02, "RepositoryModelUnload": 0.02, "LoadModel": 0.3, "RepositoryModelLoad": 0.3},
}
"""How much likelier than others these are: most is read there, and nothing of what is unloaded."""


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """What one attacker does.

    Args:
        address: `host:port`.
        count: Requests.
        seed: Of all of them.
        secret: Bytes, in hexadecimal, that no answer may hold.
    """

    address: str
    count: int
    seed: int
    secret: str


@dataclass(slots=True)
class AttackResult:
    """What came back.

    Args:
        codes: Status code to how many.
        leaks: Answers that held the secret.
        examples: The first few answers with a code that says that the fault is the server's.
    """

    codes: dict[str, int] = field(default_factory=dict)
    leaks: int = 0
    examples: list[str] = field(default_factory=list)


async def attack(plan: AttackPlan) -> AttackResult:
    """Sends all requests, some dozens at a time."""
    result, codes = AttackResult(), Counter[str]()
    secret = bytes.fromhex(plan.secret)
    requests = _requests(plan)
    async with grpc.aio.insecure_channel(plan.address) as opened:
        channel: Any = opened  # grpc-stubs knows no calls of plain bytes.
        methods = {name: channel.unary_unary(name) for name in unary_methods()}

        async def work() -> None:
            for name, message in requests:
                code, said = await _send(methods[name], message)
                codes[code] += 1
                result.leaks += secret in said
                if code in _FAULTS_OF_OURS and len(result.examples) < _MAX_EXAMPLES:
                    result.examples.append(f"{name} {code}: {said[:200]!r} to {message[:400].hex()}")

        await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
    result.codes = dict(codes)
    return result


async def _send(method: Any, message: bytes) -> tuple[str, bytes]:
    try:
        return "OK", await method(message, timeout=_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        trailing = repr(error.trailing_metadata()).encode()
        return error.code().name, (error.details() or "").encode() + trailing
    except UnicodeDecodeError as error:
        return "UNKNOWN", str(error).encode()


def _requests(plan: AttackPlan) -> Iterator[tuple[str, bytes]]:
    random = Random(plan.seed)
    messages = HostileMessages(random, (*VICTIMS, *VICTIMS, "index"))
    kinds = unary_methods()
    names = list(kinds)
    weights = [_WEIGHTS.get(name.rsplit("/", 1)[1], 1) for name in names]
    seeds = _seeds()
    for name in random.choices(names, weights, k=plan.count):
        yield name, messages.message(kinds[name], seeds.get(name.rsplit("/", 1)[1], ()))


def _seeds() -> dict[str, list[bytes]]:
    """Requests that the server takes, by method."""
    x = tensor_pb2.Tensor(name="x", datatype="FP32", shape=[2, 2], content=np.ones((2, 2), "<f4").tobytes())
    index = tensor_pb2.Tensor(name="index", datatype="INT64", shape=[2], content=np.array([1, 4], "<i8").tobytes())
    text = tensor_pb2.Tensor(name="x", datatype="BYTES", shape=[1, 2], content=b"\1\0\0\0a\2\0\0\0bc")
    pairs = [("victim", x), ("rows", index), ("words", text)]
    predicts = [
        inference_pb2.PredictRequest(model=tensor_pb2.ModelSpec(name=model), inputs=[tensor]) for model, tensor in pairs
    ]
    infers = [
        oip_pb2.ModelInferRequest(
            model_name=model,
            inputs=[{"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}],
            raw_input_contents=[tensor.content],
        )
        for model, tensor in pairs
    ]
    return {
        "Predict": [request.SerializeToString() for request in predicts],
        "ModelInfer": [request.SerializeToString() for request in infers],
    }


def main() -> None:
    """Reads the plan, attacks, writes the result."""
    plan = AttackPlan(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(attack(plan))), sys.stdout)


if __name__ == "__main__":
    main()
