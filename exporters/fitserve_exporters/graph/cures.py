"""What a user can do about what torch says while a module is traced and converted."""

from __future__ import annotations

import re
from typing import Final

_CURES: Final = (
    (r"grouped_mm", "choose experts that have one: model.set_experts_implementation('batched_mm') of transformers"),
    (
        r"no onnx function found for <opoverload\(op='(?P<operator>[\w.:]+)'",
        "compute {operator} from other functions of torch, or outside of the model",
    ),
    (
        r"data-dependent|unbackedsymnode",
        "a branch that depends on tensor values has to become torch.where or torch.cond",
    ),
    (
        r"not all values of batch\b",
        "the module computes otherwise for other numbers of examples: leave branches on x.shape[0] out",
    ),
    (r"\.numpy\(\) is not supported|numpy", "compute with functions of torch in forward, not with numpy"),
    (r"generator", "draw such numbers once in __init__ and keep them with register_buffer"),
    (r"torch\.func|functorch|vmap|'constant'", "write the batch out in place of torch.func.vmap and grad"),
    (r"no padding token", "set pad_token_id in config.json"),
)
"""Pattern in torch's own words, in small letters, to a cure."""

_ANY: Final = (
    "write that part of forward with other functions of torch, or convert the module by other means and prove the file "
    "with publish_onnx"
)


def cure_of(text: str) -> str:
    """Returns what to do about a message of torch, without a period."""
    for pattern, cure in _CURES:
        if found := re.search(pattern, text.lower()):
            return cure.format(**found.groupdict())
    return _ANY
