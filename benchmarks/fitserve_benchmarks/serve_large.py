"""Ten megabytes in and out: a model that gives its input back, for ours and for the echoes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fitserve_contract import repository

if TYPE_CHECKING:
    from fitserve_benchmarks.serve_servers import Contestant

LARGE: Final = "ten-megabytes"
LARGE_IN_FLIGHT: Final = (1, 4)
_FLOAT_COUNT: Final = 2_500_000
_OPSET: Final = 20
_IR_VERSION: Final = 10


def write_large_model(root: Path) -> None:
    """Puts the model into a repository, without a certificate."""
    import onnx
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", _FLOAT_COUNT]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], LARGE, tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    folder = root / LARGE / "1"
    folder.mkdir(parents=True)
    onnx.save(model, str(folder / repository.MODEL_FILE))
    # Joining requests of this size would copy all of them.
    (root / LARGE / "model.toml").write_text("max_batch_size = 0\n")


def is_for_large(contestant: Contestant) -> bool:
    """Tells whether a contestant takes part: an echo, or one of ours."""
    return contestant.launch.is_echo or contestant.name.startswith("fitserve")
