"""ONNX Runtime 1.31's wheels report their use to their maker over the network, unless they are told not to."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "ORT_DISABLE_TELEMETRY"
"""What it reads when it is imported. Without it, it also leaves a file `.ses` in the folder for temporary files."""


def turn_off() -> None:
    """Has it report nothing, for this process and those it starts; the user's own setting stays.

    Call it before `onnxruntime` is imported: the packages that import it call it in their `__init__`.
    """
    os.environ.setdefault(VARIABLE, "1")
