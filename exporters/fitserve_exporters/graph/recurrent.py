"""LSTM, GRU and RNN as ONNX's own operators, so that the number of time steps stays free.

torch.export unrolls a recurrent layer over the steps of the example. Here each layer of a direction or two becomes one
call of an operator that torch does not look into, which the converter writes as one ONNX node.

Shapes: T steps, B examples, I inputs, H hidden units, D directions.
Source of the gates' order: ONNX operators LSTM (i, o, f, c) and GRU (z, r, h); torch.nn.LSTM (i, f, g, o) and
torch.nn.GRU (r, z, n).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from onnxscript import opset18
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fitserve_exporters.errors import ExportError

_GATES: Final = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
"""torch's function to the place of each of ONNX's gates among torch's."""

_PACKING: Final = ("_pack_padded_sequence", "_pad_packed_sequence")


class OnnxRecurrence(TorchFunctionMode):
    """While it is entered, recurrent layers are traced as calls of `recurrent_layer`.

    Raises:
        ExportError: a packed sequence, which ONNX does not have.
    """

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces the calls that are recurrent layers; runs all others as they are."""
        name = getattr(func, "__name__", "")
        if name in _PACKING:
            raise ExportError(
                "export: a packed sequence has no ONNX form; give the recurrent layer the padded (B, T, I) and pick "
                "the last valid step: output[torch.arange(len(lengths)), lengths - 1]; a bidirectional layer needs "
                "rows of one length"
            )
        if name in _GATES and len(args) == 9:
            if not _has_plain_weights(args):
                raise ExportError(
                    "export: an LSTM with proj_size has no ONNX form; use nn.LSTM without it and an nn.Linear on its "
                    "output"
                )
            return _layers(name, *args)
        return func(*args, **(kwargs or {}))


def _has_plain_weights(args: Sequence[Any]) -> bool:
    """Tells whether there are two weights, and two biases or none, for each layer: none that projects (proj_size)."""
    weights, has_biases, layer_count, is_bidirectional = args[2], args[3], args[4], args[7]
    expected = (4 if has_biases else 2) * layer_count * (2 if is_bidirectional else 1)
    return isinstance(weights, list | tuple) and len(weights) == expected


def _layers(
    kind: str,
    data: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    layer_count: int,
    _dropout: float,
    _train: bool,
    is_bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Runs all layers; the arguments and the answer are those of torch.lstm, torch.gru, torch.rnn_tanh."""
    is_lstm = kind == "lstm"
    hidden, cells = states if is_lstm else (states, states)
    directions, per_layer = (2 if is_bidirectional else 1), (4 if has_biases else 2)
    x = data.transpose(0, 1) if batch_first else data
    last_hidden, last_cells = [], []
    for layer in range(layer_count):
        rows = slice(layer * directions, (layer + 1) * directions)
        own = [weights[(rows.start + d) * per_layer : (rows.start + d + 1) * per_layer] for d in range(directions)]
        w, r, *biases = (torch.stack([_onnx_gates(kind, part[i]) for part in own]) for i in range(per_layer))
        bias = torch.cat(biases, dim=1) if biases else w.new_zeros(directions, 2 * w.shape[1])
        steps, h, c = recurrent_layer(x, w, r, bias, hidden[rows], cells[rows], kind)
        x = steps.transpose(1, 2).reshape(steps.shape[0], steps.shape[2], directions * steps.shape[3])
        last_hidden.append(h)
        last_cells.append(c)
    output = x.transpose(0, 1) if batch_first else x
    return output, torch.cat(last_hidden), *([torch.cat(last_cells)] if is_lstm else [])


def _onnx_gates(kind: str, weight: Tensor) -> Tensor:
    """Puts the gates of one weight or bias, (gates x H, ...), into ONNX's order."""
    parts = weight.chunk(len(_GATES[kind]))
    return torch.cat([parts[place] for place in _GATES[kind]])


@torch.library.custom_op("fitserve_exporters::recurrent_layer", mutates_args=())
def recurrent_layer(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor, hidden: Tensor, cells: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Stands for one layer while a module is traced; it is never run.

    Args:
        x: (T, B, I).
        w: (D, gates x H, I), gates in ONNX's order.
        r: (D, gates x H, H).
        bias: (D, 2 x gates x H): that of w, then that of r.
        hidden: First state, (D, B, H).
        cells: The same of an LSTM's cells; of no meaning to others.
        kind: torch's function: lstm, gru, rnn_tanh, rnn_relu.

    Returns:
        Every step (T, D, B, H), the last state (D, B, H), the last cells (D, B, H).
    """
    raise NotImplementedError("recurrent_layer: is traced only")


@recurrent_layer.register_fake
def _(
    x: Tensor, _w: Tensor, _r: Tensor, _bias: Tensor, hidden: Tensor, cells: Tensor, _kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    directions, count, size = hidden.shape
    return x.new_empty(x.shape[0], directions, count, size), torch.empty_like(hidden), torch.empty_like(cells)


def _onnx_node(x: Any, w: Any, r: Any, bias: Any, hidden: Any, cells: Any, kind: str) -> tuple[Any, Any, Any]:
    """Writes a layer as one ONNX node."""
    directions, size = (int(axis) for axis in (w.shape[0], r.shape[2]))
    settings: dict[str, Any] = {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward"}
    if kind == "lstm":
        steps, h, c = opset18.LSTM(x, w, r, bias, None, hidden, cells, **settings)
        return steps, h, c
    if kind == "gru":
        steps, h = opset18.GRU(x, w, r, bias, None, hidden, linear_before_reset=1, **settings)
    else:
        activation = {"rnn_tanh": "Tanh", "rnn_relu": "Relu"}[kind]
        steps, h = opset18.RNN(x, w, r, bias, None, hidden, activations=[activation] * directions, **settings)
    return steps, h, opset18.Identity(h)


def translations() -> dict[Any, Callable[..., Any]]:
    """Returns the ONNX form of each operator of this module, for torch's converter."""
    return {torch.ops.fitserve_exporters.recurrent_layer.default: _onnx_node}
