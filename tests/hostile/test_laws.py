"""Whatever bytes arrive, what reads them agrees with its plain oracle or refuses them in words."""

from __future__ import annotations

from random import Random

import builders
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.hostile.laws import manifest_law, onnx_file_law, request_law, tensor_law
from tests.hostile.seeds import INFER, PREDICT

from fitserve_benchmarks.hostile_messages import HostileMessages, unary_methods
from fitserve_contract.datatypes import NUMPY_DTYPES

AXES = st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63)]))
RANDOMS = st.randoms(use_true_random=False)


@settings(max_examples=400)
@given(st.sampled_from([*NUMPY_DTYPES, "FP8", ""]), st.lists(AXES, max_size=4), st.binary(max_size=96))
@example("FP32", [2**32, 2**32], b"")
@example("FP32", [0, 2**62, 2**62], b"")
@example("BYTES", [1], b"\xff\xff\xff\xff")
@example("BYTES", [2**31], b"")
@example("FP32", [1] * 33, bytes(4))
def test_a_tensor_is_taken_where_its_bytes_fit(datatype: str, shape: list[int], content: bytes) -> None:
    tensor_law(datatype, shape, content)


@settings(max_examples=200)
@given(st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 3), max_size=3), st.data())
def test_a_tensor_whose_bytes_fit_is_taken_bit_by_bit(datatype: str, shape: list[int], data: st.DataObject) -> None:
    count = 1
    for size in shape:
        count *= size
    if datatype == "BYTES":
        elements = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        content = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    elif datatype == "BOOL":
        content = bytes(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        size = count * NUMPY_DTYPES[datatype].itemsize
        content = data.draw(st.binary(min_size=size, max_size=size))
    tensor_law(datatype, shape, content)


@settings(max_examples=300)
@given(RANDOMS)
def test_a_hostile_request_is_the_fault_of_its_caller(random: Random) -> None:
    messages = HostileMessages(random, ("m", "x"))
    seed = random.choice((PREDICT, INFER))
    request_law(messages.message(seed.DESCRIPTOR, [seed.SerializeToString()]))


@pytest.mark.parametrize("method", sorted(unary_methods()))
def test_the_generator_knows_every_method(method: str) -> None:
    messages = HostileMessages(Random(0))
    kind = unary_methods()[method]
    made = {messages.message(kind) for _ in range(50)}
    assert len(made) > 1


@settings(max_examples=300)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([builders.external("w.bin"), builders.endless(), builders.scaled(), builders.zipmap_like()]),
)
def test_no_external_file_is_missed(random: Random, model: bytes) -> None:
    onnx_file_law(model)
    onnx_file_law(HostileMessages(random).damaged(model))


@settings(max_examples=100)
@given(RANDOMS)
def test_no_external_file_of_a_made_up_model_is_missed(random: Random) -> None:
    messages = HostileMessages(random, ("location", "w.bin"))
    onnx_file_law(messages.message(onnx.ModelProto.DESCRIPTOR, [builders.external("w.bin")]))


@settings(max_examples=300)
@given(RANDOMS)
def test_a_damaged_manifest_is_refused_or_understood(random: Random) -> None:
    whole = builders.manifest("m", builders.classes_task()).to_bytes()
    manifest_law(HostileMessages(random).damaged(whole))


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b'{"name": 1e999}', b"\xff\xfe", b"null"]
)
def test_a_manifest_that_is_a_bomb_is_refused(content: bytes) -> None:
    manifest_law(content)
