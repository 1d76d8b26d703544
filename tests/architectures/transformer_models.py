"""Models of transformers, with the weights of a small configuration."""

from __future__ import annotations

from typing import Any

import torch
from tests.architectures.architecture import Architecture, Draw, each, integers, named, reals, texts
from torch import nn

BODY = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
DECODER = BODY | {"num_key_value_heads": 1, "head_dim": 8, "use_cache": False, "tie_word_embeddings": False}
PICTURE = {
    "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "num_labels": 3,
}  # fmt: skip
FREE = {"free_axes": {name: {1: "sequence"} for name in ("input_ids", "attention_mask")}}


def _made(config: str, model: str, values: dict[str, Any]) -> nn.Module:
    import transformers

    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**values))
    for weights in made.parameters():  # at the 0.02 of a new model, attention hardly chooses
        if weights.ndim == 2 and float(weights.std()) < 0.05:
            weights.data *= 8
    return made


def _row(name: str, model: str, values: dict[str, Any], draw: Draw, **rest: Any) -> Architecture:
    return Architecture("transformers", lambda: _made(f"{name}Config", f"{name}{model}", values), draw, **rest)


def _text(name: str, model: str, values: dict[str, Any], **rest: Any) -> Architecture:
    """One whose sequence is free."""
    return _row(name, model, values, texts(), settings=FREE, longer=texts(11), **rest)


def _causal(name: str, values: dict[str, Any] | None = None, **rest: Any) -> Architecture:
    return _text(name, "ForCausalLM", DECODER | (values or {}), **rest)


def _picture(name: str, model: str, values: dict[str, Any], size: int = 16, **rest: Any) -> Architecture:
    return _row(name, model, values, named(pixel_values=reals(3, size, size)), **rest)


def _batched() -> nn.Module:
    mixtral: Any = _made("MixtralConfig", "MixtralForCausalLM", DECODER | {"num_local_experts": 4})
    mixtral.set_experts_implementation("batched_mm")
    return mixtral  # type: ignore[no-any-return]


LABELS = {"num_labels": 3}
OTHER_NAMES = {
    "vocab_size": 60,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "use_cache": False}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "use_cache": False}
BART = {
    "vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
CLIP_TEXT = BODY | {"projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
CLIP_VISION = PICTURE | {"projection_dim": 8}
WAVES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20,
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
} | LABELS
STAGES = {"num_channels": 3, "hidden_sizes": [8, 16], "depths": [1, 1]} | LABELS

TRANSFORMERS: dict[str, Architecture] = {
    "BertForSequenceClassification": _text("Bert", "ForSequenceClassification", BODY | LABELS),
    "RobertaForMaskedLM": _text("Roberta", "ForMaskedLM", BODY),
    "DistilBertForTokenClassification": _text("DistilBert", "ForTokenClassification", OTHER_NAMES | LABELS),
    "ElectraForSequenceClassification": _text("Electra", "ForSequenceClassification", BODY | {"embedding_size": 8}),
    "AlbertModel": _text("Albert", "Model", BODY | {"embedding_size": 8}),
    "MobileBertModel": _text(
        "MobileBert", "Model", BODY | {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}),
    "DebertaV2ForSequenceClassification": _text(
        "DebertaV2", "ForSequenceClassification",
        BODY | LABELS | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    "ModernBertModel": _text(
        "ModernBert", "Model", BODY | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1,
                                      "eos_token_id": 2}),
    "FNetModel": _row("FNet", "Model", BODY, named(input_ids=integers(60, 7))),
    "FunnelModel": _row(
        "Funnel", "Model",
        {"vocab_size": 60, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24,
         "num_decoder_layers": 1}, texts(8)),
    "XLNetModel": _row(
        "XLNet", "Model", {"vocab_size": 60, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24,
                           "use_mems_eval": False}, texts()),
    "LongformerModel": _row(
        "Longformer", "Model", BODY | {"attention_window": 4}, texts(8),
        refused="a branch that depends on tensor values has to become torch.where or torch.cond"),
    "BigBirdModel, block sparse": _row(
        "BigBird", "Model", BODY | {"block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 64}, texts(32)),
    "ReformerModel": _row(
        "Reformer", "Model",
        {"vocab_size": 60, "hidden_size": 16, "attention_head_size": 8, "num_attention_heads": 2,
         "feed_forward_size": 24, "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 4],
         "axial_pos_embds_dim": [8, 8],
         "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2, "is_decoder": False,
         "max_position_embeddings": 16}, texts(16), settings={"output_names": ["last_hidden_state"]},
        refused="the module draws random numbers or keeps state"),
    "GPT2LMHeadModel": _text("GPT2", "LMHeadModel", GPT2),
    "OPTForCausalLM": _text(
        "OPT", "ForCausalLM",
        {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
         "max_position_embeddings": 32, "word_embed_proj_dim": 16, "use_cache": False}),
    "BloomForCausalLM": _text(
        "Bloom", "ForCausalLM", {"vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 2, "use_cache": False}),
    "LlamaForCausalLM": _causal("Llama"),
    "MistralForCausalLM, sliding window": _causal("Mistral", {"sliding_window": 4}),
    "Qwen2ForCausalLM": _causal("Qwen2"),
    "GemmaForCausalLM": _causal("Gemma"),
    "MixtralForCausalLM": _causal(
        "Mixtral", {"num_local_experts": 4}, refused="model.set_experts_implementation('batched_mm')"),
    "MixtralForCausalLM, batched experts": Architecture("transformers", _batched, texts(), FREE, texts(11)),
    "MambaForCausalLM": _row(
        "Mamba", "ForCausalLM",
        {"vocab_size": 60, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "use_cache": False},
        named(input_ids=integers(60, 7))),
    "LlamaForSequenceClassification": _text("Llama", "ForSequenceClassification", DECODER | LABELS),
    "T5EncoderModel": _text("T5", "EncoderModel", T5),
    "T5ForConditionalGeneration": _row(
        "T5", "ForConditionalGeneration", T5 | {"decoder_start_token_id": 0},
        named(input_ids=integers(60, 7), decoder_input_ids=integers(60, 5))),
    "BartForSequenceClassification": _row(
        "Bart", "ForSequenceClassification", BART | LABELS,
        lambda rows: {"input_ids": torch.cat([integers(60, 6)(rows).clamp(min=3), torch.full((rows, 1), 2)], 1)}),  # type: ignore[union-attr,list-item]
    "ViTForImageClassification": _picture("ViT", "ForImageClassification", PICTURE),
    "DeiTForImageClassification": _picture("DeiT", "ForImageClassification", PICTURE),
    "Dinov2Model": _picture("Dinov2", "Model", PICTURE),
    "SwinForImageClassification": _picture("Swin", "ForImageClassification", SWIN),
    "ConvNextForImageClassification": _picture(
        "ConvNext", "ForImageClassification", STAGES | {"num_stages": 2, "patch_size": 2}),
    "SegformerForSemanticSegmentation": _picture(
        "Segformer", "ForSemanticSegmentation",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3],
         "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16}
        | LABELS, 32),
    "CLIPTextModelWithProjection": _row("CLIPText", "ModelWithProjection", CLIP_TEXT, texts()),
    "CLIPVisionModelWithProjection": _picture("CLIPVision", "ModelWithProjection", CLIP_VISION),
    "CLIPModel": _row(
        "CLIP", "Model", {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 8},
        lambda rows: {**texts()(rows), "pixel_values": reals(3, 16, 16)(rows)},  # type: ignore[dict-item]
        refused="it compares the examples of a batch with each other"),
    "Wav2Vec2ForCTC": _row("Wav2Vec2", "ForCTC", WAVES, named(input_values=reals(200))),
    "WhisperEncoder": Architecture(
        "transformers",
        lambda: _made(
            "WhisperConfig", "WhisperModel",
            BART | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20}).encoder,  # type: ignore[union-attr]
        named(input_features=reals(8, 20))),
    "PatchTSTForPrediction": _row(
        "PatchTST", "ForPrediction",
        {"num_input_channels": 3, "context_length": 16, "prediction_length": 4, "patch_length": 4, "patch_stride": 4,
         "d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "loss": "mse"},
        named(past_values=reals(16, 3))),
    "PerceiverModel": _row(
        "Perceiver", "Model",
        {"d_model": 16, "d_latents": 16, "num_latents": 4, "num_blocks": 1, "num_self_attends_per_block": 2,
         "num_self_attention_heads": 2, "num_cross_attention_heads": 2}, each(reals(9, 16))),
}  # fmt: skip
