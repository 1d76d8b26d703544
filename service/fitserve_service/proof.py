"""The gate before READY: a version's certificate, replayed on the session that is to serve.

Checksums tell that the files are those that were published. The replay tells that this machine, with its provider,
threads and graph optimizations, gives the answers that torch gave: whatever passed the checksums meets it.
Shapes: B probe examples.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fitserve_contract.certificate import HELD_OUT_FILE, PROBE_FILE, CertificateError, HeldOutExamples, Probe
from fitserve_contract.datatypes import datatype_of
from fitserve_contract.manifest import Manifest
from fitserve_contract.tasks import Task
from fitserve_contract.tensor_bytes import Array
from fitserve_service.errors import ServiceError
from fitserve_service.runtime.run_limit import RunLimit
from fitserve_service.scoring import check_labels, reals
from fitserve_service.session import OperatorError, Session
from fitserve_service.signature import Signature, Tensor

_TOLERANCES: Final = "manifest.verification.tolerance.per_output"


class ProofError(Exception):
    """A version that does not answer as its certificate says; the text has the figures and is fit for a caller."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A version's held-out examples as the engine takes them.

    Args:
        inputs: Input name to (B, ...).
        labels: As the task says.
        indices: (B): where each lies in the set that it was sampled from.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    indices: Array


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a version brings to prove itself.

    Args:
        probe: Inputs with torch's answers.
        tolerances: Largest max|answer - float64| by output.
    """

    probe: Probe
    tolerances: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Gap:
    """How far one output lay from torch's float64 at one batch size."""

    output: str
    batch_size: int
    max_abs_diff: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay that held.

    Args:
        gaps: Every output at every batch size.
        replay_ms: Time that it took.
    """

    gaps: tuple[Gap, ...]
    replay_ms: float


def read_certificate(read: Callable[[str], bytes], manifest: Manifest) -> Certificate | None:
    """Reads a version's certificate; None where it has none, and its manifest claims none.

    Args:
        read: Gives a file of the version; raises FileNotFoundError.
        manifest: The version's.

    Raises:
        CertificateError: half of it is missing, or it cannot be understood.
    """
    content = _read_described(read, PROBE_FILE, manifest)
    if content is None:
        return None
    probe = Probe.from_bytes(content)
    bounds = _object(_object(manifest.verification, "tolerance"), "per_output")
    return Certificate(probe, {name: _tolerance(bounds, name) for name in probe.fp64})


def read_held_out(read: Callable[[str], bytes], manifest: Manifest, signature: Signature) -> HeldOut | None:
    """Reads a version's held-out examples and holds them against its signature and task; None where it has none.

    Raises:
        CertificateError: they cannot be understood, or do not fit.
    """
    content = _read_described(read, HELD_OUT_FILE, manifest)
    if content is None or manifest.task is None:
        return None
    examples = HeldOutExamples.from_bytes(content)
    labels = _tensors(HELD_OUT_FILE, {"labels": examples.labels})["labels"]
    held_out = HeldOut(_tensors(HELD_OUT_FILE, examples.inputs), labels, examples.indices)
    _check_held_out(held_out, signature, manifest.task)
    return held_out


def replay(session: Session, certificate: Certificate) -> Replay:
    """Runs the probe, all of it at once and its first example alone, and holds the answers against torch's.

    Raises:
        ProofError: an answer is further off than the certificate allows, or the model does not run the probe.
        CertificateError: the probe's outputs are not the model's.
    """
    begin_s = time.monotonic()
    outputs = [spec.name for spec in session.outputs]
    if sorted(outputs) != sorted(certificate.tolerances):
        raise CertificateError(
            f"{PROBE_FILE}: expected outputs {sorted(outputs)}, got {sorted(certificate.tolerances)}"
        )
    count = len(next(iter(certificate.probe.inputs.values())))
    with session.limit() as limit:
        gaps = [gap for size in sorted({count, 1}) for gap in _gaps(session, certificate, size, limit)]
    too_far = [gap for gap in gaps if not gap.max_abs_diff <= gap.allowed]
    if too_far:
        raise ProofError(f"replay of the probe on {session.provider}: {'; '.join(map(_gap_text, too_far))}")
    return Replay(tuple(gaps), (time.monotonic() - begin_s) * 1e3)


def _gaps(session: Session, certificate: Certificate, size: int, limit: RunLimit) -> list[Gap]:
    probe = certificate.probe
    inputs = _tensors(PROBE_FILE, {name: array[:size] for name, array in probe.inputs.items()})
    try:
        Signature(session.inputs, session.outputs, False).check(inputs)
        answers = session.run(inputs, list(probe.fp64), limit)
    except (OperatorError, ServiceError) as error:
        raise ProofError(f"replay of the probe on {session.provider}, batch size {size}: {error}") from None
    return [
        Gap(name, size, _distance(name, answers[name], probe.fp32[name][:size], exact[:size]), allowed)
        for (name, exact), allowed in zip(probe.fp64.items(), certificate.tolerances.values(), strict=True)
    ]


def _distance(name: str, answer: Tensor, eager: Array, exact: Array) -> float:
    """Computes max|answer - float64|; infinite where NaN or an infinity is not the same as eager torch's."""
    found = reals(answer)
    if found.shape != exact.shape or eager.shape != exact.shape:
        raise ProofError(f"replay of the probe: output '{name}': expected shape {exact.shape}, got {found.shape}")
    wide = [array.astype(np.float64) for array in (found, eager, exact)]
    is_finite = np.logical_and.reduce([np.isfinite(array) for array in wide])
    served, like = wide[0][~is_finite], wide[1][~is_finite]
    if not ((served == like) | (np.isnan(served) & np.isnan(like))).all():
        return math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(wide[0] - wide[2], where=is_finite, out=np.zeros(exact.shape)).max(initial=0.0))


def _gap_text(gap: Gap) -> str:
    found = f"{gap.max_abs_diff:.3g}" if math.isfinite(gap.max_abs_diff) else "NaN or infinities where torch has none"
    where = f"output '{gap.output}' at batch size {gap.batch_size}"
    return f"{where}: expected max|answer - torch float64| <= {gap.allowed:.3g}, got {found}"


def _read_described(read: Callable[[str], bytes], name: str, manifest: Manifest) -> bytes | None:
    """Reads a file of the certificate; the manifest's hash of it must hold, and a file that it names must be there."""
    facts = manifest.files.get(name)
    try:
        content = read(name)
    except FileNotFoundError:
        if facts is not None:
            raise CertificateError(f"file '{name}': expected it, as manifest.files names it, found none") from None
        return None
    expected = facts.get("sha256") if isinstance(facts, dict) else None
    found = hashlib.sha256(content).hexdigest()
    if expected is not None and found != expected:
        raise CertificateError(f"file '{name}': expected sha256 {str(expected)[:64]} of manifest.files, got {found}")
    return content


def _object(value: Any, key: str) -> Mapping[str, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise CertificateError(f"{_TOLERANCES}: expected a tolerance for each output of {PROBE_FILE}, found none")
    return found


def _tolerance(bounds: Mapping[str, Any], output: str) -> float:
    value = bounds.get(output)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise CertificateError(f"{_TOLERANCES}['{output[:64]}']: expected a number >= 0, got {str(value)[:32]}")
    return float(value)


def _check_held_out(held_out: HeldOut, signature: Signature, task: Task) -> None:
    try:
        count = signature.check(held_out.inputs)
        if signature.has_batch_axis:
            check_labels(signature, task, held_out.labels, count)
    except ServiceError as error:
        raise CertificateError(f"{HELD_OUT_FILE}: {error}") from None


def _tensors(file: str, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    try:
        return {name: Tensor(datatype_of(array.dtype), array) for name, array in arrays.items()}
    except ValueError as error:
        raise CertificateError(f"{file}: {error}") from None
