"""Coverage-guided fuzzing of all that reads untrusted bytes, each against its law (`tests/hostile/laws.py`).

    python tests/fuzz/fuzz.py onnx_file -max_total_time=60

The law's name comes first, what follows is libFuzzer's; it begins with inputs that are taken. Needs the extra `fuzz`
(atheris). A crash is written to a file `crash-…`, which repeats it: `python tests/fuzz/fuzz.py onnx_file crash-…`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["fitserve_contract", "fitserve_service.codec", "fitserve_service.codec_oip"]):
    import builders
    from tests.hostile import laws
    from tests.hostile.seeds import INFER, PREDICT

    from fitserve_contract.datatypes import NUMPY_DTYPES


def tensor(data: bytes) -> None:
    """A datatype, a shape and bytes, all from the fuzzer."""
    source = atheris.FuzzedDataProvider(data)
    datatype = source.PickValueInList([*NUMPY_DTYPES, "FP8"])
    shape = [source.ConsumeInt(8) if source.ConsumeBool() else source.ConsumeIntInRange(0, 4) for _ in range(3)]
    laws.tensor_law(datatype, shape[: source.ConsumeIntInRange(0, 3)], source.ConsumeBytes(4_096))


LAWS: dict[str, Callable[[bytes], None]] = {
    "manifest": laws.manifest_law,
    "onnx_file": laws.onnx_file_law,
    "request": laws.request_law,
    "tensor": tensor,
}


SEEDS: dict[str, list[bytes]] = {
    "manifest": [builders.manifest("m").to_bytes(), builders.manifest("m", builders.classes_task()).to_bytes()],
    "onnx_file": [builders.external("w.bin"), builders.endless(), builders.zipmap_like()],
    "request": [PREDICT.SerializeToString(), INFER.SerializeToString()],
    "tensor": [],
}


def main() -> None:
    """Fuzzes one law until a time or count given to libFuzzer is over, or the law breaks."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in LAWS:
        sys.exit(f"fuzz.py: expected one of {', '.join(LAWS)}, got '{name}'")
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    is_repeating = any(Path(argument).is_file() for argument in sys.argv[2:])
    atheris.Setup([sys.argv[0], *sys.argv[2:], *([] if is_repeating else [str(corpus)])], LAWS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
