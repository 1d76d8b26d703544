"""torchvision and timm, where `make check-slow` has put them: in a folder that these tests alone see.

transformers behaves otherwise where torchvision is there, so they are no part of the environment.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(sys.prefix) / "architectures"


def library(name: str) -> Any:
    """Imports a module of torchvision or timm, or skips the test with the way to get it."""
    _prepare()
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name.partition('.')[0]} is not installed: `make check-slow` puts it into {FOLDER}")
    return importlib.import_module(name)


@functools.cache
def _prepare() -> Any:
    """Makes the libraries importable; what it returns has to live as long as they do."""
    from transformers.utils import is_timm_available, is_torchvision_available

    is_torchvision_available(), is_timm_available()  # they keep their answers: transformers stays as it is without
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:  # it was compiled for another build of torch, such as one of CUDA
        # What is taken here calls none of it, but the import describes these two operators, which have to be there.
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return fragment
    return None
