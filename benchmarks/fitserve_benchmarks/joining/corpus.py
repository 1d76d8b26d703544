"""All labelled models."""

from __future__ import annotations

from fitserve_benchmarks.joining.coupled_disguises import COUPLED_DISGUISES
from fitserve_benchmarks.joining.coupled_graphs import COUPLED_GRAPHS
from fitserve_benchmarks.joining.coupled_modules import coupled_modules
from fitserve_benchmarks.joining.coupled_signatures import COUPLED_SIGNATURES
from fitserve_benchmarks.joining.labelled import LabelledModel
from fitserve_benchmarks.joining.recipes import recipe_models
from fitserve_benchmarks.joining.tables import TABLES
from fitserve_benchmarks.joining.torch_models import torch_models


def corpus() -> tuple[LabelledModel, ...]:
    """Lists every labelled model: independent ones first, then coupled ones."""
    return (
        *recipe_models(),
        *torch_models(),
        *TABLES,
        *COUPLED_GRAPHS,
        *COUPLED_SIGNATURES,
        *COUPLED_DISGUISES,
        *coupled_modules(),
    )
