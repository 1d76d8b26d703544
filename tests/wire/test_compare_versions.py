"""CompareVersions, and Evaluate of held-out examples, over the wire: one pass, paired, exact."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import helper
from tests import builders
from tests.wire.serving import WAIT_S, refused, served_stub, serving, tensor

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract.certificate import HeldOutExamples
from fitserve_contract.pairing import pair
from fitserve_contract.repository import MANIFEST_FILE
from fitserve_contract.scoring import score
from fitserve_contract.sums import ClassificationSums
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array
from fitserve_service.codec_sums import evaluate_response
from fitserve_service.server import Server

COUNT = 700
"""More examples than one run takes."""

TASK = builders.classes_task(count=2)
LABELS = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)


def shifted(offset: float) -> bytes:
    """x FP32 (B, 2) -> y = x with `offset` added to the first column."""
    added = np.array([offset, 0], np.float32)
    nodes = [helper.make_node("Add", ["x", "added"], ["y"])]
    return builders.model(nodes, [builders.value("x")], [builders.value("y")], {"added": added})


def examples(seed: int = 0, task: Task = TASK) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    rows = random.random((COUNT, 2), np.float32)
    if task.kind is TaskKind.CLASSIFICATION:
        return rows, random.integers(0, 2, COUNT)
    return rows, random.random((COUNT, 2)) < 0.5 if task is LABELS else random.random((COUNT, 2), np.float32)


def publish(root: Path, offset: float, task: Task = TASK, name: str = "m") -> None:
    rows, labels = examples(task=task)
    held_out = HeldOutExamples({"x": rows}, labels, np.arange(COUNT) * 2)
    builders.certified_version(root, name, shifted(offset), {"x": rows[:4]}, task=task, held_out=held_out)


def spec(version: int, name: str = "m") -> tensor_pb2.ModelSpec:
    return tensor_pb2.ModelSpec(name=name, version=version)


def compare_request(**changes: Any) -> pb.CompareVersionsRequest:
    return pb.CompareVersionsRequest(**{"first": spec(1), "second": spec(2), **changes})


def served_counts(server: Server) -> list[int]:
    versions = server.registry.model("m").versions
    return [version.served.statistics.execution_count for version in versions if version.served]


def test_held_out_examples_are_evaluated_on_the_server_in_batches(tmp_path: Path) -> None:
    publish(tmp_path, 0.25)
    rows, labels = examples()
    expected = score(TASK, rows + np.array([0.25, 0], np.float32), labels)
    assert isinstance(expected, ClassificationSums)
    with serving(tmp_path) as server, served_stub(server) as stub:
        request = pb.EvaluateRequest(model=tensor_pb2.ModelSpec(name="m"), dataset=pb.DATASET_HELD_OUT)
        answer = stub.Evaluate(request, timeout=WAIT_S)
        assert served_counts(server) == [3]
    found = answer.classification
    assert (answer.model_version, found.example_count, found.correct_count) == (1, COUNT, expected.correct_count)
    assert int(found.loss.units) == expected.loss.units
    assert tuple(found.confusion_counts) == expected.confusion_counts
    assert tuple(found.top_counts) == expected.top_counts
    bins = [(each.example_count, each.correct_count, int(each.confidence.units)) for each in found.calibration_bins]
    totals = [total.units for total in expected.bin_confidences]
    assert bins == list(zip(expected.bin_counts, expected.bin_correct_counts, totals, strict=True))


@pytest.mark.parametrize("task", [TASK, LABELS, VALUES])
@pytest.mark.parametrize("is_held_out", [False, True])
def test_two_versions_are_compared_in_one_pass(tmp_path: Path, task: Task, is_held_out: bool) -> None:
    for offset in (0.0, 0.25):
        publish(tmp_path, offset, task)
    (tmp_path / "m" / "model.toml").write_text("versions = [1, 2]\n")
    rows, labels = examples(task=task)
    second = rows + np.array([0.25, 0], np.float32)
    indices = np.arange(COUNT) * (2 if is_held_out else 1)
    expected = pair(task, rows, second, labels, indices)
    brought = {"inputs": [tensor("x", rows)], "labels": tensor("", labels)}
    with serving(tmp_path) as server, served_stub(server) as stub:
        request = compare_request(**({"dataset": pb.DATASET_HELD_OUT} if is_held_out else brought))
        answer = stub.CompareVersions(request, timeout=WAIT_S)
        assert served_counts(server) == [3, 3]
    paired = answer.paired
    counts = ("example_count", "both_count", "first_only_count", "second_only_count", "neither_count")
    for field in (*counts, "difference_count"):
        assert getattr(paired, field) == getattr(expected, field)
    assert tuple(paired.difference_indices) == expected.difference_indices
    assert (tuple(paired.first_losses), tuple(paired.second_losses)) == (expected.first_losses, expected.second_losses)
    for response, scores in ((answer.first, rows), (answer.second, second)):
        assert response == evaluate_response("m", response.model_version, score(task, scores, labels))
    assert (answer.first.model_version, answer.second.model_version) == (1, 2)
    assert answer.first.WhichOneof("sums") == answer.second.WhichOneof("sums") == task.kind.value


def test_versions_of_different_tasks_are_not_compared(tmp_path: Path) -> None:
    publish(tmp_path, 0.0)
    publish(tmp_path, 0.0, LABELS, "labels")
    publish(tmp_path, 0.0, replace(TASK, class_names=("class 1", "class 0")), "renamed")
    builders.bare_version(tmp_path, "bare", 1, shifted(0.0))
    expected = "expected the task of model 'm' version 1, classification of 2 classes, got"
    with serving(tmp_path) as server, served_stub(server) as stub:
        for name, text in (
            ("labels", f"model 'labels' version 1: {expected} multi_label of 2 classes"),
            ("renamed", f"model 'renamed' version 1: {expected} classification of 2 classes of other names"),
        ):
            found = refused(stub.CompareVersions, compare_request(second=spec(1, name), dataset=pb.DATASET_HELD_OUT))
            assert found[:2] == ("FAILED_PRECONDITION", "TASK_MISMATCH")
            assert found[2].startswith(text)
        found = refused(stub.CompareVersions, compare_request(second=spec(1, "bare"), dataset=pb.DATASET_HELD_OUT))
        assert found[:2] == ("FAILED_PRECONDITION", "NO_TASK")
        canary = tensor_pb2.ModelSpec(name="m", label="canary")
        for second, reason in ((spec(9), "VERSION_NOT_FOUND"), (canary, "LABEL_NOT_FOUND")):
            found = refused(stub.CompareVersions, compare_request(second=second, dataset=pb.DATASET_HELD_OUT))
            assert found[:2] == ("NOT_FOUND", reason)
        assert served_counts(server) == [0]


def test_a_version_without_held_out_examples_is_not_evaluated_on_them(tmp_path: Path) -> None:
    builders.publish_version(tmp_path, "m", shifted(0.0), task=TASK)
    builders.bare_version(tmp_path, "bare", 1, shifted(0.0))
    with serving(tmp_path) as server, served_stub(server) as stub:
        request = pb.EvaluateRequest(model=tensor_pb2.ModelSpec(name="m"), dataset=pb.DATASET_HELD_OUT)
        text = "model 'm' version 1: expected held-out examples in its folder, found none"
        assert refused(stub.Evaluate, request) == ("FAILED_PRECONDITION", "NO_HELD_OUT", text)
        request.model.name = "bare"
        assert refused(stub.Evaluate, request)[:2] == ("FAILED_PRECONDITION", "NO_TASK")


def test_examples_beside_a_dataset_and_unknown_datasets_are_refused(tmp_path: Path) -> None:
    publish(tmp_path, 0.0)
    model = tensor_pb2.ModelSpec(name="m")
    rows, labels = [tensor("x", np.zeros((1, 2), np.float32))], tensor("", np.zeros(1, np.int64))
    with serving(tmp_path) as server, served_stub(server) as stub:
        for brought in ({"inputs": rows}, {"labels": labels}):
            request = pb.EvaluateRequest(model=model, dataset=pb.DATASET_HELD_OUT, **brought)
            text = "inputs and labels: expected none beside a dataset, got some"
            assert refused(stub.Evaluate, request) == ("INVALID_ARGUMENT", "INVALID_REQUEST", text)
        found = refused(stub.Evaluate, pb.EvaluateRequest(model=model, dataset=7))
        text = "dataset: expected DATASET_HELD_OUT or none, got 7"
        assert found == ("INVALID_ARGUMENT", "INVALID_REQUEST", text)
        assert served_counts(server) == [0]


@pytest.mark.parametrize(
    ("rows", "labels", "reason", "text"),
    [
        (3, np.array([0, 1]), "INVALID_INPUT", "input 'x': expected a first axis of 2 examples, as there are labels"),
        (2, np.array([0, 2]), "INVALID_LABELS", "model 'm' version 1: labels: expected 0..1, got 2"),
        (0, np.zeros(0, np.int64), "INVALID_LABELS", "labels: expected 1..65536 examples in a comparison, got 0"),
        (1, np.array(0), "INVALID_LABELS", "labels: expected 1..65536 examples in a comparison, got 0"),
        (1, np.zeros(65537, np.int64), "BATCH_TOO_LARGE", "labels: expected 1..65536 examples"),
    ],
)
def test_examples_that_do_not_fit_are_refused_before_anything_runs(
    tmp_path: Path, rows: int, labels: Array, reason: str, text: str
) -> None:
    publish(tmp_path, 0.0)
    request = compare_request(
        second=spec(1), inputs=[tensor("x", np.zeros((rows, 2), np.float32))], labels=tensor("", labels)
    )
    with serving(tmp_path) as server, served_stub(server) as stub:
        found = refused(stub.CompareVersions, request)
        assert found[:2] == ("INVALID_ARGUMENT", reason)
        assert found[2].startswith(text)
        assert served_counts(server) == [0]


def test_a_version_that_fails_the_replay_never_displaces_the_one_that_serves(tmp_path: Path) -> None:
    publish(tmp_path, 0.0)
    staged = tmp_path / "aside"
    publish(staged, 0.0)
    path = builders.version_path(staged, "m", 1)
    builders.rewrite(path, "model.onnx", shifted(0.5))
    with serving(tmp_path) as server, served_stub(server) as stub:
        path.folder.rename(tmp_path / "m" / "2")
        states = wait_for_failure(server)
        request = pb.PredictRequest(
            model=tensor_pb2.ModelSpec(name="m"), inputs=[tensor("x", np.ones((1, 2), np.float32))]
        )
        assert stub.Predict(request, timeout=WAIT_S).model_version == 1
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(pb.PredictRequest(model=spec(2), inputs=request.inputs), timeout=WAIT_S)
    reason = states[2]
    assert "output 'y' at batch size 4: expected max|answer - torch float64| <= 1e-05, got 0.5" in reason
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "got 0.5" in caught.value.details()
    assert (tmp_path / "m" / "2" / MANIFEST_FILE).exists()


def wait_for_failure(server: Server) -> dict[int, str]:
    """Waits on the registry's own news until version 2 has FAILED; gives the reasons by version."""
    changed = threading.Event()
    unsubscribe = server.registry.subscribe(lambda _: changed.set())
    try:
        while True:
            versions = server.registry.model("m").versions
            reasons = {version.version: version.reason for version in versions}
            if reasons.get(2):
                return reasons
            assert changed.wait(WAIT_S)
            changed.clear()
    finally:
        unsubscribe()
