"""Labels, the canary's share and the shadow, over the wire."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests import builders
from tests.wire.serving import WAIT_S, connected, refused, serving, tensor

from fitserve.control.v1 import control_pb2 as pb
from fitserve.control.v1 import control_pb2_grpc
from fitserve.inference.v1 import inference_pb2 as native
from fitserve.inference.v1 import inference_pb2_grpc
from fitserve.types.v1 import tensor_pb2
from fitserve_contract.labels import read_labels, read_log, replay
from fitserve_oip import inference_pb2 as oip
from fitserve_service.pages_http import Request
from fitserve_service.server import Server
from fitserve_service.traffic import ROUTING_KEY

LOOKS = 50_000
"""Calls that are made at most while something is waited for: some ten seconds."""


@contextmanager
def control_of(server: Server) -> Iterator[Any]:
    with connected(server) as channel:
        yield control_pb2_grpc.ModelControlServiceStub(channel)  # type: ignore[no-untyped-call]


def publish(root: Path, *factors: float) -> None:
    """Versions 1, 2, … of model m: y = factor * x, classes by the larger of two numbers."""
    for factor in factors:
        builders.publish_version(root, "m", builders.scaled(factor), task=builders.classes_task())


def set_label(stub: Any, label: str, version: int, expected: int, **values: Any) -> pb.LabelMove:
    request = pb.SetLabelRequest(model="m", label=label, version=version, expected_version=expected, **values)
    move: pb.LabelMove = stub.SetLabel(request, timeout=WAIT_S).move
    return move


def set_traffic(stub: Any, **shares: float) -> None:
    stub.SetTraffic(pb.SetTrafficRequest(model="m", traffic=pb.Traffic(**shares)), timeout=WAIT_S)


def request_for(**selector: Any) -> native.PredictRequest:
    x = tensor("x", np.array([[1, 2]], np.float32))
    return native.PredictRequest(model=tensor_pb2.ModelSpec(name="m", **selector), inputs=[x])


def answering_version(channel: Any, key: str | None = None, **selector: Any) -> int:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    metadata = [(ROUTING_KEY, key)] if key is not None else None
    answer = stub.Predict(request_for(**selector), timeout=WAIT_S, metadata=metadata)
    return int(answer.model_version)


def test_a_label_moves_is_logged_and_outlives_the_server(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2, 3)
    with serving(tmp_path) as server, control_of(server) as stub, connected(server) as channel:
        assert answering_version(channel) == 3
        move = set_label(stub, "stable", 1, 0, who="ann", why="known to be good", figures_json='{"accuracy": 0.9}')
        assert (move.from_version, move.to_version, move.action) == (0, 1, pb.LABEL_ACTION_MOVE)
        # Version 1 was not loaded before: the label came once it was READY.
        assert answering_version(channel) == answering_version(channel, label="stable") == 1
        set_label(stub, "stable", 2, 1, action=pb.LABEL_ACTION_ROLLBACK)
        assert answering_version(channel) == 2
    with serving(tmp_path) as server, control_of(server) as stub, connected(server) as channel:
        assert answering_version(channel) == 2
        answer = stub.ListLabelMoves(pb.ListLabelMovesRequest(model="m"), timeout=WAIT_S)
        request = pb.DeleteLabelRequest(model="m", label="stable", expected_version=2)
        assert stub.DeleteLabel(request, timeout=WAIT_S).move.to_version == 0
        assert answering_version(channel) == 3
    assert dict(answer.labels) == {"stable": 2}
    assert [(each.from_version, each.to_version, each.action) for each in answer.moves] == [(0, 1, 1), (1, 2, 2)]
    assert (answer.moves[0].who, answer.moves[0].why) == ("ann", "known to be good")
    assert json.loads(answer.moves[0].figures_json) == {"accuracy": 0.9}
    assert replay(read_log(tmp_path, "m")) == read_labels(tmp_path, "m") == {}


def test_a_label_that_cannot_move_stays(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2)
    builders.bare_version(tmp_path, "m", 3, b"broken")
    with serving(tmp_path) as server, control_of(server) as stub:
        set_label(stub, "stable", 1, 0)

        def label(**values: Any) -> tuple[str, str, str]:
            fields: dict[str, Any] = {"model": "m", "label": "stable", "version": 2, "expected_version": 1} | values
            return refused(stub.SetLabel, pb.SetLabelRequest(**fields))

        assert label(expected_version=2)[:2] == ("ABORTED", "LABEL_CONFLICT")
        assert label(expected_version=0)[2] == "label 'stable' of model 'm': expected it nowhere, found it at version 1"
        assert label(version=9)[:2] == ("NOT_FOUND", "VERSION_NOT_FOUND")
        assert label(version=0)[:2] == ("INVALID_ARGUMENT", "INVALID_VERSION")
        assert label(version=3)[:2] == ("FAILED_PRECONDITION", "MODEL_FAILED")
        assert label(model="none")[:2] == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert label(model="../m")[:2] == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert label(label="../x")[:2] == ("INVALID_ARGUMENT", "INVALID_LABEL")
        assert label(figures_json="[1]")[:2] == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        gone = pb.DeleteLabelRequest(model="m", label="canary", expected_version=1)
        assert refused(stub.DeleteLabel, gone)[:2] == ("NOT_FOUND", "LABEL_NOT_FOUND")
        late = pb.DeleteLabelRequest(model="m", label="stable", expected_version=2)
        assert refused(stub.DeleteLabel, late)[:2] == ("ABORTED", "LABEL_CONFLICT")
        assert len(read_log(tmp_path, "m")) == 1
    assert read_labels(tmp_path, "m") == {"stable": 1}


def test_of_two_writers_at_once_one_is_aborted(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2, 3)
    with serving(tmp_path) as server, control_of(server) as stub, ThreadPoolExecutor(2) as pool:
        set_label(stub, "stable", 1, 0)

        def write(version: int) -> str:
            try:
                return f"moved to {set_label(stub, 'stable', version, 1).to_version}"
            except grpc.RpcError as error:
                code: str = error.code().name
                return code

        outcomes = list(pool.map(write, (2, 3)))
    assert sorted(outcomes)[0] == "ABORTED"
    (won,) = [outcome for outcome in outcomes if outcome != "ABORTED"]
    assert read_labels(tmp_path, "m") == {"stable": int(won[-1])}
    assert len(read_log(tmp_path, "m")) == 2


def test_labels_move_back_and_forth_under_load_without_a_failed_request(tmp_path: Path) -> None:
    """The policy keeps only the highest version: every move but those to it has to load a version, and unloads one."""
    publish(tmp_path, 1, 2, 3)
    answers: Counter[tuple[int, float]] = Counter()
    failures: list[str] = []
    is_over = threading.Event()

    def load(server: Server) -> None:
        with connected(server) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            while not is_over.is_set():
                try:
                    answer = stub.Predict(request_for(label="stable"), timeout=WAIT_S)
                    answers[answer.model_version, float(np.frombuffer(answer.outputs[0].content, "<f4")[0])] += 1
                except grpc.RpcError as error:
                    failures.append(str(error))

    with serving(tmp_path) as server, control_of(server) as stub:
        set_label(stub, "stable", 1, 0)
        callers = [threading.Thread(target=load, args=(server,)) for _ in range(2)]
        for caller in callers:
            caller.start()
        for before, after in ((1, 2), (2, 1), (1, 3), (3, 1), (1, 2)):
            set_label(stub, "stable", after, before)
        (tmp_path / "m" / "labels.json").write_text('{"stable": 1}')
        with connected(server) as channel:
            assert any(answering_version(channel, label="stable") == 1 for _ in range(LOOKS))
        is_over.set()
        for caller in callers:
            caller.join()
    assert failures == []
    assert {version for version, _ in answers} >= {1, 2}
    assert all(version == factor for version, factor in answers)


def test_a_share_goes_to_the_canary_and_a_key_always_lands_alike(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2)
    keys = [f"caller {index}" for index in range(60)]
    with serving(tmp_path) as server, control_of(server) as stub, connected(server) as channel:
        set_label(stub, "stable", 1, 0)
        set_label(stub, "canary", 2, 0)
        found = []
        for share in (0.0, 0.25, 0.75, 1.0):
            set_traffic(stub, canary_share=share)
            answered = [answering_version(channel, key) for key in keys]
            assert answered == [answering_version(channel, key) for key in keys]
            found.append({key for key, version in zip(keys, answered, strict=True) if version == 2})
        assert stub.GetTraffic(pb.GetTrafficRequest(model="m"), timeout=WAIT_S).traffic.canary_share == 1.0
        assert (answering_version(channel), answering_version(channel, label="stable")) == (2, 1)
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        request = oip.ModelInferRequest(model_name="m", raw_input_contents=[np.zeros(2, "<f4").tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        assert oip.ModelInferResponse.FromString(infer(request.SerializeToString())).model_version == "2"
        stub.DeleteLabel(pb.DeleteLabelRequest(model="m", label="canary", expected_version=2), timeout=WAIT_S)
        assert answering_version(channel) == 1
    none, some, most, everyone = found
    assert none < some < most < everyone == set(keys)


@pytest.mark.parametrize("shares", [{"canary_share": -0.1}, {"canary_share": 1.5}, {"shadow_share": float("nan")}])
def test_a_share_that_is_none_is_refused(tmp_path: Path, shares: dict[str, float]) -> None:
    publish(tmp_path, 1)
    with serving(tmp_path) as server, control_of(server) as stub:
        request = pb.SetTrafficRequest(model="m", traffic=pb.Traffic(**shares))
        code, reason, text = refused(stub.SetTraffic, request)
        assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert text.startswith(f"traffic.{next(iter(shares))}: expected a share of 0..1")
        gone = pb.SetTrafficRequest(model="none", traffic=pb.Traffic())
        assert refused(stub.SetTraffic, gone)[:2] == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert not (tmp_path / "m" / "traffic.json").exists()


def test_the_shadow_runs_unheard_and_is_counted_exactly(tmp_path: Path) -> None:
    publish(tmp_path, 1, -1)
    with (
        serving(tmp_path, metrics_port=0) as server,
        control_of(server) as stub,
        connected(server) as channel,
    ):
        set_label(stub, "stable", 1, 0)
        set_label(stub, "shadow", 2, 0)
        set_traffic(stub, shadow_share=1.0)
        assert [answering_version(channel) for _ in range(12)] == [1] * 12
        assert answering_version(channel, version=1) == 1
        asked = pb.GetShadowReportRequest(model="m")
        reports = (stub.GetShadowReport(asked, timeout=WAIT_S).reports[0] for _ in range(LOOKS))
        report = next(report for report in reports if report.pending_count == 0)
        exposed = server.answer_page(Request("/metrics")).content.decode()
    assert (report.live_version, report.shadow_version, report.sampled_count) == (1, 2, 12)
    assert report.compared_count + report.dropped_count == 12
    assert report.compared_count == report.example_count > 0
    assert (report.agreed_count, report.has_agreement, report.failed_count) == (0, True, 0)
    assert report.max_abs_diff == 4.0
    assert report.live_run_ns > 0
    assert report.shadow_run_ns > 0
    line = (
        f'fitserve_shadow_requests_total{{live="1",model="m",outcome="compared",shadow="2"}} {report.compared_count}.0'
    )
    assert line in exposed


def test_a_shadow_that_does_not_suit_costs_no_answer(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    builders.publish_version(tmp_path, "m", builders.gather())
    with serving(tmp_path) as server, control_of(server) as stub, connected(server) as channel:
        set_label(stub, "stable", 1, 0)
        set_label(stub, "shadow", 2, 0)
        set_traffic(stub, shadow_share=1.0)
        assert [answering_version(channel) for _ in range(5)] == [1] * 5
        (report,) = stub.GetShadowReport(pb.GetShadowReportRequest(model="m"), timeout=WAIT_S).reports
    assert (report.sampled_count, report.failed_count, report.compared_count) == (5, 5, 0)
