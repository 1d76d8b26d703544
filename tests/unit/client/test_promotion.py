"""What a promotion is decided by, and what the client makes of the server's answers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve.control.v1 import control_pb2 as pb
from fitserve_client import control
from fitserve_client.errors import FailedPreconditionError, NotFoundError
from fitserve_client.models import ModelVersion, VersionDetails
from fitserve_client.operations import Operation
from fitserve_client.promotion import Criteria, Showing, Verdict, percentile_ms, zero_inputs
from fitserve_contract.labels import Action, LabelMove
from fitserve_contract.manifest import TensorSpec


def verdict(quality: float, p99_ms: float, *, drop: float = 0.005, ratio: float = 1.2) -> Verdict:
    """Against an incumbent of 0.9 and 2 ms."""
    return Verdict(
        "m", "accuracy", 1000, Showing(1, 0.9, 1.0, 2.0), Showing(2, quality, 1.0, p99_ms), Criteria(drop, ratio)
    )


@pytest.mark.parametrize(
    ("quality", "p99_ms", "objections"),
    [
        (0.9, 2.0, ()),
        (0.95, 1.0, ()),
        (0.895, 2.4, ()),
        (0.894, 2.0, ("accuracy drops by 0.006, allowed 0.005",)),
        (0.9, 2.5, ("p99 is 1.25 times as long, allowed 1.2",)),
        (0.8, 4.0, ("accuracy drops by 0.1, allowed 0.005", "p99 is 2 times as long, allowed 1.2")),
        (math.nan, 2.0, ("accuracy drops by nan, allowed 0.005",)),
    ],
)
def test_a_verdict_objects_to_what_is_not_earned(quality: float, p99_ms: float, objections: tuple[str, ...]) -> None:
    found = verdict(quality, p99_ms)
    assert found.objections == objections
    json.dumps(found.figures(), allow_nan=False)


@pytest.mark.parametrize("values", [(-0.1, 1.2, 1000), (math.nan, 1.2, 1000), (0.0, 0.0, 1000), (0.0, 1.0, 99)])
def test_criteria_that_are_none_are_refused(values: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Criteria(*values)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=300), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_time_that_enough_do_not_exceed(times_s: list[float], share: float) -> None:
    found_s = percentile_ms(times_s, share) / 1e3
    nearest = min(times_s, key=lambda time_s: abs(time_s - found_s))
    assert sum(time_s <= nearest for time_s in times_s) >= share * len(times_s) - 1e-9
    assert sum(time_s < nearest for time_s in times_s) < share * len(times_s) + 1e-9


def test_an_example_of_zeros_suits_the_signature() -> None:
    version = ModelVersion(1, "READY", "", True, "", (), "", 8, 0.0, 0.0)
    inputs = (
        TensorSpec("ids", "INT64", ("B", "S")),
        TensorSpec("image", "FP32", (None, 1, 4)),
        TensorSpec("text", "BYTES", ("B",)),
        TensorSpec("scale", "FP32", ()),
        TensorSpec("extra", "FP32", ("B",), is_optional=True),
    )
    made = zero_inputs(VersionDetails("m", version, inputs, (), None))
    assert {name: (array.shape, array.dtype) for name, array in made.items()} == {
        "ids": ((1, 16), np.dtype(np.int64)),
        "image": ((1, 1, 4), np.dtype(np.float32)),
        "text": ((1,), np.dtype(object)),
        "scale": ((), np.dtype(np.float32)),
    }


def answered(operation: Operation[Any], *answers: Any) -> tuple[list[Any], Any]:
    """Drives an operation with a server's answers; gives the requests and the result."""
    requests: list[Any] = []
    answer = None
    for following in (*answers, None):
        try:
            call = operation.send(answer)
        except StopIteration as stop:
            return requests, stop.value
        requests.append(call.request)
        answer = following
    raise AssertionError("expected the operation to end")


def moves(*steps: tuple[int, int]) -> list[pb.LabelMove]:
    return [
        pb.LabelMove(label="stable", from_version=before, to_version=after, action=pb.LABEL_ACTION_MOVE)
        for before, after in steps
    ]


def test_a_rollback_goes_where_the_log_says_and_nowhere_else() -> None:
    history = pb.ListLabelMovesResponse(labels={"stable": 3}, moves=moves((0, 1), (1, 3)))
    done = pb.SetLabelResponse(
        move=pb.LabelMove(label="stable", from_version=3, to_version=1, action=pb.LABEL_ACTION_ROLLBACK)
    )
    requests, move = answered(control.rollback("m"), history, done)
    assert (requests[1].version, requests[1].expected_version) == (1, 3)
    assert (requests[1].action, requests[1].why) == (pb.LABEL_ACTION_ROLLBACK, "rollback from version 3")
    assert "@" in requests[1].who
    assert move == LabelMove("stable", 3, 1, action=Action.ROLLBACK)
    first = pb.ListLabelMovesResponse(labels={"stable": 1}, moves=moves((0, 1)))
    with pytest.raises(FailedPreconditionError, match="expected an earlier version in its log, found none"):
        answered(control.rollback("m"), first)
    with pytest.raises(NotFoundError, match="got 'canary'"):
        answered(control.rollback("m", "canary"), first)


def test_a_label_is_moved_from_where_it_is_found() -> None:
    done = pb.SetLabelResponse(move=moves((2, 5))[0])
    history = pb.ListLabelMovesResponse(labels={"stable": 2})
    requests, _ = answered(control.set_label("m", "stable", 5, figures={"a": 1}, who="ann"), history, done)
    assert (requests[1].expected_version, requests[1].figures_json, requests[1].who) == (2, '{"a": 1}', "ann")
    requests, _ = answered(control.set_label("m", "stable", 5, expected=0), done)
    assert requests[0].expected_version == 0


def test_what_a_newer_server_says_is_read_as_far_as_it_is_known() -> None:
    strange = pb.LabelMove(label="stable", to_version=1, figures_json="[1")
    # Field 7, `action`, with a value that this client does not know.
    strange.MergeFromString(bytes([7 << 3, 77]))
    _, history = answered(control.label_history("m"), pb.ListLabelMovesResponse(moves=[strange]))
    assert history.moves == (LabelMove("stable", 0, 1),)
