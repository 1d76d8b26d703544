"""Which of a version's files serves: its fp32 model, or a variant that was proved and measured when it was exported.

Chosen by the manifest, by what is asked for and by the device. The manifest is untrusted: what is not as
expected is no variant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fitserve_contract.repository import MODEL_FILE
from fitserve_contract.variant_speed import LEAST_SPEEDS

if TYPE_CHECKING:
    # The settings come here for a name, and numpy's threads must not be there before stop signals are blocked.
    from fitserve_contract.manifest import Manifest

AUTO: Final = "auto"
FP32: Final = "fp32"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_OWN: Final = "the version's own model"


def is_variant_name(text: str) -> bool:
    """Tells whether a text is `auto` or may name a variant."""
    return _NAME.fullmatch(text) is not None


def has_variants(folder: Path) -> bool:
    """Tells whether a version's folder holds a file that may be a variant."""
    return any(folder.glob(f"{MODEL_FILE.removesuffix('.onnx')}.*.onnx"))


@dataclass(frozen=True, slots=True)
class Choice:
    """A file that may serve.

    Args:
        name: Of the variant; `fp32` for the version's own model.
        file: Of the version.
        reason: Why it is chosen, for people.
        verification: The record that its replay is held against; None: the manifest's own.
    """

    name: str
    file: str
    reason: str
    verification: Mapping[str, Any] | None = field(default=None, repr=False)


def choices(manifest: Manifest | None, wanted: str, device: str) -> tuple[Choice, ...]:
    """Lists the files to try, the best first; the last is always the fp32 model, which goes on serving.

    Args:
        manifest: The version's; None for a foreign file.
        wanted: `auto` takes the fastest for the device; a name that variant alone.
        device: "cpu" or "cuda": where it is to run.
    """
    if wanted == FP32 or manifest is None:
        return (Choice(FP32, MODEL_FILE, _missing(wanted)),)
    found = {file: facts for file, facts in manifest.files.items() if _is_variant(file, facts)}
    named = [file for file, facts in found.items() if facts["variant"] == wanted]
    fitting = [file for file, facts in found.items() if facts["device"] == device and _is_fast(facts)]
    order = named if wanted != AUTO else sorted(fitting, key=lambda file: _speed(found[file]), reverse=True)
    made = [Choice(str(found[f]["variant"]), f, _reason(found[f]), found[f]["verification"]) for f in order]
    return (*made, Choice(FP32, MODEL_FILE, _missing(wanted) if not made else _OWN))


def _is_variant(file: str, facts: Any) -> bool:
    if not isinstance(facts, Mapping):
        return False
    name, device = facts.get("variant"), facts.get("device")
    is_named = isinstance(name, str) and is_variant_name(name) and file == f"model.{name}.onnx" and name != AUTO
    return is_named and device in ("cpu", "cuda") and isinstance(facts.get("verification"), Mapping)


def _speed(facts: Mapping[str, Any]) -> float:
    """Gives the least that the variant was as fast as fp32 where it was exported; 0 where nothing was measured."""
    entries = facts.get("speed")
    ratios = (
        [entry.get("ratio") for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    )
    numbers = [float(ratio) for ratio in ratios if isinstance(ratio, int | float) and not isinstance(ratio, bool)]
    return min(numbers, default=0.0)


def _is_fast(facts: Mapping[str, Any]) -> bool:
    speed, least = _speed(facts), LEAST_SPEEDS.get(facts["variant"], 1.0)
    return speed > 1.0 and speed >= least


def _reason(facts: Mapping[str, Any]) -> str:
    return f"{_speed(facts):.2f} times as fast as fp32 where it was exported"


def _missing(wanted: str) -> str:
    return _OWN if wanted in (AUTO, FP32) else f"the version has no variant '{wanted}'"
