"""Every slip in a call of export() is an ExportError that names the thing and the cure; nothing is left behind."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fitserve_exporters
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.errors import ExportError


class Calls(nn.Module):
    """A linear layer of 4 to 4, and what a function makes of its answer."""

    def __init__(self, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(4, 4), change

    def forward(self, x: torch.Tensor) -> Any:
        return self.change(self.layer(x))


class Two(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


class Keyword(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return x * scale


def linear() -> nn.Module:
    return nn.Linear(4, 2)


def quietly(make: Callable[[], Any]) -> Any:
    """Makes what torch warns of while it is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


X = torch.arange(16.0).reshape(4, 4) / 16
SPARSE = quietly(lambda: X.to_sparse())
QUANTIZED = quietly(lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8))
QUANTIZED_MODULE = quietly(lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(linear())))
TEXT = np.array([["a", "b"]])
CLASSES = Task(TaskKind.CLASSIFICATION, "output", Scores.LOGITS, ("a", "b"))
THREE = Task(TaskKind.CLASSIFICATION, "output", Scores.LOGITS, ("a", "b", "c"))
TAGS = Task(TaskKind.TOKEN_CLASSIFICATION, "output", Scores.LOGITS, ("O", "B", "I"))
VALUES = Task(TaskKind.REGRESSION, "output", Scores.VALUES)
LABELS = torch.tensor([0, 1, 0, 1])
LOOP: list[Any] = []
LOOP.append(LOOP)

Slip = tuple[Any, Any, Mapping[str, Any], str]

OUTPUTS: dict[str, Slip] = {
    "a loss": (Calls(lambda y: y.sum()), X, {}, r"got shape \(\) for 5.*such as a loss.*one row per example"),
    "a mean over the batch": (Calls(lambda y: y.mean(0)), X, {}, r"'output': .*one answer for all examples"),
    "squeeze": (Calls(lambda y: y.sum(1, keepdim=True).squeeze()), X, {}, r"name the axis, as in squeeze\(-1\)"),
    "reshape(-1)": (Calls(lambda y: y.reshape(-1)), X, {}, r"joins the batch with another axis.*reshape\(x\.shape"),
    "similarity": (Calls(lambda y: y @ y.T), X, {}, "compares the examples of a batch with each other"),
    "values above 0": (Calls(lambda y: y[y > 0]), torch.randn(5, 4), {}, r"\(B, \.\.\.\), got shape"),
    "a list of rows": (Calls(lambda y: list(y)), X, {}, "expected the same ones for every number of examples|one axis"),
    "a float": (Calls(lambda y: float(y.sum())), X, {}, "'output': expected a tensor, got float"),
    "text in a dict": (
        Calls(lambda y: {"y": y, "unit": "m"}),
        X,
        {},
        "'unit': expected a tensor, got str.*output_names",
    ),
    "a cache": (
        Calls(lambda y: {"y": y, "cache": object()}),
        X,
        {},
        "'cache': expected a tensor, got object.*choose the keys",
    ),
    "None": (Calls(lambda y: None), X, {}, "at least one tensor, got none"),  # noqa: ARG005
    "complex": (Calls(torch.fft.fft), X, {}, r"'output': .*got torch\.complex64; return torch\.view_as_real"),
    "sparse": (Calls(lambda y: y.to_sparse()), X, {}, "expected a dense tensor, got a sparse one.*to_dense"),
    "bfloat16": (Calls(lambda y: y.bfloat16()), X, {}, r"got torch\.bfloat16; return y\.float\(\)"),
    "packed": (
        Calls(lambda y: nn.utils.rnn.pack_sequence([y[0], y[0]])),
        X,
        {},
        "got a PackedSequence; return pad_packed_sequence",
    ),
    "autocast": (Calls(lambda y: (y.bfloat16() * 2).float()), X, {}, "casts to bfloat16.*leave the autocast"),
    "raises": (Calls(lambda y: y["no"]), X, {}, "its forward fails on the example: "),
    "fixed batch": (Calls(lambda y: y.reshape(4, 2, 2)), X, {}, "its forward fails on 5 examples: RuntimeError"),
}

MODULES: dict[str, Slip] = {
    "state dict": (linear().state_dict(), X, {}, r"got a mapping \(OrderedDict\), as of state_dict.*load_state_dict"),
    "function": (lambda x: x, X, {}, r"got a function; wrap it: class Net\(torch\.nn\.Module\)"),
    "class": (nn.Linear, X, {}, r"got the class Linear; give an instance"),
    "path": ("model.pt", X, {}, "got str; load the file and give the module"),
    "none": (None, X, {}, r"expected a torch\.nn\.Module, got NoneType"),
    "scripted": (
        quietly(lambda: torch.jit.trace(linear(), X)),
        X,
        {},
        "got a TorchScript module; give the module",
    ),
    "quantized": (QUANTIZED_MODULE, X, {}, "part '0' is quantized by torch.*ask for the variant int8"),
    "lazy": (quietly(lambda: nn.LazyLinear(2)), X, {}, "'weight' is not initialized.*run the module once"),
    "meta": (nn.Linear(4, 2, device="meta"), X, {}, "'weight' is on the meta device.*load_state_dict"),
}

EXAMPLES: dict[str, Slip] = {
    "none": (linear(), None, {}, r"example: expected a tensor or array \(B, \.\.\.\).*got NoneType"),
    "number": (linear(), 1.5, {}, r"got float '1\.5'; torch\.tensor"),
    "numbers": (linear(), [1.0, 2.0, 3.0, 4.0], {}, "expected one input per parameter of forward"),
    "one number": (linear(), [1.0], {}, "'input': expected a tensor or array .*got float"),
    "text": (linear(), "abc", {}, "got str 'abc'"),
    "array of text": (linear(), TEXT, {}, "expected booleans, integers or floats.*token ids"),
    "objects": (linear(), np.array([[None]]), {}, "expected booleans, integers or floats.*got object"),
    "complex": (linear(), X.to(torch.complex64), {}, "got complex64"),
    "sparse": (linear(), SPARSE, {}, "got a sparse one; give its to_dense"),
    "quantized": (linear(), QUANTIZED, {}, "got a quantized one.*dequantize"),
    "bfloat16": (linear(), X.bfloat16(), {}, r"got torch\.bfloat16; give x\.float\(\)"),
    "float64": (linear(), X.double(), {}, r"weights are torch\.float32: give real inputs of that dtype"),
    "no examples": (linear(), X[:0], {}, "at least 1 example"),
    "no batch": (linear(), torch.tensor(1.0), {}, r"got \(\); one example gets its axis by unsqueeze\(0\)"),
    "unlike batches": (Two(), [X, X[:3]], {}, r"one number of examples in all inputs, got \{'x': 4, 'mask': 3\}"),
    "missing": (Two(), [X], {}, "missing mask; give them in the example"),
    "missing keyword": (Keyword(), {"x": X}, {}, "missing scale"),
    "too many": (linear(), [X, X], {}, r"one input per parameter of forward \(input\), got 2"),
    "unknown name": (linear(), {"input": X, "no": X}, {}, r"parameters of forward \(input\), got \['no'\]"),
    "empty mapping": (linear(), {}, {}, r"expected input names \(str\)"),
    "loader": (linear(), torch.utils.data.DataLoader(X), {}, r"got a DataLoader; give the inputs of one batch"),
}  # fmt: skip

AXES: dict[str, Slip] = {
    "no mapping": (linear(), X, {"free_axes": [1]}, r"expected a mapping of input to \{axis: name\}, got list"),
    "a list": (linear(), X, {"free_axes": {"input": [1]}}, "expected a mapping of axis to name, got list"),
    "unknown input": (linear(), X, {"free_axes": {"x": {1: "n"}}}, "expected inputs of input, got x"),
    "beyond": (linear(), X, {"free_axes": {"input": {2: "n"}}}, r"1 to 1 \(or -1 to -1\), got 2"),
    "the batch": (linear(), X, {"free_axes": {"input": {0: "n"}}}, "the first axis is the batch and always free"),
    "the batch from the end": (linear(), X, {"free_axes": {"input": {-2: "n"}}}, "got -2; the first axis is the batch"),
    "text as axis": (linear(), X, {"free_axes": {"input": {"1": "n"}}}, "expected axes as integers, got '1'"),
    "no name": (linear(), X, {"free_axes": {"input": {1: "my axis"}}}, "letters, digits and _, got 'my axis'"),
    "a size": (linear(), X, {"free_axes": {"input": {1: 4}}}, "letters, digits and _, got 4"),
    "batch": (linear(), X, {"free_axes": {"input": {1: "batch"}}}, "expected another name than 'batch'"),
    "two names": (linear(), X, {"free_axes": {"input": {1: "n", -1: "m"}}}, "one name for axis 1, got 'n' and 'm'"),
    "unlike sizes": (
        Two(), [X, torch.ones(4, 1)], {"free_axes": {"x": {1: "n"}, "mask": {1: "n"}}}, "got 4 in 'x' axis 1 and 1 in",
    ),
}  # fmt: skip

SETTINGS: dict[str, Slip] = {
    "tolerance": (linear(), X, {"tolerance": 1e-3}, r"got float; write Tolerance\(atol=0\.001"),
    "negative tolerance": (linear(), X, {"tolerance": fitserve_exporters.Tolerance(atol=-1.0)}, "expected atol to be"),
    "training": (linear(), X, {"training": [1]}, "training: expected a mapping of names to figures, got list"),
    "an object": (linear(), X, {"training": {"opt": {"sgd": object()}}}, r"training\['opt'\]\['sgd'\].*got object"),
    "nan": (linear(), X, {"training": {"loss": torch.tensor(float("nan"))}}, r"\['loss'\]: expected a finite number"),
    "a key": (linear(), X, {"training": {1: 2}}, "expected text as keys, got 1"),
    "a loop": (linear(), X, {"training": {"l": LOOP}}, "contains itself"),
    "a data set": (linear(), X, {"training": {"x": np.zeros(20_000)}}, "at most 10000 numbers, got 20000"),
    "model name": (linear(), X, {"name": 3}, "model name: expected text, got int"),
    "path in a name": (linear(), X, {"name": "a/b"}, "model name: expected"),
    "seed": (linear(), X, {"seed": -1}, "seed: expected an integer of at least 0, got -1"),
    "real seed": (linear(), X, {"seed": 0.5}, r"seed: expected .*got 0\.5"),
    "one output name": (linear(), X, {"output_names": "y"}, r"output_names: expected a list of names.*\['y'\]"),
    "output names": (linear(), X, {"output_names": ["a", "b"]}, "expected 1 names, .*got 2"),
    "twice": (linear(), X, {"output_names": ["a", "a"]}, "each once"),
    "no output name": (linear(), X, {"output_names": [""]}, "none empty"),
    "input names": (linear(), X, {"input_names": ["a", "b"]}, "input_names: expected 1, .*got 2"),
    "an input's": (linear(), X, {"input_names": ["y"], "output_names": ["y"]}, "expected each once, got y"),
    "repository": (linear(), X, {"repository": 3}, "repository: expected the path of a folder, got 3"),
    "no repository": (linear(), X, {"repository": ""}, "repository: expected the path of a folder"),
    "task": (linear(), X, {"task": "classification"}, "task: expected a Task, got str"),
    "task's output": (linear(), X, {"task": THREE, "output_names": ["y"]}, "expected an output of y, got 'output'"),
    "classes": (linear(), X, {"task": THREE}, r"expected shape \(B, 3\) .*got \(batch, 2\); give one class name"),
    "classes per position": (
        Calls(lambda y: torch.stack((y[:, :3], y[:, 1:]), dim=2)),
        X,
        {"task": TAGS},
        r"expected shape \(B, S, 3\) .*got \(batch, 3, 2\); move the classes to the last axis",
    ),
    "classes chosen": (Calls(lambda y: y.argmax(1)), X, {"task": CLASSES}, "return the scores, not the class"),
    "held out": (linear(), X, {"held_out": X}, r"held_out: expected \(examples, labels\), got Tensor"),
    "three held out": (linear(), X, {"held_out": (X, LABELS, X)}, "got tuple of 3"),
    "held out of another shape": (linear(), X, {"held_out": (X[:, :3], None)}, r"got float32 \(4, 3\)"),
    "labels of another length": (linear(), X, {"held_out": (X, LABELS[:2]), "task": CLASSES}, "labels: expected"),
    "real labels": (linear(), X, {"held_out": (X, LABELS.float()), "task": CLASSES}, "labels: expected integers"),
    "labels out of range": (linear(), X, {"held_out": (X, LABELS + 1), "task": CLASSES}, r"expected 0\.\.1, got 2"),
    "one-hot labels": (linear(), X, {"held_out": (X, torch.eye(2)[LABELS]), "task": CLASSES}, "one class index"),
    "flat values": (linear(), X, {"held_out": (X, LABELS.float()), "task": VALUES}, r"add an axis with y\[:, None\]"),
    "labels as text": (linear(), X, {"held_out": (X, ["a", "b", "a", "b"]), "task": CLASSES}, "by their index"),
}  # fmt: skip

TABLE = {
    f"{title}: {what}": slip
    for title, part in (("output", OUTPUTS), ("module", MODULES), ("example", EXAMPLES), ("axes", AXES), ("", SETTINGS))
    for what, slip in part.items()
}


@pytest.mark.filterwarnings("ignore")  # torch's own on lazy, quantized and scripted modules
@pytest.mark.parametrize("slip", TABLE)
def test_slip_is_one_sentence_with_the_cure_and_leaves_nothing(tmp_path: Path, slip: str) -> None:
    module, example, settings, message = TABLE[slip]
    arguments = {"repository": tmp_path / "repository", "name": "m"} | dict(settings)
    with pytest.raises(ExportError, match=message) as caught:
        fitserve_exporters.export(module, example, **arguments)
    assert "\n" not in str(caught.value)
    assert "fault of fitserve" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_repository_that_cannot_be_one_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "taken").write_text("")
    with pytest.raises(ExportError, match="file' is a file; name another folder"):
        fitserve_exporters.export(linear(), X, tmp_path / "file" / "below", "m")
    with pytest.raises(ExportError, match="taken' is a file"):
        fitserve_exporters.export(linear(), X, tmp_path / "repository", "taken")


def test_what_nobody_foresaw_is_an_export_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("fitserve_exporters.module_export.publish_candidate", fail)
    with pytest.raises(ExportError, match=r"unexpected KeyError: 'lost'; this is a fault of fitserve") as caught:
        fitserve_exporters.export(linear(), X, tmp_path, "m")
    assert isinstance(caught.value.__cause__, KeyError)
