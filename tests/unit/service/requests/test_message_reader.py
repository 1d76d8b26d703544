"""Reading requests: small ones at once, those with many elements beside the loop, each with the same result."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest

from fitserve_oip.inference_pb2 import ModelInferRequest
from fitserve_service import codec_oip
from fitserve_service.calls import Origin
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.requests.codec_thread import CodecThread
from fitserve_service.requests.contents import Contents
from fitserve_service.requests.message_reader import MessageReader, Resume, run_now
from fitserve_service.rpc.wire_scan import DEFAULT_MAX_ELEMENTS


class Loop:
    """A loop that runs what is posted when it is told to."""

    def __init__(self) -> None:
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.thread = threading.get_ident()

    def run_one(self) -> None:
        self.posted.get(timeout=30)()


class World:
    def __init__(self, max_waiting_bytes: int = 1 << 28, max_elements: int = DEFAULT_MAX_ELEMENTS) -> None:
        self.loop = Loop()
        self.codec = CodecThread(self.loop.posted.put, max_waiting_bytes)
        self.threads: list[int] = []
        self.found: list[Any] = []
        self.kept = 0
        self.reader: MessageReader[ModelInferRequest, Any] = MessageReader(
            ModelInferRequest, self.decode, max_elements, self.codec, self.keep
        )

    def decode(self, request: ModelInferRequest, contents: Contents) -> Any:
        self.threads.append(threading.get_ident())
        return codec_oip.decode_inputs(request, contents=contents)

    def keep(self) -> Resume:
        self.kept += 1
        return run_now

    def read(self, message: bytes) -> Callable[[], None] | None:
        return self.read_from("caller", message)

    def read_from(self, peer: str, message: bytes) -> Callable[[], None] | None:
        return self.reader.read(
            message, lambda _, decoded: self.found.append(decoded()), self.found.append, lambda: Origin(peer)
        )


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.codec.close()


def texts(count: int, claimed: int | None = None) -> bytes:
    message = ModelInferRequest(model_name="m", raw_input_contents=[b"\1\0\0\0A" * count])
    message.inputs.add(name="x", datatype="BYTES", shape=[count if claimed is None else claimed])
    return message.SerializeToString()


def test_few_elements_are_read_at_once(world: World) -> None:
    assert world.read(texts(100)) is None
    assert len(world.found[0]["x"].array) == 100
    assert world.threads == [world.loop.thread]
    assert not world.kept


def test_many_elements_are_read_beside_the_loop(world: World) -> None:
    assert world.read(texts(100_000)) is not None
    assert not world.found
    world.loop.run_one()
    assert len(world.found[0]["x"].array) == 100_000
    assert world.threads != [world.loop.thread]
    assert world.kept == 1


def test_what_is_read_beside_the_loop_comes_in_order(world: World) -> None:
    for count in (50_000, 60_000, 70_000):
        world.read(texts(count))
    for _ in range(3):
        world.loop.run_one()
    assert [len(found["x"].array) for found in world.found] == [50_000, 60_000, 70_000]


def test_what_was_cancelled_is_not_told(world: World) -> None:
    cancel = world.read(texts(100_000))
    assert cancel is not None
    cancel()
    world.loop.run_one()
    assert not world.found


@pytest.mark.parametrize("message", [texts(50_000, 50_001), texts(300_000)], ids=["torn", "too many"])
def test_tensors_that_cannot_be_read_are_told_with_the_request(world: World, message: bytes) -> None:
    world.read(message)
    world.loop.run_one()
    (error,) = world.found
    assert isinstance(error, ServiceError)
    assert error.reason is (Reason.TOO_LARGE if len(message) > 1_000_000 else Reason.INVALID_INPUT)


def test_only_so_many_bytes_wait() -> None:
    world = World(max_waiting_bytes=1_100_000)
    message = texts(100_000)
    for peer in ("first", "second"):
        world.read_from(peer, message)
    with pytest.raises(ServiceError, match="bytes of messages with many elements to be read, 1000") as refused:
        world.read_from("third", message)
    assert refused.value.reason is Reason.QUEUE_FULL
    world.loop.run_one()
    world.read_from("third", message)
    world.codec.close()


class Held:
    """Stands for what a request was read into: it can be watched."""


@pytest.mark.parametrize("has_failed", [False, True])
def test_nothing_is_kept_once_it_is_told(world: World, has_failed: bool) -> None:
    held = Held()
    watched = weakref.ref(held)

    def work(held: Held) -> Held:
        if has_failed:
            raise ServiceError(Reason.TOO_LARGE, "no")
        return held

    gc.disable()
    try:
        world.codec.write(partial(work, held), lambda _: None)
        del held
        world.loop.run_one()
        # The thread lets go of its work once it has posted the result.
        world.codec.write(lambda: None, lambda _: None)
        world.loop.run_one()
        assert watched() is None
    finally:
        gc.enable()


def test_callers_take_turns_and_what_is_cancelled_is_not_begun(world: World) -> None:
    sizes = {"first": 100_000, "greedy": 90_000, "modest": 80_000}
    world.read_from("greedy", texts(sizes["first"]))
    cancels = [world.read_from("greedy", texts(sizes["greedy"])) for _ in range(3)]
    world.read_from("modest", texts(sizes["modest"]))
    cancels[1]()  # type: ignore[misc]
    for _ in range(4):
        world.loop.run_one()
    counts = [len(found["x"].array) for found in world.found]
    assert counts == [sizes["first"], sizes["greedy"], sizes["modest"], sizes["greedy"]]
    assert world.codec._waiting_bytes == 0
    assert not world.codec._bytes_of


def test_one_caller_has_half_of_the_room() -> None:
    message = texts(100_000)
    made = World(max_waiting_bytes=4 * len(message))
    try:
        for _ in range(2):
            made.read_from("greedy", message)
        with pytest.raises(ServiceError, match="messages with many elements to be read") as refused:
            made.read_from("greedy", message)
        assert refused.value.reason is Reason.QUEUE_FULL
        made.read_from("modest", message)
        for _ in range(3):
            made.loop.run_one()
        assert len(made.found) == 3
    finally:
        made.codec.close()


@pytest.mark.parametrize("is_large", [False, True])
def test_groups_are_refused_for_fields_could_hide_behind_them(world: World, is_large: bool) -> None:
    outputs = b"\x32\x00" * (500_000 if is_large else 3)
    group = b"\x9b\x06" + b"\x2a\x01\x07" + b"\x9c\x06"  # field 99: field 5 of one byte that is no field
    with pytest.raises(ServiceError, match="got a group") as refused:
        world.read(group + outputs)
    assert refused.value.reason is Reason.MALFORMED_MESSAGE
