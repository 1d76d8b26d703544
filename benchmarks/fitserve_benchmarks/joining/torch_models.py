"""Independent models out of torch, with the input that each is exported on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from fitserve_benchmarks.joining import exports, sequences, transformer_nets, vision
from fitserve_benchmarks.joining.labelled import LabelledModel

_SEED: Final = 0

Inputs: TypeAlias = Mapping[str, Callable[[], Tensor]]
Ways: TypeAlias = tuple[Callable[..., bytes], ...]

_IDS: Final = (0, sequences.WORDS - 1)
_STEPS: Final = {0: {1: "s"}, 1: {1: "s"}}
"""Both inputs have a free second axis."""


def _model(
    name: str,
    reason: str,
    module: Callable[[], nn.Module],
    inputs: Inputs,
    export: Callable[..., bytes],
    free: exports.FreeAxes | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> LabelledModel:
    def build() -> bytes:
        torch.manual_seed(_SEED)
        made = module()
        return export(made, [draw() for draw in inputs.values()], list(inputs), free)

    return LabelledModel(name, True, reason, build, ranges or {"tokens": _IDS, "input_ids": _IDS})


def _real(*shape: int) -> Callable[[], Tensor]:
    return partial(torch.randn, 1, *shape)


def _whole(high: int, *shape: int) -> Callable[[], Tensor]:
    return partial(torch.randint, 0, high, (1, *shape))


_script = exports.by_script
_dynamo = exports.by_dynamo
_old = partial(exports.by_script, opset=11)
_new = partial(exports.by_script, opset=17)
_PAIR: Final[Inputs] = {"tokens": _whole(50, 6), "mask": partial(torch.ones, (1, 6), dtype=torch.int64)}
_TEXT: Final[Inputs] = {"input_ids": _whole(50, 6), "attention_mask": partial(torch.ones, (1, 6), dtype=torch.int64)}

_PICTURES: Final[Sequence[tuple[str, str, Callable[[], nn.Module], tuple[int, ...]]]] = (
    ("mlp", "fully connected, batch norms in evaluation mode", vision.mlp, (16,)),
    ("lenet", "convolutions, pools, a softmax over classes", vision.lenet, (1, 28, 28)),
    ("cnn-viewed", "flattens by the first size that the graph itself reads", vision.View, (3, 16, 16)),
    ("resnet", "residual blocks", vision.resnet, (3, 32, 32)),
    ("mobilenet", "depthwise convolutions, squeeze and excitation", vision.mobilenet, (3, 16, 16)),
    ("unet", "transposed convolutions, a group norm, interpolation", vision.UNet, (1, 16, 16)),
    ("convnext", "layer norms over channels", vision.convnext, (3, 16, 16)),
    ("mixer", "products over patches and channels", vision.Mixer, (3, 16, 16)),
    ("windows", "attention in windows that are folded into the first axis", vision.Windows, (8, 8, 8)),
    ("detector", "the best cells of each picture", vision.Detector, (3, 16, 16)),
    ("shuffled", "shuffles of channels and pixels, a bicubic resize", vision.Shuffled, (8, 6, 6)),
    ("sound", "convolutions over time and a transformer", vision.Sound, (10, 20)),
    ("peak-of-row", "each row's own peak", vision.PeakOfRow, (2, 9)),
    ("experts", "a mixture of experts without capacity", sequences.Experts, (6,)),
    ("forecast", "each series normalised by itself", sequences.Temporal, (12,)),
)
_SEQUENCES: Final[Sequence[tuple[str, str, Callable[[], nn.Module]]]] = (
    ("lstm", "an LSTM of batch-first data", partial(sequences.Recurrent, nn.LSTM)),
    ("gru", "a GRU of batch-first data", partial(sequences.Recurrent, nn.GRU)),
    ("lstm-time-major", "an LSTM behind a transpose", partial(sequences.Recurrent, nn.LSTM, is_batch_first=False)),
    ("gru-two-way", "both directions of time", partial(sequences.Recurrent, nn.GRU, is_two_way=True)),
)
_MASKED: Final[Sequence[tuple[str, str, Callable[[], nn.Module]]]] = (
    ("attention-pooled", "attention with a padding mask, a mean over tokens", sequences.Pooled),
    ("last-token", "the last token by a gather", sequences.LastToken),
    ("last-token-by-row", "the last token by an index of rows", sequences.LastTokenByRow),
)


def _tables() -> list[LabelledModel]:
    wide = {"user": _whole(10), "crossed": _whole(20, 5), "numbers": _real(4)}
    table = {"categories": _whole(10, 3), "numbers": _real(4)}
    ranges = {"user": (0, 9), "crossed": (0, 19), "categories": (0, 9)}
    towers = {"user": _real(4), "item": _real(5)}
    candidates = {"query": _real(4), "candidates": _real(6, 4)}
    return [
        _model("table", "embeddings of categories", sequences.Table, table, _dynamo, ranges=ranges),
        _model("wide-and-deep", "three inputs", sequences.WideAndDeep, wide, _dynamo, ranges=ranges),
        _model("two-towers", "products row by row", sequences.TwoTowers, towers, _dynamo),
        _model("candidates", "a row against its own candidates", sequences.RowMatrix, candidates, _dynamo),
        _model("table-script", "embeddings of categories", sequences.Table, table, _script, ranges=ranges),
        _model("candidates-script", "an einsum with the row's axis kept", sequences.RowMatrix, candidates, _script),
    ]


_T5: Final[dict[str, Any]] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
_GPT2: Final[dict[str, Any]] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "use_cache": False}
_DISTIL: Final[dict[str, Any]] = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
_LLAMA: Final[dict[str, Any]] = {"num_key_value_heads": 1, "use_cache": False, "pad_token_id": 0}
_SWIN: Final[dict[str, Any]] = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "window_size": 2,
    "patch_size": 2,
}


def _transformers() -> list[LabelledModel]:
    tokens, pixels, last = transformer_nets.tokens, transformer_nets.pixels, transformer_nets.last_token
    both, new = (_dynamo, _new), (_new,)
    pooler = "pooler_output"
    of_text: list[tuple[str, str, Callable[[], nn.Module], Ways]] = [
        ("bert", "all tokens' vectors", partial(tokens, "BertModel"), (_dynamo, _script)),
        ("bert-pooled", "the pooler's vector", partial(tokens, "BertModel", pooler), new),
        ("bert-last", "the last token by an index of rows", partial(last, "BertModel"), both),
        ("distilbert", "the first token's vector", partial(tokens, "DistilBertModel", place=0, **_DISTIL), both),
        ("roberta", "positions from the row's mask", partial(tokens, "RobertaModel", pad_token_id=1), both),
        ("clip-text", "pooled at the end of text", partial(tokens, "CLIPTextModel", pooler, eos_token_id=2), new),
        ("t5-encoder", "relative positions", partial(tokens, "T5EncoderModel", **_T5), both),
        ("gpt2-prefill", "logits of all tokens", partial(tokens, "GPT2LMHeadModel", "logits", **_GPT2), (_dynamo,)),
        ("gpt2-last", "the last token that the mask has", partial(last, "GPT2Model", **_GPT2), (_dynamo,)),
        ("llama-prefill", "rotary positions", partial(tokens, "LlamaForCausalLM", "logits", **_LLAMA), (_dynamo,)),
        ("albert", "one layer twice", partial(tokens, "AlbertModel", embedding_size=8), new),
        ("electra", "a BERT of another embedding", partial(tokens, "ElectraModel", embedding_size=8), (_dynamo,)),
        ("mpnet", "relative positions in buckets", partial(tokens, "MPNetModel"), both),
    ]
    of_pixels: list[tuple[str, str, Callable[[], nn.Module], tuple[int, ...], Ways]] = [
        ("vit", "patches and a class token", partial(pixels, "ViTModel"), (3, 16, 16), both),
        (
            "clip-vision",
            "patches and a class token",
            partial(pixels, "CLIPVisionModel", pooler),
            (3, 16, 16),
            (_dynamo,),
        ),
        ("swin", "windows, rolled and masked", partial(pixels, "SwinModel", **_SWIN), (3, 16, 16), both),
        ("whisper-encoder", "convolutions and a transformer", transformer_nets.speech, (8, 24), both),
    ]
    return [
        *(
            _model(_named(name, export), reason, build, _TEXT, export, _STEPS)
            for name, reason, build, ways in of_text
            for export in ways
        ),
        *(
            _model(_named(name, export), reason, build, {"x": _real(*shape)}, export)
            for name, reason, build, shape, ways in of_pixels
            for export in ways
        ),
    ]


def _named(name: str, export: Callable[..., bytes]) -> str:
    return name if export is _dynamo else f"{name}-script"


def _quantized() -> list[LabelledModel]:
    def content(module: Callable[[], nn.Module], shape: Sequence[int]) -> bytes:
        torch.manual_seed(_SEED)
        return exports.by_script(module(), [torch.randn(1, *shape)], ["x"], opset=17)

    def static(module: Callable[[], nn.Module], shape: Sequence[int], **form: Any) -> bytes:
        return exports.quantized_statically(content(module, shape), "x", shape, **form)

    reason = "scales from calibration, which no caller changes"
    return [
        LabelledModel("resnet-qdq", True, reason, partial(static, vision.resnet, (3, 32, 32))),
        LabelledModel("lenet-qdq", True, reason, partial(static, vision.lenet, (1, 28, 28))),
        LabelledModel("mlp-qdq", True, reason, partial(static, vision.mlp, (16,))),
        LabelledModel("lenet-qoperator", True, reason, partial(static, vision.lenet, (1, 28, 28), is_qdq=False)),
        LabelledModel("mlp-qoperator", True, reason, partial(static, vision.mlp, (16,), is_qdq=False)),
    ]


def torch_models() -> list[LabelledModel]:
    """Lists the models; exporting is each one's own `build`."""
    tokens: Inputs = {"tokens": _whole(50, 6)}
    return [
        *(_model(name, reason, module, {"x": _real(*shape)}, _dynamo) for name, reason, module, shape in _PICTURES),
        *(
            _model(f"{name}-script", reason, module, {"x": _real(*shape)}, _new)
            for name, reason, module, shape in _PICTURES
        ),
        *(
            _model(f"{name}-opset-11", reason, module, {"x": _real(*shape)}, _old)
            for name, reason, module, shape in _PICTURES[1:4]
        ),
        # torch.export keeps the traced number of rows of the others.
        *(
            _model(name, reason, module, tokens, _dynamo, {0: {1: "s"}})
            for name, reason, module in _SEQUENCES
            if name in ("lstm", "gru")
        ),
        *(
            _model(f"{name}-script", reason, module, tokens, _script, {0: {1: "s"}})
            for name, reason, module in _SEQUENCES
        ),
        *(_model(name, reason, module, _PAIR, _dynamo, _STEPS) for name, reason, module in _MASKED),
        *_tables(),
        *_transformers(),
        *_quantized(),
    ]
