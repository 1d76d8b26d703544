"""What the commands say."""

import json
import math

import numpy as np
import pytest

from fitserve_client.models import Model, ModelVersion, VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.reports import Report, details_report, json_value, models_report, prediction_report
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import Scores, Task, TaskKind

ONE_OF_N = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("shirt", "boot"))
ANY_OF_N = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("joy", "anger"))


def _details(task: Task | None = None, max_batch_size: int = 8) -> VersionDetails:
    version = ModelVersion(2, "READY", "", True, "CPUExecutionProvider", (), "", max_batch_size, 1.0)
    return VersionDetails("m", version, (), (), task)


def _lines(report, width=None):
    json.dumps(report.document, allow_nan=False)
    return report.lines(width)


def test_models_are_listed_a_row_per_version():
    ready = ModelVersion(
        2, "READY", "", True, "CPUExecutionProvider", ("stable",), "regression", 8, 9.5, joining="joinable"
    )
    failed = ModelVersion(3, "FAILED", "file 'model.onnx': \x1b[31m", False, "", (), "", 0, 0.0)
    assert _lines(models_report([Model("lenet", (ready, failed)), Model("none", ())])) == [
        "model  version  state        labels  task        provider  verified  joining   reason",
        "lenet        2  READY        stable  regression  CPU       yes       joinable",
        "lenet        3  FAILED                                                         file 'model.onnx': \\x1b[31m",
        "none            no versions",
    ]


def test_an_empty_server_says_what_to_do():
    report = models_report([])
    assert report.document == {"models": []}
    assert "fitserve-export" in _lines(report)[0]


def test_a_version_is_shown_with_what_was_inferred():
    version = ModelVersion(3, "READY", "", False, "CPUExecutionProvider", ("stable",), "", 8, 9.5)
    inputs = (TensorSpec("image", "FP32", ("B", 1, None)), TensorSpec("scale", "FP32", None, is_optional=True))
    outputs = (TensorSpec("y", "FP32", ("B",)),)
    details = VersionDetails("m", version, inputs, outputs, ANY_OF_N, '{"loss": NaN}', "max_batch_size = 8\n")
    report = details_report(details)
    assert _lines(report) == [
        "m version 3 is READY: CPUExecutionProvider, labels stable, unverified: no certificate",
        "multi_label by probabilities in 'y': joy, anger",
        "        name   datatype  shape",
        "input   image  FP32      (B, 1, ?)",
        "input   scale  FP32      any, may be left out",
        "output  y      FP32      (B,)",
        "",
        "max_batch_size = 8",
    ]
    assert report.document["manifest"] == {"loss": "NaN"}
    assert report.document["task"]["kind"] == "multi_label"


def test_a_version_that_failed_is_shown_with_its_reason():
    version = ModelVersion(3, "FAILED", "no model.onnx", False, "", (), "", 0, 0.0)
    report = details_report(VersionDetails("m", version, (), (), None, "no JSON"))
    assert _lines(report)[0] == "m version 3 is FAILED: no model.onnx"
    assert report.document["manifest"] == "no JSON"


def test_class_names_stand_beside_the_answers():
    scores = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    report = prediction_report(Prediction("m", 2, {"y": scores}), _details(ONE_OF_N), row_limit=1, notes=["n"])
    assert _lines(report) == [
        "m version 2",
        "example  class  probability  second        third",
        "      0  boot        75.0 %  shirt 25.0 %",
        "… and 1 more: --rows N shows more of them, --json all",
    ]
    assert report.notes == ["n"]
    assert report.document["answers"][1][0]["name"] == "shirt"
    assert report.document["answers"][1][0]["probability"] == pytest.approx(0.9)
    assert report.document["outputs"]["y"]["shape"] == [2, 2]


def test_multi_label_answers_name_what_is_predicted():
    scores = np.array([[0.75, 0.5], [0.1, 0.2]])
    report = prediction_report(Prediction("m", 2, {"y": scores}), _details(ANY_OF_N), row_limit=5, notes=[])
    assert [line.strip() for line in _lines(report)[2:]] == ["0  joy 75.0 %, anger 50.0 %", "1  none"]


def test_values_are_shown_where_there_are_no_classes():
    outputs = {"y": np.array([0.5, np.nan], np.float32), "z": np.arange(20).reshape(2, 10)}
    report = prediction_report(Prediction("m", 2, outputs), _details(), row_limit=5, notes=[])
    assert [line.split() for line in _lines(report)[1:]] == [
        ["example", "y", "z"],
        ["0", "0.5", *["0,", "1,", "2,", "3,", "4,", "5,", "6,", "7,", "…", "(10", "values)"]],
        ["1", "nan", *["10,", "11,", "12,", "13,", "14,", "15,", "16,", "17,", "…", "(10", "values)"]],
    ]
    assert report.document["outputs"]["y"]["data"] == [0.5, "NaN"]


@pytest.mark.parametrize(
    "outputs", [{"y": np.array(0.5), "t": np.array([b"ok\xff"], object)}, {"y": np.zeros(2), "t": np.zeros(3)}]
)
def test_outputs_without_a_common_batch_are_listed_by_name(outputs):
    report = prediction_report(Prediction("m", 2, outputs), _details(), row_limit=5, notes=[])
    assert [line.split()[0] for line in _lines(report)[1:]] == ["output", "y", "t"]


def test_an_output_that_was_not_asked_for_has_no_class_names():
    report = prediction_report(Prediction("m", 2, {"z": np.zeros((1, 2))}), _details(ONE_OF_N), row_limit=5, notes=[])
    assert "answers" not in report.document


def test_numbers_that_json_cannot_say_are_strings():
    assert json_value([math.nan, math.inf, -math.inf, 1.5, b"a\xff", {"k": (1,)}]) == [
        "NaN",
        "Infinity",
        "-Infinity",
        1.5,
        "a\\xff",
        {"k": [1]},
    ]


def test_what_a_server_says_moves_no_cursor_and_makes_no_line():
    report = Report({}, ("name",), [["a\x1b[2J"]], above=["b\nforged"], below=["c\u202e\x9b31m"])
    assert _lines(report) == ["b\\nforged", "name", "a\\x1b[2J", "c\\u202e\\x9b31m"]
