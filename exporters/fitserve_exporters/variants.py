"""Variants: further files of a version that answer as its fp32 file does, within bounds, and faster.

Each is made from the fp32 file, verified on the same held-out data, and published beside it as `model.<name>.onnx` with
a record of its own. One that loses more than the recipe allows is not published; the version goes on without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fitserve_contract.variant_speed import LEAST_SPEEDS
from fitserve_exporters.candidate.candidate import Candidate
from fitserve_exporters.errors import ExportError, NotVerifiedError, VariantError
from fitserve_exporters.graph.onnx_export import describe
from fitserve_exporters.sessions import CPU, CUDA, OrtSession, ProviderError, can_use_cuda
from fitserve_exporters.variants_fusion import attention_count, fuse_layers
from fitserve_exporters.variants_neighbours import Neighbours, OpenFile, prove_neighbours
from fitserve_exporters.variants_precision import halve
from fitserve_exporters.variants_proof import loss_objections, prove, prove_exact
from fitserve_exporters.variants_quantize import has_convolutions, quantize_statically
from fitserve_exporters.variants_row_quantization import quantize_rows
from fitserve_exporters.variants_speed import SpeedRatio, is_faster, speed_ratios
from fitserve_exporters.verification.truth import Truth
from fitserve_exporters.verification.verify import Verification

AUTO: Final = "auto"
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Kind:
    """A variant that can be made.

    Args:
        name: As it is asked for.
        device: "cpu" or "cuda": where it is verified, measured and served.
        make: Makes it from the fp32 file; raises VariantError.
        is_exact: Held to the fp32 tolerance; else to the loss of accuracy that the recipe allows.
        least_speed: What `auto` asks of it, see `is_faster`.
    """

    name: str
    device: str
    make: Callable[[bytes, Candidate], bytes]
    is_exact: bool = False
    least_speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Variant:
    """What became of a variant that was asked for.

    Args:
        name: Its name.
        device: Where it is to be served.
        refusal: Why it is not published; empty where it is.
        content: The file; empty where there is none.
        verification: Its own figures; None where it did not come so far.
        neighbours: Its rows beside hostile ones; None where it did not come so far.
        speed: Against the fp32 file, on the machine that made it.
    """

    name: str
    device: str
    refusal: str = ""
    content: bytes = b""
    verification: Verification | None = None
    neighbours: Neighbours | None = None
    speed: tuple[SpeedRatio, ...] = ()

    @property
    def file(self) -> str:
        """Name of its file in the version."""
        return f"model.{self.name}.onnx"

    def to_facts(self) -> dict[str, Any]:
        """Gives what the manifest says of its file."""
        assert self.verification is not None
        assert self.neighbours is not None
        return {
            "bytes": len(self.content),
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "variant": self.name,
            "device": self.device,
            "fused_attention_count": attention_count(self.content),
            "onnx": describe(self.content),
            "verification": {**self.verification.to_json(), "neighbours": self.neighbours.to_json()},
            "speed": [ratio.to_json() for ratio in self.speed],
        }


def make_variants(
    candidate: Candidate, fp32: bytes, choice: Sequence[str], truth: Truth | None = None
) -> tuple[Variant, ...]:
    """Makes, verifies and measures variants of a model.

    Args:
        candidate: What the model was exported from.
        fp32: The exported model.
        choice: Names from `read_choice`.
        truth: What the candidate's module answers, where the fp32 file was held against it; made here where it is None.

    Returns:
        Each that was asked for, published or refused; with `auto` only those that are faster here and hold.
    """
    is_auto = AUTO in choice
    kinds = [kind for kind in KINDS if is_auto or kind.name in choice]
    origin = _Origin(candidate, fp32, truth or Truth(candidate))
    return tuple(_made(kind, origin, is_auto=is_auto) for kind in kinds)


def read_choice(text: str) -> tuple[str, ...]:
    """Reads `auto`, `none`, or names separated by commas.

    Raises:
        ExportError: another name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if names == (NONE,):
        return ()
    known = [AUTO, *(kind.name for kind in KINDS)]
    unknown = [name for name in names if name not in known]
    if unknown or (AUTO in names and len(names) > 1):
        expected = f"{AUTO}, {NONE}, or some of {', '.join(known[1:])}"
        raise ExportError(f"--variants: expected {expected}, got '{text[:64]}'")
    return names


@dataclass(frozen=True, slots=True)
class _Origin:
    candidate: Candidate
    fp32: bytes
    truth: Truth


def _made(kind: Kind, origin: _Origin, *, is_auto: bool) -> Variant:
    try:
        _check_device(kind)
        content = kind.make(origin.fp32, origin.candidate)
        session = OrtSession(content, _PROVIDERS[kind.device])
        verification = _proved(kind, origin, session)
        fp32 = OpenFile(origin.fp32, OrtSession(origin.fp32, _PROVIDERS[kind.device]))
        neighbours = prove_neighbours(origin.candidate, OpenFile(content, session), fp32)
    except (VariantError, NotVerifiedError, ProviderError) as error:
        return Variant(kind.name, kind.device, refusal=str(error))
    speed = speed_ratios(origin.fp32, content, origin.candidate, _PROVIDERS[kind.device])
    made = Variant(kind.name, kind.device, "", content, verification, neighbours, speed)
    if is_auto and not is_faster(speed, kind.least_speed):
        wanted = "no faster than fp32" if kind.least_speed == 1.0 else f"less than {kind.least_speed:g}× fp32"
        return replace(made, refusal=f"{wanted} here: {speed_text(speed)}", content=b"")
    return made


def _proved(kind: Kind, origin: _Origin, session: OrtSession) -> Verification:
    if kind.is_exact:
        return prove_exact(origin.candidate, session, origin.truth)
    verification = prove(origin.candidate, session, origin.truth)
    reasons = loss_objections(verification, origin.candidate)
    if reasons:
        raise VariantError("; ".join(reasons))
    return verification


def _check_device(kind: Kind) -> None:
    if kind.device == "cuda" and not can_use_cuda():
        raise VariantError("expected a CUDA device to verify and measure it on, found none: export where there is one")


def speed_text(speed: Sequence[SpeedRatio]) -> str:
    """Writes the speed of a variant for people: `2.41× fp32 at batch 1, 2.60× at 32`."""
    first, *others = (f"{ratio.estimate:.2f}× fp32 at batch {ratio.batch_size}" for ratio in speed)
    return ", ".join([first, *(text.replace(" fp32 at batch", " at") for text in others)])


def variant_files(variants: Sequence[Variant]) -> tuple[dict[str, bytes], Mapping[str, dict[str, Any]]]:
    """Gives the files of those that are published, and what the manifest says of each."""
    published = [variant for variant in variants if not variant.refusal]
    return {one.file: one.content for one in published}, {one.file: one.to_facts() for one in published}


def _int8(fp32: bytes, candidate: Candidate) -> bytes:
    if not has_convolutions(fp32):
        return quantize_rows(fuse_layers(fp32, joins_weights=False))
    if not candidate.calibration:
        raise VariantError("expected a calibration set for a model that convolves, got none: give training examples")
    return quantize_statically(fp32, candidate.calibration, candidate.inputs)


def _fused(fp32: bytes, _: Candidate) -> bytes:
    fused = fuse_layers(fp32)
    if attention_count(fused) == 0:
        raise VariantError("no attention was fused: the graph has none, or spells it in a way that is not known")
    return fused


_PROVIDERS: Final = {"cpu": CPU, "cuda": CUDA}

KINDS: Final = (
    Kind("int8", "cpu", _int8, least_speed=LEAST_SPEEDS["int8"]),
    Kind("fused", "cpu", _fused, is_exact=True),
    Kind("fp16", "cuda", lambda fp32, _: halve(fp32, "fp16")),
    Kind("bf16", "cuda", lambda fp32, _: halve(fp32, "bf16")),
)
