"""What is measured, and the random batches it is measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.builders import bare_version, fixed_shape, gather, linear

from fitserve_benchmarks.subject import SubjectError, open_subject, random_batches
from fitserve_contract.certificate import HELD_OUT_FILE, HeldOutExamples


def test_the_highest_version_is_measured_unless_one_is_named(tmp_path: Path) -> None:
    for version in (1, 2):
        bare_version(tmp_path, "m", version, linear(seed=version))
    assert open_subject(tmp_path, "m").version == 2
    assert open_subject(tmp_path, "m", 1).onnx_path == tmp_path / "m" / "1" / "model.onnx"


def test_inputs_come_from_the_file_itself(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, linear(rows=5))
    (spec,) = open_subject(tmp_path, "m").inputs
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.float32, ("B", 5))


@pytest.mark.parametrize("version", [None, 7])
def test_a_version_that_is_not_there_is_named(tmp_path: Path, version: int | None) -> None:
    if version is not None:
        bare_version(tmp_path, "m", 1, linear())
    with pytest.raises(SubjectError, match=r"model 'm'.*expected (a version|it) in repository"):
        open_subject(tmp_path, "m", version)


def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, b"no model at all")
    with pytest.raises(SubjectError, match="expected a model that ONNX Runtime loads"):
        open_subject(tmp_path, "m")


def test_a_model_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, fixed_shape())
    with pytest.raises(SubjectError, match="input 'x': expected a free first axis that counts the examples"):
        open_subject(tmp_path, "m")


def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, linear())
    with pytest.raises(SubjectError, match="expected a finished run"):
        open_subject(tmp_path, "m", run_dir=tmp_path / "nothing")


def test_batches_differ_from_each_other_and_come_out_the_same_again(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, linear(rows=3))
    subject = open_subject(tmp_path, "m")
    batches = random_batches(subject, 4, 5)
    assert {batch["x"].tobytes() for batch in batches} == {
        batch["x"].tobytes() for batch in random_batches(subject, 4, 5)
    }
    assert len({batch["x"].tobytes() for batch in batches}) == 5
    assert all(batch["x"].shape == (4, 3) and batch["x"].dtype == np.float32 for batch in batches)


def test_integers_are_drawn_from_the_held_out_examples(tmp_path: Path) -> None:
    examples = HeldOutExamples({"index": np.array([2, 4, 4])}, np.zeros(3, np.int64), np.arange(3))
    (bare_version(tmp_path, "m", 1, gather(classes=5)).folder / HELD_OUT_FILE).write_bytes(examples.to_bytes())
    batches = random_batches(open_subject(tmp_path, "m"), 50, 2)
    assert set(np.concatenate([batch["index"] for batch in batches])) == {2, 4}


def test_integers_are_not_invented(tmp_path: Path) -> None:
    bare_version(tmp_path, "m", 1, gather())
    with pytest.raises(SubjectError, match="input 'index': expected examples to draw from"):
        random_batches(open_subject(tmp_path, "m"), 1, 1)
