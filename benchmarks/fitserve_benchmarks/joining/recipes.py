"""The eight recipes' served models as the exporter writes them, with the weights that training starts from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from fitserve_benchmarks.joining.labelled import LabelledModel
from fitserve_exporters.candidate.candidate import Array, Candidate, HeldOut, InputSpec
from fitserve_exporters.graph.onnx_export import export_onnx
from fitserve_exporters.variants_fusion import fuse_layers
from fitserve_training.catalogue import PUBLISHED, load_recipe
from fitserve_training.data.places import Places
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.settings import resolve_config

_TEXT: Final = "bert-multilabel"
_WORDS: Final = 100
_EMOTIONS: Final = 28
_SIZES: Final = {"batch": 4, "sequence": 6}


def recipe_models() -> list[LabelledModel]:
    """Lists the models; exporting is each one's own `build`."""
    ranges = {"input_ids": (0, _WORDS - 1)}
    return [
        *(
            LabelledModel(f"recipe-{name}", True, "a recipe, as exported", partial(exported, name), ranges)
            for name in PUBLISHED
        ),
        LabelledModel(
            "recipe-bert-fused", True, "the recipe's fused variant", lambda: fuse_layers(exported(_TEXT)), ranges
        ),
    ]


def exported(name: str) -> bytes:
    """Exports the model that a recipe would serve, untrained."""
    recipe = load_recipe(name)
    torch.manual_seed(0)
    candidate = Candidate(
        module=recipe.served(_bert() if name == _TEXT else _built(recipe)),
        inputs=tuple(InputSpec(spec.name, spec.dtype, spec.shape) for spec in recipe.inputs),
        output_names=(recipe.output_name,),
        held_out=HeldOut({spec.name: _drawn(spec) for spec in recipe.inputs}, None, "drawn"),
    )
    return export_onnx(candidate)


def _built(recipe: Recipe) -> nn.Module:
    bundled = recipe.data_names[-1]
    return recipe.build_model(resolve_config(recipe, None, {"data.name": bundled}, Places(None, Path())))


def _bert() -> nn.Module:
    from transformers import BertConfig

    from fitserve_training.recipes.bert_multilabel import BertMultiLabel

    config = BertConfig(
        vocab_size=_WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=1, intermediate_size=64
    )
    return BertMultiLabel(config, _EMOTIONS, is_frozen=False)


def _drawn(spec: ServedInput) -> Array:
    shape = [_SIZES[size] if isinstance(size, str) else size for size in spec.shape]
    random = np.random.default_rng(0)
    if spec.dtype.is_floating_point:
        return random.standard_normal(shape).astype(np.float32)
    return random.integers(0, 2, shape)
