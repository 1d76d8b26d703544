"""What evaluate and compare print: figures with intervals, two versions side by side, and JSON."""

import json

import numpy as np

from fitserve_client.comparison import Comparison
from fitserve_client.evaluation import Evaluation
from fitserve_client.models import ModelVersion, VersionDetails
from fitserve_client.reports_scores import comparison_report, evaluation_report
from fitserve_contract.pairing import pair
from fitserve_contract.scoring import score
from fitserve_contract.tasks import Scores, Task, TaskKind

ONE_OF_N = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("shirt", "boot"))
ANY_OF_N = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("joy", "anger"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)


def _details(task: Task | None = None) -> VersionDetails:
    version = ModelVersion(2, "READY", "", True, "CPUExecutionProvider", (), "", 8, 1.0)
    return VersionDetails("m", version, (), (), task)


def _lines(report, width=None):
    json.dumps(report.document, allow_nan=False)
    return report.lines(width)


def _comparison(task: Task, first, second, labels) -> Comparison:
    sides = (Evaluation("m", index, score(task, scores, labels), 1) for index, scores in ((1, first), (2, second)))
    return Comparison(*sides, pair(task, first, second, labels, np.arange(len(labels))))


def test_an_evaluation_of_classes():
    sums = score(ONE_OF_N, np.array([[0.0, 0.0], [0.0, 1.0], [np.nan, 0.0]]), np.array([1, 1, 0]))
    report = evaluation_report(Evaluation("m", 2, sums, 1), _details(ONE_OF_N))
    assert _lines(report) == [
        "m version 2, 3 examples in 1 call",
        "accuracy           0.3333  (1 of 3; 95 % interval 0.0615..0.7923)",
        "balanced accuracy  0.2500  (mean recall of the classes)",
        "macro F1           0.3333",
        "loss               0.503204",
        "ECE                0.3845",
        "ties: 1",
        "with NaN: 1",
        "class  examples  recall   95 % interval  precision",
        "shirt         1  0.0000  0.0000..0.7935     0.0000",
        "boot          2  0.5000  0.0945..0.9055     1.0000",
    ]
    assert [(each["name"], each["recall"]) for each in report.document["classes"]] == [("shirt", 0.0), ("boot", 0.5)]
    assert report.document["sums"]["correct_count"] == 1
    assert report.document["sums"]["loss"]["fraction_bits"] == 40


def test_an_evaluation_of_labels_has_a_row_per_class():
    sums = score(ANY_OF_N, np.array([[0.9, 0.1], [0.9, 0.9]]), np.array([[1, 0], [1, 0]]))
    lines = _lines(evaluation_report(Evaluation("m", 2, sums, 3), _details(ANY_OF_N)))
    assert lines[0] == "m version 2, 2 examples in 3 calls"
    assert lines[1:4] == [
        "macro F1     0.5000",
        "micro F1     0.8000",
        "exact match  0.5000  (1 of 2; 95 % interval 0.0945..0.9055)",
    ]
    assert lines[5:] == [
        "class      F1  precision  recall",
        "joy    1.0000     1.0000  1.0000",
        "anger  0.0000     0.0000  0.0000",
    ]
    nameless = _lines(evaluation_report(Evaluation("m", 2, sums, 3), _details()))
    assert [line.split()[0] for line in nameless[-2:]] == ["0", "1"]


def test_an_evaluation_of_values():
    task = Task(TaskKind.REGRESSION, "y", Scores.VALUES)
    sums = score(task, np.array([1.0, np.inf]), np.array([2.0, 2.0]))
    report = evaluation_report(Evaluation("m", 2, sums, 1), _details(task))
    assert _lines(report)[1:] == ["MSE  1", "MAE  1", "R²   nan", "not finite: 1"]
    assert report.document["figures"] == {"mse": 1.0, "mae": 1.0, "r_squared": "NaN"}


def test_a_comparison_of_classes():
    first, second = np.eye(2)[[0] * 8 + [1] * 2], np.eye(2)[[0] * 10]
    report = comparison_report(_comparison(ONE_OF_N, first, second, np.zeros(10, int)))
    lines = _lines(report)
    assert lines[0] == "m version 1 against m version 2, 10 examples"
    assert lines[1].split() == ["first", "second", "difference"]
    assert lines[2].split() == ["accuracy", "0.8", "1", "+0.2"]
    assert lines[-4] == "right: both 8, first alone 0, second alone 2, neither 0"
    assert lines[-3].startswith("share right: +0.2000; 95 % interval ")
    assert lines[-2:] == ["McNemar: exact p 0.5, mid-p 0.25", "answered differently: 2: 8, 9"]
    assert report.document["mcnemar"]["exact_p"] == 0.5
    assert report.document["bootstrap"] is None


def test_a_comparison_of_values_has_a_bootstrap_and_no_test():
    labels = np.zeros(30)
    report = comparison_report(_comparison(VALUES, labels + 2, labels + 1, labels))
    lines = _lines(report)
    assert lines[-2] == "mean loss: -3; 95 % interval -3..-3 of a paired bootstrap"
    assert lines[-1] == "answered differently: 30: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
    assert (report.document["mcnemar"], report.document["share_difference"]) == (None, None)
