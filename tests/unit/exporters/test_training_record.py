"""A training record becomes JSON values; the slips are in test_slips."""

import json
from pathlib import PurePosixPath

import numpy as np
import torch

from fitserve_exporters.candidate.training_record import json_record


def test_tensors_and_numpy_values_become_numbers_and_lists() -> None:
    record = {
        "loss": torch.tensor(0.5, requires_grad=True),
        "accuracy": np.float32(0.25),
        "curve": torch.tensor([1, 2]),
        "confusion": np.eye(2, dtype=np.int64),
        "is_best": np.bool_(True),
        "optimizer": {"betas": (0.5, 0.75), "path": PurePosixPath("a/b"), "name": np.str_("adam"), "none": None},
    }
    converted = json_record(record)
    assert json.loads(json.dumps(converted)) == {
        "loss": 0.5,
        "accuracy": 0.25,
        "curve": [1, 2],
        "confusion": [[1, 0], [0, 1]],
        "is_best": True,
        "optimizer": {"betas": [0.5, 0.75], "path": "a/b", "name": "adam", "none": None},
    }
    assert record["optimizer"] == {"betas": (0.5, 0.75), "path": PurePosixPath("a/b"), "name": "adam", "none": None}


def test_one_object_in_two_places_is_no_loop() -> None:
    shared = [1.0]
    assert json_record({"a": shared, "b": shared}) == {"a": [1.0], "b": [1.0]}
