"""Thirty correct architectures with columns of unlike scale, and faults drawn by seed into their graphs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate, HeldOut, InputSpec
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.graph.onnx_export import export_onnx
from fitserve_exporters.module_export import drawn_inputs, export
from fitserve_exporters.sessions import CPU, OrtSession
from fitserve_exporters.verification.judge import objections
from fitserve_exporters.verification.tolerance import by_feature
from fitserve_exporters.verification.verify import verify

Made = tuple[nn.Module, tuple[torch.Tensor, ...]]

LEAST_MOVE = 1e-3
"""A fault counts when it moves an element by more than this share of its feature's scale."""


class Unlike(nn.Module):
    """Scales the features of another module's output over nine orders of magnitude."""

    def __init__(self, inner: nn.Module, axis: int = -1) -> None:
        super().__init__()
        self.inner = inner
        self.axis = axis

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.inner(*tensors)
        count = answer.shape[self.axis]
        shape = [count if axis == self.axis % answer.ndim else 1 for axis in range(answer.ndim)]
        return answer * torch.logspace(-6, 3, count).reshape(shape)


class Calls(nn.Module):
    """Calls a function with its parts and its inputs."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(self, *tensors)


def layers(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


def rows(*shape: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(16, *shape),)


def trained_norm(norm: nn.Module) -> nn.Module:
    """Gives a norm weights and statistics as training leaves them: ones and zeros would hide what is done to them."""
    for values in (*norm.parameters(), *norm.buffers()):
        if values.is_floating_point():
            values.data.uniform_(0.5, 1.5)
    return norm


def _attention(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
    return answer


def _gated(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = self.up(x) * torch.nn.functional.silu(self.gate(x))
    return answer


def _masked(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = self.linear(x)
    return answer.masked_fill(torch.arange(6) == 2, -1e9)


ARCHITECTURES: dict[str, Callable[[], Made]] = {
    "perceptron": lambda: (Unlike(layers(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6))), rows(8)),
    "convolution": lambda: (
        Unlike(layers(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3)), 1), rows(3, 8, 8)),
    "sequence": lambda: (Unlike(Calls(lambda s, i: s.head(s.table(i)).sum(1), table=nn.Embedding(11, 8),
                                      head=nn.Linear(8, 6))), (torch.randint(0, 11, (16, 5)),)),
    "linear": lambda: (Unlike(nn.Linear(5, 9)), rows(5)),
    "softmax": lambda: (Unlike(layers(nn.Linear(8, 6), nn.Softmax(-1))), rows(8)),
    "log softmax": lambda: (Unlike(layers(nn.Linear(8, 6), nn.LogSoftmax(-1))), rows(8)),
    "sigmoid": lambda: (Unlike(layers(nn.Linear(8, 6), nn.Sigmoid())), rows(8)),
    "gelu": lambda: (Unlike(layers(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 6))), rows(8)),
    "silu": lambda: (Unlike(layers(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 6))), rows(8)),
    "leaky": lambda: (Unlike(layers(nn.Linear(8, 16), nn.LeakyReLU(0.1), nn.Linear(16, 6))), rows(8)),
    "elu": lambda: (Unlike(layers(nn.Linear(8, 16), nn.ELU(0.7), nn.Linear(16, 6))), rows(8)),
    "layer norm": lambda: (Unlike(layers(nn.Linear(8, 16), trained_norm(nn.LayerNorm(16)), nn.Linear(16, 6))), rows(8)),
    "batch norm": lambda: (Unlike(layers(nn.Linear(8, 6), trained_norm(nn.BatchNorm1d(6)))), rows(8)),
    "batch norm 2d": lambda: (Unlike(layers(nn.Conv2d(2, 5, 3), trained_norm(nn.BatchNorm2d(5))), 1), rows(2, 7, 7)),
    "group norm": lambda: (
        Unlike(layers(nn.Conv2d(2, 6, 3), trained_norm(nn.GroupNorm(2, 6))), 1), rows(2, 7, 7)),
    "pooling": lambda: (
        Unlike(layers(nn.Conv2d(2, 6, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())), rows(2, 8, 8)),
    "average pooling": lambda: (Unlike(layers(nn.AvgPool2d(3, 2), nn.Conv2d(2, 4, 1)), 1), rows(2, 9, 9)),
    "depthwise": lambda: (Unlike(nn.Conv2d(4, 4, 3, groups=4, stride=2), 1), rows(4, 9, 9)),
    "dilated": lambda: (Unlike(nn.Conv2d(2, 4, 3, dilation=2), 1), rows(2, 9, 9)),
    "transposed": lambda: (Unlike(nn.ConvTranspose2d(2, 4, 3, stride=2), 1), rows(2, 5, 5)),
    "convolution 1d": lambda: (Unlike(layers(nn.Conv1d(3, 6, 3), nn.Flatten(), nn.Linear(36, 6))), rows(3, 8)),
    "upsampling": lambda: (
        Unlike(layers(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 3, 1)), 1), rows(2, 4, 4)),
    "lstm": lambda: (Unlike(Calls(lambda s, x: s.cell(x)[0], cell=nn.LSTM(4, 6, batch_first=True))), rows(5, 4)),
    "gru": lambda: (Unlike(Calls(lambda s, x: s.cell(x)[0], cell=nn.GRU(4, 6, batch_first=True))), rows(5, 4)),
    "attention": lambda: (
        Unlike(Calls(_attention, attention=nn.MultiheadAttention(8, 2, batch_first=True))), rows(5, 8)),
    "transformer": lambda: (Unlike(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), rows(5, 8)),
    "gated": lambda: (Unlike(Calls(_gated, up=nn.Linear(8, 6), gate=nn.Linear(8, 6))), rows(8)),
    "masked": lambda: (Calls(_masked, linear=nn.Linear(8, 6)), rows(8)),
    "two inputs": lambda: (
        Unlike(Calls(lambda s, x, y: s.a(x) + s.b(y), a=nn.Linear(4, 6), b=nn.Linear(3, 6))), (*rows(4), *rows(3))),
    "cumulative": lambda: (Unlike(Calls(lambda s, x: s.head(x).cumsum(1), head=nn.Linear(4, 6))), rows(5, 4)),
}  # fmt: skip


def made(name: str) -> Made:
    """Builds an architecture with weights of its own, and its example."""
    torch.manual_seed(len(name) + sum(map(ord, name)))
    module, example = ARCHITECTURES[name]()
    return module.eval(), example


def candidate_of(module: nn.Module, example: tuple[torch.Tensor, ...]) -> Candidate:
    """Describes a module as export() does where it is given no held-out set."""
    arrays = {f"x{place}": tensor.numpy() for place, tensor in enumerate(example)}
    specs = tuple(
        InputSpec(name, tensor.dtype, ("batch", *tensor.shape[1:]))
        for name, tensor in zip(arrays, example, strict=True)
    )
    return Candidate(module, specs, ("output",), HeldOut(drawn_inputs(arrays, 0), None, "drawn"))


def random_input(candidate: Candidate, seed: int) -> Arrays:
    """Draws 64 rows that the verification does not see."""
    held_out = {name: array[:16] for name, array in candidate.held_out.inputs.items()}
    return {name: array[16:] for name, array in drawn_inputs(held_out, 1_000 + seed).items()}


def faults(model: onnx.ModelProto, random: np.random.Generator) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Draws copies of a graph without end, each with one thing changed, and says what."""
    while True:
        faulty = onnx.ModelProto()
        faulty.CopyFrom(model)
        what = _FAULTS[random.integers(len(_FAULTS))](faulty, random)
        if what:
            yield what, faulty


def largest_move(before: Arrays, after: Arrays) -> float:
    """Gives by how much of its feature's scale an element moved at most; 0 where another shape came out."""
    moves = [0.0]
    for name, array in before.items():
        if after[name].shape != array.shape or array.dtype.kind != "f":
            continue
        old, new = (by_feature(one.astype(np.float64)) for one in (array, after[name]))
        is_number = np.isfinite(old) & (np.abs(old) < 1e8)
        scale = np.abs(np.where(is_number, old, 0.0)).max(axis=0)
        move = np.where(is_number, np.abs(new - old), 0.0) / np.where(scale > 0, scale, np.inf)
        moves.append(float(np.nan_to_num(move, nan=np.inf).max()))
    return max(moves)


def _weight(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Changes one weight by a tenth, or a few percent."""
    real = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    if not real:
        return ""
    tensor = real[random.integers(len(real))]
    values: Array = numpy_helper.to_array(tensor).copy()
    place = int(random.integers(values.size))
    factor = float(random.choice([0.9, 1.02, -1.0, 0.0]))
    values.reshape(-1)[place] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return f"weight {tensor.name}[{place}] times {factor}"


def _attribute(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Changes a real attribute of an operator, or one of its integers that is no axis."""
    found = [
        (node, entry)
        for node in model.graph.node
        for entry in node.attribute
        if entry.name not in ("axis", "perm", "to")
        and entry.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INTS, onnx.AttributeProto.INT)
    ]
    if not found:
        return ""
    node, entry = found[random.integers(len(found))]
    if entry.type == onnx.AttributeProto.FLOAT:
        entry.f = entry.f * 1.5 + 0.01
    elif entry.type == onnx.AttributeProto.INT:
        entry.i += 1
    else:
        entry.ints[int(random.integers(len(entry.ints)))] += 1
    return f"attribute {entry.name} of {node.op_type}"


def _axis(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Moves an axis, or swaps two of a transposition."""
    found = [(n, a) for n in model.graph.node for a in n.attribute if a.name in ("axis", "perm")]
    if not found:
        return ""
    node, entry = found[random.integers(len(found))]
    if entry.name == "axis":
        entry.i += 1 if entry.i < 0 and random.integers(2) else -1
    else:
        left, right = random.choice(len(entry.ints), 2, replace=False).tolist()
        entry.ints[left], entry.ints[right] = entry.ints[right], entry.ints[left]
    return f"{entry.name} of {node.op_type}"


def _scale(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Scales one feature of an output, or all of a value inside, by a few thousandths to a tenth."""
    factor = np.float32(random.choice([1.003, 0.99, 1.1]))
    output = model.graph.output[0]
    shape = output.type.tensor_type.shape.dim
    axis = 1 if len(shape) in (2, 4) else len(shape) - 1
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis].dim_value
    factors = np.ones(sizes, np.float32)
    column = int(random.integers(factors.size))
    factors.reshape(-1)[column] = factor
    model.graph.initializer.append(numpy_helper.from_array(factors, "fault"))
    for node in model.graph.node:
        node.output[:] = ["before_fault" if name == output.name else name for name in node.output]
    model.graph.node.append(helper.make_node("Mul", ["before_fault", "fault"], [output.name]))
    return f"column {column} of the output times {factor}"


_FAULTS = (_weight, _attribute, _axis, _scale)


def check_published(name: str, folder: Path) -> None:
    """Exports an architecture; AssertionError: it is refused."""
    module, example = made(name)
    try:
        version = export(module, list(example), folder, "model")
    except (ExportError, NotVerifiedError) as error:
        raise AssertionError(f"{name}: {error}") from error
    assert version.version == 1


def check_fault(name: str, seed: int) -> str:
    """Draws faults into an architecture's graph until one counts, and returns it; AssertionError: it is verified."""
    candidate = candidate_of(*made(name))
    content = export_onnx(candidate)
    right, random, inputs = OrtSession(content, CPU), np.random.default_rng(seed), random_input(candidate, seed)
    for what, faulty in faults(onnx.load_model_from_string(content), random):
        try:
            session = OrtSession(faulty.SerializeToString(), CPU)
            move = largest_move(right.run(inputs), session.run(inputs))
        except Exception:  # ONNX Runtime's exceptions share no base class below Exception: the fault shows by itself
            continue
        if move <= LEAST_MOVE:
            continue
        try:
            refused = bool(objections(verify(candidate, [session])))
        except NotVerifiedError:
            refused = True
        assert refused, f"{name}: verified with a fault that moves a feature by {move:.3g} of its scale: {what}"
        return what
    raise AssertionError("faults() ended")
