"""The condition of each element: how far it moves when all that goes into it is off by one rounding.

Rounding error alone may be lucky: at one element torch may happen to err by nothing while any other order of the same
sums errs by much, as behind a division by nearly nothing, or where a value lies at a step. So an element that is
beyond its bound is looked at again: the module runs in float64 with every weight and real input moved by up to one
epsilon of its dtype, a few times, and the largest move is the element's condition.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 1.6: forward error is about
condition number times backward error.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate
from fitserve_exporters.candidate.module_copy import on_cpu
from fitserve_exporters.reference import TorchReference

DRAWS: Final = 4


class Noise:
    """Runs a candidate's module with moved weights and inputs. Not thread-safe; owns one copy of it per draw.

    Args:
        candidate: Whose module; its seed draws the moves.
        runs_in_float64: Whether the module does; else it is moved in its own precision.
    """

    def __init__(self, candidate: Candidate, *, runs_in_float64: bool) -> None:
        self._runs_in_float64 = runs_in_float64
        self._module_arrays = candidate.module_arrays
        self._random = np.random.default_rng(candidate.seed)
        self._epsilon = _epsilon(candidate)
        self._moved = [self._moved_reference(candidate, draw) for draw in range(DRAWS)]

    def of(self, inputs: Arrays, exact: Arrays) -> Arrays:
        """Returns for every element of every output how far it moved at most; 0 where that cannot be said."""
        moves = {name: np.zeros(array.shape) for name, array in exact.items()}
        inputs = self._module_arrays(inputs)
        for reference in self._moved:
            moved = {name: self._moved_array(array) for name, array in inputs.items()}
            answers = reference.fp64(moved) if self._runs_in_float64 else reference.fp32(moved)
            for name, answer in answers.items():
                with np.errstate(over="ignore", invalid="ignore"):
                    gap = np.abs(answer.astype(np.float64) - exact[name].astype(np.float64))
                moves[name] = np.maximum(moves[name], np.where(np.isfinite(gap), gap, 0.0))
        return moves

    def _moved_reference(self, candidate: Candidate, draw: int) -> TorchReference:
        module = on_cpu(candidate.module)
        if self._runs_in_float64:
            module = module.double()
        generator = torch.Generator().manual_seed(candidate.seed + draw)
        with torch.no_grad():
            for values in (*module.parameters(), *module.buffers()):
                if values.is_floating_point():
                    move = torch.rand(values.shape, generator=generator, dtype=torch.float64) * 2 - 1
                    values.copy_((values.double() * (1 + self._epsilon * move)).to(values.dtype))
        names = tuple(spec.name for spec in candidate.module_inputs)
        return TorchReference(module, names, candidate.output_names)  # behind the front, where numbers are moved

    def _moved_array(self, array: Array) -> Array:
        if array.dtype.kind != "f":
            return array
        moved = array.astype(np.float64) * (1 + self._epsilon * self._random.uniform(-1, 1, array.shape))
        return moved if self._runs_in_float64 else np.asarray(moved.astype(array.dtype))


def _epsilon(candidate: Candidate) -> float:
    """Finds the epsilon of the narrowest real dtype of the weights and inputs; fp32's where there is none."""
    dtypes = [parameter.dtype for parameter in candidate.module.parameters()]
    dtypes += [spec.dtype for spec in candidate.module_inputs if spec.dtype is not None]
    return max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=2.0**-23)
