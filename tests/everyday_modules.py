"""Modules as people write them, each with an example, and a comparison of what is served with what torch answers."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import torch.nn.utils.prune
from torch import nn

import fitserve_exporters
from fitserve_contract.repository import MODEL_FILE


@dataclass(frozen=True)
class Everyday:
    """One module.

    Args:
        make: Builds it.
        example: As export() takes it, 5 rows.
        outputs: The names that are expected.
        settings: Further arguments of export().
        moved: Outputs whose batch is axis 1 in torch.
        longer: Length of axis 1, by input, that is tried beside the example's.
        alone: Whether torch answers otherwise where rows are together: each is compared with torch on it alone.
    """

    make: Callable[[], nn.Module]
    example: Any
    outputs: tuple[str, ...] = ("output",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    moved: tuple[str, ...] = ()
    longer: Mapping[str, int] = field(default_factory=dict)
    alone: bool = False


class Does(nn.Module):
    """Calls a function with its parts and its input."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class Encoder(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, **settings)

    def forward(self, x: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=pad)


class Keyword(nn.Module):
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: torch.Tensor, flag: bool = True
    ) -> dict[str, torch.Tensor | None]:
        return {"scaled": x * scale if flag else x, "masked": mask, "x": x + 1}


class Rest(nn.Module):
    def forward(self, first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return first - sum(others)


class Keywords(nn.Module):
    def forward(self, x: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return x - more["bias"]


class ByPosition(nn.Module):
    def forward(self, x: torch.Tensor, /, y: torch.Tensor) -> torch.Tensor:
        return x - y


class Named(NamedTuple):
    total: torch.Tensor
    parts: tuple[torch.Tensor, torch.Tensor]


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Keeps(nn.Module):
    """Keeps an activation, as a hook does, and what Python cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        self.lock, self.numbers, self.kept = threading.Lock(), (i for i in range(3)), {"maps": [None]}
        self.layer.register_forward_hook(lambda _, __, output: self.kept.update(maps=[output]))
        self(torch.ones(2, 4)).sum().backward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.layer(x)
        return self.last * 2


class HalfInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 8).half(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x).half()).float())


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))


def padding(*lengths: int) -> torch.Tensor:
    return torch.arange(6)[None] >= torch.tensor(lengths)[:, None]


def recurrent(kind: type[nn.Module], **settings: Any) -> Callable[[], nn.Module]:
    return lambda: kind(4, 8, batch_first=True, **settings)  # type: ignore[call-arg]


def named(names: list[str]) -> dict[str, Any]:
    return {"output_names": names, "free_axes": {"input": {1: "time"}}}


def free(*names: str) -> dict[str, Any]:
    return {"free_axes": {name: {-1 if name == "pad" else 1: "time"} for name in names}}


PAD = padding(6, 3, 5, 1, 6)
TIME = {"input": 11}

MODULES: dict[str, Everyday] = {
    "LSTM with states": Everyday(
        recurrent(nn.LSTM, bidirectional=True), rows(6, 4), ("y", "h", "c"), named(["y", "h", "c"]),
        ("h", "c"), TIME,
    ),
    "padded encoder": Everyday(
        lambda: Encoder(norm=nn.LayerNorm(8)), {"x": rows(6, 8), "pad": PAD}, settings=free("x", "pad"),
        longer={"x": 9, "pad": 9},
    ),
    "keyword-only": Everyday(Keyword, {"scale": rows(3), "x": rows(3)}, ("scaled", "x_output")),
    "keeps": Everyday(Keeps, rows(4)),
    "half inside": Everyday(HalfInside, rows(4)),
    "LSTM of two": Everyday(
        recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        rows(6, 4),
        ("y", "h", "c"),
        named(["y", "h", "c"]),
        ("h", "c"),
        TIME,
    ),
    "GRU": Everyday(recurrent(nn.GRU, bias=False), rows(6, 4), ("y", "h"), named(["y", "h"]), ("h",), TIME),
    "GRU of two": Everyday(
        recurrent(nn.GRU, num_layers=2, bidirectional=True), rows(6, 4), ("y", "h"), named(["y", "h"]), ("h",), TIME
    ),
    "RNN": Everyday(recurrent(nn.RNN, num_layers=2), rows(6, 4), ("y", "h"), named(["y", "h"]), ("h",), TIME),
    "RNN of relu": Everyday(
        recurrent(nn.RNN, nonlinearity="relu", bidirectional=True), rows(6, 4), ("y", "h"), named(["y", "h"]), ("h",),
        TIME,
    ),
    "LSTM with time first": Everyday(
        lambda: Does(lambda m, x: m.r(x.transpose(0, 1))[0][-1], r=nn.LSTM(4, 8)), rows(6, 4), settings=free("x"),
        longer={"x": 11},
    ),
    "padded encoder, gaps": Everyday(
        Encoder, {"x": rows(6, 8), "pad": PAD | ((torch.arange(6) == 0) & (torch.arange(5) == 4)[:, None])}, alone=True
    ),
    "encoder without padding": Everyday(Encoder, rows(6, 8), settings=free("x"), longer={"x": 9}),
    "encoder layer": Everyday(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), rows(6, 8)),
    "transformer": Everyday(lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), [rows(6, 8), rows(4, 8)]),
    "rest of the arguments": Everyday(Rest, [rows(3), rows(3) + 1, rows(3) * 2]),
    "any keyword": Everyday(Keywords, {"bias": rows(3), "x": rows(3) * 2}),
    "positional-only": Everyday(ByPosition, {"y": rows(3), "x": rows(3) * 2}),
    "NamedTuple": Everyday(
        lambda: Does(lambda _, x: Named(x.sum(1), (x, x * 2))), rows(3), ("total", "parts_0", "parts_1")
    ),
    "dataclass with None": Everyday(lambda: Does(lambda _, x: Answer(x * 2)), rows(3), ("logits",)),
    "one key of several": Everyday(
        lambda: Does(lambda _, x: {"a": x * 2, "b": x + 1, "cache": object()}), rows(3), ("b",), {"output_names": ["b"]}
    ),
    "input given back, one tensor twice": Everyday(
        lambda: Does(lambda _, x: (x, x * 2, x)), rows(3), ("output_0", "output_1", "output_2")
    ),
    "pruned": Everyday(lambda: nn.Sequential(nn.utils.prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5)), rows(4)),
    "DataParallel": Everyday(lambda: nn.DataParallel(nn.Linear(4, 2)), rows(4)),
    "torch.compile": Everyday(lambda: torch.compile(nn.Linear(4, 2), backend="eager"), rows(4)),  # type: ignore[arg-type,return-value]
    "spectral norm": Everyday(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), rows(4)),
    "output called as an operator": Everyday(
        lambda: Does(lambda _, x: torch.softmax(x * 2, 1).flip(1)), rows(3), ("softmax",), {"output_names": ["softmax"]}
    ),
    "output called as a weight": Everyday(
        lambda: Does(lambda m, x: m.linear(x), linear=nn.Linear(4, 2)), rows(4), ("linear.weight",),
        {"output_names": ["linear.weight"]},
    ),
    "input called output": Everyday(
        lambda: nn.Linear(4, 2), {"input": rows(4)}, ("input_output",), {"output_names": ["input_output"]}
    ),
}  # fmt: skip


def publish(case: Everyday, folder: Path) -> tuple[fitserve_exporters.PublishedVersion, nn.Module]:
    """Exports a module; returns the version and the module in evaluation mode."""
    torch.manual_seed(0)
    module = case.make()
    published = fitserve_exporters.export(module, case.example, folder, "m", **case.settings)
    return published, module.eval()


def check_served(case: Everyday, published: fitserve_exporters.PublishedVersion, module: nn.Module) -> None:
    """Compares the published file with torch at batch 1, 2 and 5, and with longer free axes."""
    assert tuple(spec.name for spec in published.manifest.outputs) == case.outputs
    session = onnxruntime.InferenceSession(published.folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        _compare(case, session, module, _example(case.example, count, {}))
    if case.longer:
        _compare(case, session, module, _example(case.example, 3, case.longer))


def _example(example: Any, count: int, longer: Mapping[str, int]) -> Any:
    if isinstance(example, Mapping):
        return {name: _stretched(tensor[:count], longer.get(name)) for name, tensor in example.items()}
    if isinstance(example, list):
        return [tensor[:count] for tensor in example]
    return _stretched(example[:count], next(iter(longer.values()), None))


def _stretched(tensor: torch.Tensor, size: int | None) -> torch.Tensor:
    """Repeats the last step of axis 1, so that a padding mask stays one."""
    return tensor if size is None else tensor[:, torch.arange(size).clamp(max=tensor.shape[1] - 1)]


def _compare(case: Everyday, session: Any, module: nn.Module, example: Any) -> None:
    with torch.no_grad():
        if case.alone:
            rows_alone = [{name: tensor[row : row + 1] for name, tensor in example.items()} for row in range(5)]
            answer = torch.cat([module(**row) for row in rows_alone[: len(example["x"])]])
        elif isinstance(module, ByPosition):
            answer = module(example["x"], example["y"])
        else:
            answer = module(**example) if isinstance(example, dict) else module(*_listed(example))
    expected = [leaf for leaf in torch.utils._pytree.tree_leaves(_plain(answer, case)) if leaf is not None]
    names = [value.name for value in session.get_inputs()]
    feed = example if isinstance(example, dict) else dict(zip(names, _listed(example), strict=True))
    served = session.run(list(case.outputs), {name: feed[name].numpy() for name in names})
    for name, got, want in zip(case.outputs, served, expected, strict=True):
        exact = want.movedim(1, 0) if name in case.moved else want
        np.testing.assert_allclose(got, exact.numpy(), rtol=1e-3, atol=2e-3 if module.__class__ is HalfInside else 1e-5)


def _listed(example: Any) -> list[torch.Tensor]:
    return example if isinstance(example, list) else [example]


def _plain(answer: Any, case: Everyday) -> Any:
    if isinstance(answer, Answer):
        return [answer.logits]
    return answer["b"] if case.settings.get("output_names") == ["b"] else answer
