"""The manifest: what was written is read, and what is wrong is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.files import UnsafeFileError
from fitserve_contract.manifest import Manifest, ManifestError, TensorSpec, read_manifest
from fitserve_contract.repository import MANIFEST_FILE
from fitserve_contract.tasks import Scores, Task, TaskKind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
SECTION = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
SPEC = st.builds(
    TensorSpec,
    st.text(max_size=8),
    st.sampled_from(sorted(NUMPY_DTYPES)),
    st.none() | st.lists(st.none() | st.text(max_size=4) | st.integers(0, 2**40), max_size=4).map(tuple),
    st.booleans(),
)
TASK = st.sampled_from(
    [
        None,
        Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b")),
        Task(TaskKind.MULTI_LABEL, "p", Scores.PROBABILITIES, ("a",)),
        Task(TaskKind.REGRESSION, "y", Scores.VALUES),
    ]
)


def document(**changes: Any) -> bytes:
    manifest = Manifest("m", "2026-01-01T00:00:00Z", (TensorSpec("x", "FP32", ("B", 3)),), ())
    return json.dumps({**json.loads(manifest.to_bytes()), **changes}).encode()


@given(st.builds(Manifest, st.text(), st.text(), st.tuples(SPEC), st.tuples(SPEC, SPEC), TASK, SECTION, SECTION))
def test_what_was_written_is_read(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_figure_that_json_cannot_say_is_refused(figure: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Manifest("m", "", (), (), verification={"max_abs_diff": figure}).to_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "manifest.schema_version: expected 1, got 2"),
        ({"model": 3}, "manifest.model: expected a string, got int"),
        ({"inputs": {}}, "manifest.inputs: expected a list, got dict"),
        ({"inputs": [3]}, r"manifest.inputs\[0\]: expected an object, got int"),
        (
            {"inputs": [{"name": "x", "datatype": "FP31", "shape": []}]},
            r"inputs\[0\].datatype: expected one of .*'FP31'",
        ),
        (
            {"outputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}]},
            r"outputs\[0\].shape: expected a list of sizes",
        ),
        ({"outputs": [{"name": "x", "datatype": "FP32", "shape": [True]}]}, r"outputs\[0\].shape"),
        ({"task": "classification"}, "manifest.task: expected an object, got str"),
        ({"task": {"kind": "classification"}}, "manifest.task: expected a key 'output'"),
        ({"task": {"kind": "guessing", "output": "y", "scores": "logits"}}, "manifest.*guessing"),
        ({"verification": []}, "manifest.verification: expected an object, got list"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.from_bytes(document(**changes))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_a_manifest_error(content: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(content)


def test_deep_nesting_is_refused_and_no_crash() -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(b"[" * 100_000)


def test_folder_without_a_manifest_has_none_and_a_link_is_refused(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "elsewhere").write_bytes(document())
    (tmp_path / MANIFEST_FILE).symlink_to("elsewhere")
    with pytest.raises(UnsafeFileError):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).unlink()
    (tmp_path / MANIFEST_FILE).write_bytes(document())
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.inputs == (TensorSpec("x", "FP32", ("B", 3)),)


@pytest.mark.parametrize(
    ("kind", "scores", "names"),
    [
        (TaskKind.REGRESSION, Scores.LOGITS, ()),
        (TaskKind.CLASSIFICATION, Scores.VALUES, ("a",)),
        (TaskKind.MULTI_LABEL, Scores.LOGITS, ("a",)),
        (TaskKind.CLASSIFICATION, Scores.LOGITS, ()),
        (TaskKind.REGRESSION, Scores.VALUES, ("a",)),
    ],
)
def test_task_whose_parts_do_not_fit_is_refused(kind: TaskKind, scores: Scores, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="task: expected"):
        Task(kind, "y", scores, names)
