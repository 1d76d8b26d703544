"""What Predict answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fitserve_contract.tensor_bytes import Array


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outputs of one call; where there is one output, numpy functions take it as that array.

    Args:
        model: Model that answered.
        version: Version that answered.
        outputs: Output name to array, in the order asked for.
    """

    model: str
    version: int
    outputs: Mapping[str, Array]

    @property
    def array(self) -> Array:
        """The one output.

        Raises:
            ValueError: there are several; take one by name.
        """
        if len(self.outputs) != 1:
            raise ValueError(f"prediction: expected 1 output, got {len(self.outputs)}: {', '.join(self.outputs)}")
        return next(iter(self.outputs.values()))

    def __getitem__(self, output: str) -> Array:
        return self.outputs[output]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        return np.array(self.array, dtype) if copy else np.asarray(self.array, dtype)
