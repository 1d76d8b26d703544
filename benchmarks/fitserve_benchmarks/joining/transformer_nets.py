"""The transformers that people serve, tiny and with random weights, by the transformers package.

Shapes: N rows, S tokens, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

WORDS: Final = 60

_TINY: Final = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
_PICTURE: Final = {"image_size": 16, "patch_size": 4, "num_channels": 3}


class OfTokens(nn.Module):
    """A model of `input_ids` and `attention_mask`.

    Args:
        model: Of transformers.
        output: Name of the tensor of its answer.
        place: Of the axis of tokens, only the first token's vector; None for all.
    """

    def __init__(self, model: nn.Module, output: str, place: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.place = place

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps int64 (N, S) twice to the answer."""
        answer: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[self.output]
        return answer if self.place is None else answer[:, self.place]


class OfLastToken(OfTokens):
    """The same, with the vector of the last token that the mask has, as embedding models of decoders pool."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps int64 (N, S) twice to (N, D)."""
        answer = super().forward(input_ids, attention_mask)
        last = (attention_mask.sum(dim=1) - 1).clamp(min=0)
        return answer[torch.arange(answer.shape[0], device=answer.device), last]


class OfPixels(nn.Module):
    """A model of `pixel_values` or another single float input, by its name."""

    def __init__(self, model: nn.Module, output: str, name: str = "pixel_values") -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, ...) to the answer."""
        answer: Tensor = self.model(**{self.name: x})[self.output]
        return answer


def _built(name: str, config: dict[str, Any]) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    model_class, config_class = getattr(transformers, name), getattr(transformers, name).config_class
    # The plain attention is the one that both exporters have been able to write for years.
    model: nn.Module = model_class(config_class(**config, attn_implementation="eager")).eval()
    return model


def tokens(name: str, output: str = "last_hidden_state", place: int | None = None, **changes: Any) -> nn.Module:
    """Builds a model of tokens by its class's name."""
    return OfTokens(_built(name, {**_TINY, **changes}), output, place)


def last_token(name: str, **changes: Any) -> nn.Module:
    """Builds a decoder that pools by the mask."""
    return OfLastToken(_built(name, {**_TINY, **changes}), "last_hidden_state")


def pixels(name: str, output: str = "last_hidden_state", **changes: Any) -> nn.Module:
    """Builds a model of pictures by its class's name."""
    return OfPixels(_built(name, {**_TINY, **_PICTURE, **changes}), output)


def speech() -> nn.Module:
    """Builds Whisper's encoder: (N, 8, 24) to (N, 12, 16)."""
    model: Any = _built(
        "WhisperModel",
        {
            "vocab_size": WORDS, "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_layers": 1, "decoder_attention_heads": 2, "d_model": 16, "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32, "max_source_positions": 12, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "decoder_start_token_id": 1,
        },
    )  # fmt: skip
    return OfPixels(model.get_encoder(), "last_hidden_state", "input_features")


Builder = Callable[[], nn.Module]
