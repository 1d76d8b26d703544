"""Requests that are run together are answered as each would be alone; what is not as it should be goes its own way."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from weakref import ref

import builders
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bundles_world import LEARNT, Call, World, infer_message, predict_message, row
from tests.engine_world import BAD, Free

from fitserve.inference.v1 import inference_pb2 as native
from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.served_version import ServedVersion
from fitserve_service.switching.views import View
from fitserve_service.traffic import NO_TRAFFIC, Traffic
from fitserve_service.version_policy import State


@given(counts=st.lists(st.integers(1, 70), min_size=1, max_size=3), rows=st.integers(1, 3))
def test_each_of_any_number_is_answered_once_with_its_own_rows(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], rows: int
) -> None:
    it = World(tmp_path_factory.mktemp("repository"))
    it.serve(builders.linear())
    it.learn(row(0, rows))
    alone = []
    for value in range(max(counts)):
        alone.append(it.ask(row(value, rows)))
        it.settle()
    it.runs.clear()
    for count in counts:
        calls = [it.ask(row(value, rows)) for value in range(count)]
        it.loop.turn()
        assert [call.array.tobytes() for call in calls] == [call.array.tobytes() for call in alone[:count]]
    assert it.runs == [(count, count * rows) for count in counts]
    it.engine.close()


def test_they_are_written_as_protobuf_writes_them_by_both_methods(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled())
    written: list[bytes | ServiceError] = []
    for _ in range(LEARNT + 1):
        calls = [Call() for _ in range(3)]
        for value, call in enumerate(calls):
            it.predict(call, predict_message(row(value)))
        it.settle()
        written.append(calls[2].answers[0])
    assert len(set(written)) == 1
    assert isinstance(written[0], bytes)
    response = native.PredictResponse.FromString(written[0])
    assert (response.model_name, response.model_version) == ("m", 1)
    assert np.frombuffer(response.outputs[0].content, np.float32).tolist() == [4.0, 4.0]


def test_two_outputs_are_dealt_in_their_order(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.two_in_two_out())

    def message(value: float) -> bytes:
        request = ModelInferRequest(model_name="m")
        for name, array in (("a", row(value)), ("b", row(1))):
            request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        return request.SerializeToString()

    for _ in range(LEARNT + 1):
        calls = [Call() for _ in range(4)]
        for value, call in enumerate(calls):
            it.infer(call, message(value))
        it.settle()
    answer = calls[3].answers[0]
    assert isinstance(answer, bytes)
    contents = ModelInferResponse.FromString(answer).raw_output_contents
    assert [np.frombuffer(content, np.float32).tolist() for content in contents] == [[4.0, 4.0], [2.0, 2.0]]


def test_requests_with_ids_of_their_own_run_together_and_get_them_back(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled())
    for turn in range(LEARNT + 1):
        it.runs.clear()
        calls = [Call() for _ in range(12)]
        for number, call in enumerate(calls):
            request = ModelInferRequest.FromString(infer_message(row(number)))
            request.id = f"{turn}-{number}"
            it.infer(call, request.SerializeToString())
        it.settle()
    assert it.runs == [(12, 12)]
    assert [call.array[0, 0] for call in calls] == [2.0 * number for number in range(12)]
    assert [ModelInferResponse.FromString(call.message).id for call in calls] == [
        f"{LEARNT}-{number}" for number in range(12)
    ]


def test_the_last_of_two_ids_counts(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled())
    for number in range(2 * LEARNT):
        call, request = Call(), ModelInferRequest.FromString(infer_message(row(1)))
        request.id = f"{number}"
        it.infer(call, request.SerializeToString() + b"\x1a\x04last")
        it.settle()
        assert ModelInferResponse.FromString(call.message).id == "last"


def test_all_of_them_are_counted_and_told_where_their_time_went(tmp_path: Path) -> None:
    it = World(tmp_path)
    served = it.serve(builders.scaled())
    it.learn(row(0))
    before = it.telemetry.counts()[ref(served)].request_count
    calls = [it.ask(row(value)) for value in range(9)]
    submitted = it.engine.submitted_count
    it.settle()
    counts = it.telemetry.counts()[ref(served)]
    assert (counts.request_count - before, counts.error_count, sum(counts.latency)) == (9, 0, before + 9)
    assert it.engine.submitted_count == submitted + 9
    assert (served.statistics.execution_count, served.statistics.inference_count) == (LEARNT + 1, LEARNT + 9)
    assert served.statistics.success.count == LEARNT + 9
    for call in calls:
        ((name, text),) = call.trailing
        assert name == "fitserve-timing"
        assert [part.split("=")[0] for part in str(text).split(",")] == [
            "decode_us",
            "queue_us",
            "run_us",
            "encode_us",
        ]


def test_one_that_an_operator_refuses_costs_the_others_nothing(tmp_path: Path) -> None:
    it = World(tmp_path)
    served = it.serve(builders.gather())
    names = {"name": "index", "datatype": "INT64"}
    it.learn(np.array([1]), **names)
    calls = [it.ask(np.array([value]), **names) for value in (0, BAD, 2, 3, BAD)]
    it.settle()
    assert [call.reason for call in (calls[1], calls[4])] == [Reason.OPERATOR_FAILED] * 2
    assert [calls[index].array.tolist() for index in (0, 2, 3)] == [[[0, 1]], [[4, 5]], [[6, 7]]]
    assert served.statistics.success.count == LEARNT + 3
    assert served.statistics.fail.count == 2


def test_a_deadline_that_is_near_is_looked_at_for_each(tmp_path: Path) -> None:
    class Second(Free):
        def expected_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
            return 1.0

    it = World(tmp_path)
    it.serve(builders.scaled(), costs=Second())
    it.learn(row(0))
    now_s = time.monotonic()
    calls = [it.ask(row(1), Call(now_s - 1.0)), it.ask(row(2), Call(now_s + 0.5)), it.ask(row(3), Call(now_s + 1000.0))]
    it.settle()
    assert [call.reason for call in calls[:2]] == [Reason.DEADLINE_PASSED] * 2
    assert calls[2].array.tolist() == [[6, 6]]
    assert it.runs == [(1, 1)]


@pytest.mark.parametrize("share", ["canary_share", "shadow_share"])
def test_where_the_traffic_is_shared_out_each_is_drawn_for_itself(tmp_path: Path, share: str) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled(1.0))
    it.serve(builders.scaled(-1.0), version=2)
    labels = {"stable": 1, share.removesuffix("_share"): 2}
    it.registry.set_present("m", [1, 2], labels, NO_TRAFFIC)
    it.learn(row(0))
    it.registry.set_present("m", [1, 2], labels, Traffic(**{share: 0.5}))
    calls = [it.ask(row(1)) for _ in range(64)]
    it.settle()
    it.loop.advance(1.0)
    it.settle()
    answers = [call.array[0, 0] for call in calls]
    if share == "canary_share":
        assert 10 < answers.count(-1.0) < 54
        assert len(answers) == answers.count(1.0) + answers.count(-1.0)
    else:
        assert answers == [1.0] * 64
        (counts,) = it.shadow.counts().values()
        assert counts.sampled_count > 10


def test_the_version_is_that_of_the_turn(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled(1.0))
    it.learn(row(0))
    first = [it.ask(row(1)) for _ in range(5)]
    it.settle()
    it.serve(builders.scaled(2.0), version=2)
    freed: list[int] = []
    it.registry.retire("m", 1, lambda: freed.append(1))
    assert freed == [1], "a version that no request has goes at once"
    second = [it.ask(row(1)) for _ in range(5)]
    it.settle()
    assert [call.array[0, 0] for call in (*first, *second)] == [1.0] * 5 + [2.0] * 5


def test_what_is_to_wait_waits(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled(), max_queue_delay_ms=50.0)
    it.learn(row(0))
    calls = [it.ask(row(1)) for _ in range(3)]
    it.loop.turn()
    it.loop.turn()
    assert [call.answers for call in calls] == [[], [], []]
    calls += [it.ask(row(1)) for _ in range(2)]
    it.settle()
    assert it.runs == [(5, 5)]


def test_none_of_their_runs_is_larger_than_may_be(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled(), max_batch_size=8)
    it.learn(row(0, 3))
    calls = [it.ask(row(value, 3)) for value in range(7)]
    it.settle()
    assert [call.array[0, 0] for call in calls] == [2.0 * value for value in range(7)]
    assert it.runs == [(2, 6)] * 3 + [(1, 3)]
    large = [it.ask(row(value, 9)) for value in range(2 * LEARNT)]
    it.settle()
    assert [call.array.shape for call in large] == [(9, 2)] * 2 * LEARNT
    assert it.runs[4:] == [(1, 9)] * 2 * LEARNT


def test_where_nothing_is_to_be_joined_each_runs_alone(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled(), max_batch_size=0)
    it.learn(row(0))
    calls = [it.ask(row(value)) for value in range(3)]
    it.settle()
    assert it.runs == [(1, 1)] * 3
    assert [call.array[0, 0] for call in calls] == [0.0, 2.0, 4.0]


def test_requests_that_are_not_small_are_queued(tmp_path: Path) -> None:
    class Long(Free):
        def floor_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
            return 1e-4

    it = World(tmp_path)
    served = it.serve(builders.scaled(), costs=Long())
    it.learn(row(0))
    calls = [it.ask(row(value)) for value in range(3)]
    at_once: list[object] = []
    it.engine.count = at_once.append  # type: ignore[method-assign]
    it.settle()
    assert [call.array[0, 0] for call in calls] == [0.0, 2.0, 4.0]
    assert at_once == []
    assert served.statistics.success.count == LEARNT + 3


def test_more_than_a_turn_may_take_is_queued(tmp_path: Path) -> None:
    class Busy(Free):
        def floor_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
            return rows * 7e-5

    it = World(tmp_path)
    served = it.serve(builders.scaled(), costs=Busy(), max_queued_examples=60, max_batch_size=8)
    it.learn(row(0))
    calls = [it.ask(row(value)) for value in range(40)]
    it.loop.turn()
    assert it.runs == [(7, 7)] * 5 + [(5, 5)], "parts of half a millisecond"
    calls = [it.ask(row(value)) for value in range(70)]
    it.loop.turn()
    it.settle()
    assert [call.reason for call in calls[60:]] == [Reason.QUEUE_FULL] * 10
    assert [call.array[0, 0] for call in calls[:60]] == [2.0 * value for value in range(60)]
    assert served.statistics.success.count == LEARNT + 100


def test_what_came_before_a_drain_is_answered(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled())
    it.learn(row(0))
    before = [it.ask(row(1)) for _ in range(3)]
    assert not it.engine.is_idle()
    it.engine.begin_drain()
    it.settle()
    after = it.ask(row(1))
    it.settle()
    assert [call.array[0, 0] for call in before] == [2.0] * 3
    assert after.reason is Reason.DRAINING


def test_small_bundles_of_several_kinds_are_joined_with_each_other(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled())
    it.learn(row(0, 1))
    it.learn(row(0, 2))
    calls = [it.ask(row(1, 1 + number % 2)) for number in range(4)]
    it.settle()
    assert it.runs == [(4, 6)]
    it.runs.clear()
    calls += [it.ask(row(1, 1 + number % 2)) for number in range(8)]
    it.settle()
    assert it.runs == [(4, 4), (4, 8)]
    assert all(call.array[0, 0] == 2.0 for call in calls)


def test_a_caller_who_has_too_much_under_way_is_refused_and_counted(tmp_path: Path) -> None:
    held: list[int] = []

    def admit(_: ServedVersion, example_count: int) -> None:
        if sum(held) + example_count > LEARNT + 2:
            raise ServiceError(Reason.QUOTA, "too much")
        held.append(example_count)

    it = World(tmp_path, admit)
    it.serve(builders.scaled())
    it.learn(row(0))
    calls = [it.ask(row(1)) for _ in range(2)]
    with pytest.raises(ServiceError, match="too much"):
        it.ask(row(1))
    it.settle()
    assert [call.array[0, 0] for call in calls] == [2.0, 2.0]
    (counts,) = it.telemetry.counts().values()
    assert counts.error_count == 1


def test_an_answer_that_cannot_be_handed_over_costs_no_other(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.scaled())
    it.learn(row(0))
    calls = [it.ask(row(value), Call(is_broken=value == 1)) for value in range(3)]
    it.settle()
    assert [call.array[0, 0] for call in calls] == [0.0, 2.0, 4.0]
    assert it.runs == [(3, 3)]


def test_a_batch_axis_that_the_model_does_not_have_is_no_loss(tmp_path: Path) -> None:
    it = World(tmp_path)
    (it.root / "m").mkdir(parents=True, exist_ok=True)
    total = builders.model(
        [builders.helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)], [builders.value("x")], [builders.value("y")]
    )
    served = it.serve(total, max_batch_size=64)
    claimed = replace(served, signature=replace(served.signature, has_batch_axis=True))
    it.registry.set_ready(claimed)
    it.learn(row(1))
    calls = [it.ask(row(1)) for _ in range(4)]
    it.settle()
    assert [call.array.tolist() for call in calls] == [[[2.0]]] * 4


def test_all_that_was_leased_is_given_back(tmp_path: Path) -> None:
    it = World(tmp_path)
    it.serve(builders.gather())
    names = {"name": "index", "datatype": "INT64"}
    it.learn(np.array([1]), **names)
    for value in (1, BAD, 2):
        it.ask(np.array([value]), **names)
    it.settle()
    it.registry.retire("m", 1, lambda: None)
    assert it.registry.states("m") == {1: State.UNLOADED}


def test_a_switch_between_the_first_request_and_the_run_holds_for_all_of_them(tmp_path: Path) -> None:
    it, memory = World(tmp_path), memoryview(bytearray(8)).cast("Q")
    views = it.registry.share(memory)

    def switch(version: int) -> None:
        digests = {each: served.content_digest for each, served in it.registry.served("m").items()}
        assert views.prepare(version, {"m": View(digests, {}, version)})
        memory[0] = version

    it.serve(builders.scaled(2.0))
    switch(1)
    it.learn(row(1))
    assert [call.array[0, 0] for call in asked(it)] == [2.0] * 4
    it.serve(builders.scaled(3.0), 2)
    calls = [it.ask(row(1)) for _ in range(4)]
    # The last of them may have come after another worker answered with version 2.
    switch(2)
    it.settle()
    assert [call.array[0, 0] for call in calls] == [3.0] * 4
    it.engine.close()


def asked(it: World) -> list[Call]:
    calls = [it.ask(row(1)) for _ in range(4)]
    it.settle()
    return calls
