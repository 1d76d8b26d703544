"""Torch modules whose rows are coupled, as people wrote and exported them, and quantized files.

Sources are public reports where a docstring names one. Shapes: N rows, S steps, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitserve_benchmarks.joining import exports, sequences, vision
from fitserve_benchmarks.joining.labelled import DRAWS, LabelledModel


class ImplicitSoftmax(nn.Module):
    """A softmax without a dim: torch takes axis 0 of three (pytorch: "Implicit dimension choice for softmax")."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, S, D)."""
        return functional.softmax(x)


class BatchStatistics(nn.Module):
    """A batch norm that keeps no statistics, and so takes the batch's in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, 6)."""
        normed: Tensor = self.norm(x)
        return normed


class TimeFirst(nn.Module):
    """A recurrent net or transformer that takes the first axis for time, given batch-first data."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Keeps N and S of (N, S, 8)."""
        y = self.net(x)
        answer: Tensor = y[0] if isinstance(y, tuple) else y
        return answer


class Contrastive(nn.Module):
    """CLIP's logits: every text of the batch against every picture of it."""

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Maps (N, 6) twice to (N, N)."""
        return functional.normalize(text, dim=-1) @ functional.normalize(image, dim=-1).T * 100.0


class NormedColumns(nn.Module):
    """`normalize(dim=0)` where dim=1 was meant."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, D)."""
        return functional.normalize(x, dim=0)


class Distances(nn.Module):
    """The nearest other row of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, D) to (N)."""
        gaps = (x.unsqueeze(1) - x.unsqueeze(0)).pow(2).sum(-1)
        return gaps.topk(1, dim=1, largest=True).values[:, 0]


class MelFloor(nn.Module):
    """Whisper's log-mel ending: a floor 8 below the batch's maximum (openai/whisper, discussion of batching)."""

    def forward(self, mel: Tensor) -> Tensor:
        """Keeps (N, C, T)."""
        logged = mel.clamp(min=1e-10).log10()
        return (torch.maximum(logged, logged.max() - 8.0) + 4.0) / 4.0


class PeakNormalised(nn.Module):
    """Sound divided by the loudest sample of the batch (keunwoochoi/kapre#46)."""

    def forward(self, sound: Tensor) -> Tensor:
        """Keeps (N, T)."""
        return sound / sound.abs().max().clamp(min=1e-3)


class Standardised(nn.Module):
    """A standard scaler fitted on the request itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, D)."""
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-5)


class Capacity(nn.Module):
    """A mixture of experts each of which takes two rows of a batch (Switch Transformers' capacity)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 2)
        self.expert = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, 6)."""
        chosen = functional.one_hot(self.gate(x).argmax(-1), 2)
        is_taken = ((chosen.cumsum(0) * chosen).sum(-1, keepdim=True) <= 2).to(x.dtype)
        answer: Tensor = x + self.expert(x) * is_taken
        return answer


class CarriedState(nn.Module):
    """A GRU whose time runs over the rows of a batch, as a stream's frames."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.GRU(6, 4)

    def forward(self, frames: Tensor) -> Tensor:
        """Maps (N, 6) to (N, 4)."""
        states: Tensor = self.net(frames.unsqueeze(1))[0]
        return states[:, 0]


class GroupedRows(nn.Module):
    """A group norm over `view(1, -1, ...)`: all rows are one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, 4)."""
        normed: Tensor = self.norm(x.t().unsqueeze(0))
        return normed.squeeze(0).t()


class LongestOfBatch(nn.Module):
    """A mean over as many steps as the longest row of the batch has."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps (N, S) and int64 (N, S) to (N)."""
        return (x * mask).sum(1) / mask.sum(1).max().clamp(min=1)


class Rolled(nn.Module):
    """`roll` and `flip` over the rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, D)."""
        return x + torch.roll(x, 1, 0) + torch.flip(x, [0])


class WrongView(nn.Module):
    """`view(D, -1)` where a transpose was meant, and back."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, 4)."""
        return x.reshape(4, -1).softmax(0).t()


class Repeated(nn.Module):
    """`repeat` where `repeat_interleave` was meant, in a beam of two (huggingface/transformers, expand_inputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, D)."""
        return x.repeat(2, 1).view(-1, 2, x.shape[1]).mean(1)


class Noisy(nn.Module):
    """Noise at inference."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, D)."""
        return x + torch.randn_like(x)


class RowAttention(nn.Module):
    """Self-attention between the rows of a batch, as set transformers and SAINT have it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps (N, S, 8)."""
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended


_MODULES: Final[Sequence[tuple[str, str, Callable[[], nn.Module], tuple[tuple[int, ...], ...]]]] = (
    ("softmax-implicit", "torch's implicit dim of three axes is 0", ImplicitSoftmax, ((5, 4),)),
    ("batch-statistics", "a batch norm without running statistics", BatchStatistics, ((6,),)),
    ("lstm-time-first", "batch-first data in a time-first LSTM", lambda: TimeFirst(nn.LSTM(8, 4)), ((5, 8),)),
    (
        "transformer-time-first",
        "batch-first data in a time-first transformer",
        lambda: TimeFirst(nn.TransformerEncoderLayer(8, 2, 16)),
        ((5, 8),),
    ),
    ("contrastive", "all texts against all pictures", Contrastive, ((6,), (6,))),
    ("normed-columns", "unit columns", NormedColumns, ((4,),)),
    ("distances", "the farthest other row", Distances, ((4,),)),
    ("whisper-floor", "the batch's peak", MelFloor, ((8, 6),)),
    ("peak-normalised", "the batch's peak", PeakNormalised, ((50,),)),
    ("standardised", "the batch's mean and spread", Standardised, ((4,),)),
    ("capacity", "experts that take so many rows", Capacity, ((6,),)),
    ("carried-state", "a recurrent state over rows", CarriedState, ((6,),)),
    ("grouped-rows", "a group norm over rows", GroupedRows, ((4,),)),
    ("rolled-rows", "the row before", Rolled, ((4,),)),
    ("wrong-view", "a view that mixes rows", WrongView, ((4,),)),
    ("repeated", "copies of the batch taken for copies of rows", Repeated, ((4,),)),
    ("noisy", DRAWS, Noisy, ((4,),)),
    ("row-attention", "rows attend to each other", RowAttention, ((5, 8),)),
)


def _content(module: Callable[[], nn.Module], shapes: Sequence[Sequence[int]], way: Callable[..., bytes]) -> bytes:
    torch.manual_seed(0)
    return way(module(), [torch.randn(1, *shape) for shape in shapes], ["x", "z"][: len(shapes)])


def _quantized(module: Callable[[], nn.Module], shape: Sequence[int], operators: Sequence[str]) -> bytes:
    plain = _content(module, [shape], partial(exports.by_script, opset=17))
    return exports.quantized_dynamically(plain, operators)


def _quantized_recurrent() -> bytes:
    torch.manual_seed(0)
    net = sequences.Recurrent(nn.LSTM)
    plain = exports.by_script(net, [torch.zeros(1, 6, dtype=torch.int64)], ["tokens"], {0: {1: "s"}})
    return exports.quantized_dynamically(plain, ["LSTM", "MatMul"])


def _lengths(way: Callable[..., bytes]) -> bytes:
    return way(LongestOfBatch(), [torch.randn(1, 5), torch.ones(1, 5, dtype=torch.int64)], ["x", "mask"])


_script = partial(exports.by_script, opset=17)
_WAYS: Final[tuple[tuple[str, Callable[..., bytes]], ...]] = (("", exports.by_dynamo), ("-script", _script))

_ONE_WAY: Final = {
    "batch-statistics-script", "transformer-time-first-script", "row-attention-script",
    "lstm-time-first", "carried-state",
}  # fmt: skip
"""What an exporter refuses, or writes with the traced number of rows as a constant."""


def coupled_modules() -> list[LabelledModel]:
    """Lists the models; exporting is each one's own `build`."""
    reason = "the range of the whole batch's activations"
    training = partial(exports.by_script, opset=17, is_training=True)
    return [
        *(
            LabelledModel(f"{name}{ending}", False, why, partial(_content, module, shapes, way), is_random=why == DRAWS)
            for name, why, module, shapes in _MODULES
            for ending, way in _WAYS
            if f"{name}{ending}" not in _ONE_WAY
        ),
        *(
            LabelledModel(f"longest{ending}", False, "the batch's longest row", partial(_lengths, way))
            for ending, way in _WAYS
        ),
        LabelledModel(
            "mlp-in-training",
            False,
            "batch norms of a module that trains",
            partial(_content, vision.mlp, [(16,)], training),
        ),
        LabelledModel("mlp-dynamic", False, reason, partial(_quantized, vision.mlp, (16,), ["MatMul", "Gemm"])),
        LabelledModel("lenet-dynamic", False, reason, partial(_quantized, vision.lenet, (1, 28, 28), ["Conv"])),
        LabelledModel("mixer-dynamic", False, reason, partial(_quantized, vision.Mixer, (3, 16, 16), ["MatMul"])),
        LabelledModel("lstm-dynamic", False, reason, _quantized_recurrent, {"tokens": (0, sequences.WORDS - 1)}),
    ]
