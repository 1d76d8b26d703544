"""Writes a verified candidate into the repository: model, manifest, card and certificate, atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fitserve_contract.certificate import HELD_OUT_FILE, PROBE_FILE, HeldOutExamples, Probe
from fitserve_contract.manifest import FOR_CALLERS, Manifest
from fitserve_contract.repository import CARD_FILE, MANIFEST_FILE, MODEL_FILE
from fitserve_exporters.candidate.candidate import Array, Candidate
from fitserve_exporters.candidate.numpy_reference import NumpyReference
from fitserve_exporters.card import model_card
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.graph.onnx_export import ExportedGraph, describe, export_graph, parameter_count
from fitserve_exporters.graph.randomness import check_nothing_is_drawn
from fitserve_exporters.graph.signature import output_specs
from fitserve_exporters.latency import measure_latency
from fitserve_exporters.provenance import environment, utc_now
from fitserve_exporters.publishing.published_version import PublishedVersion
from fitserve_exporters.publishing.writing import write_version
from fitserve_exporters.replay import MAX_PROBE_EXAMPLES, check_replay, make_probe
from fitserve_exporters.report import verification_text
from fitserve_exporters.sessions import OrtSession, sessions_here
from fitserve_exporters.variants import make_variants, variant_files
from fitserve_exporters.verification.front import prove_front
from fitserve_exporters.verification.judge import objections
from fitserve_exporters.verification.rows import prove_row_independence
from fitserve_exporters.verification.sampling import sampled_indices
from fitserve_exporters.verification.sizes import prove_sizes
from fitserve_exporters.verification.truth import Truth
from fitserve_exporters.verification.values import prove_values
from fitserve_exporters.verification.verify import Verification, verify

MAX_HELD_OUT_EXAMPLES: Final = 2000
MAX_HELD_OUT_BYTES: Final = 8_000_000
TEXT_BYTES: Final = 8
"""What a text takes in the file beside its bytes: its length."""


def publish_candidate(
    candidate: Candidate, repository: Path, name: str, variants: Sequence[str] = ()
) -> PublishedVersion:
    """Exports, verifies and publishes a candidate as the model's next version.

    Args:
        candidate: What to export.
        repository: Model repository; made where it is not there.
        name: Model name.
        variants: Names from `variants.read_choice`; one that does not hold is left out.

    Raises:
        ExportError: the module cannot be exported, or the repository cannot be written.
        NotVerifiedError: the figures speak against it, or ONNX Runtime refuses it; nothing is published.
    """
    return publish_graph(candidate, export_graph(candidate), repository, name, variants)


def publish_graph(
    candidate: Candidate, graph: ExportedGraph, repository: Path, name: str, variants: Sequence[str] = ()
) -> PublishedVersion:
    """Verifies a graph against its candidate and publishes it as the model's next version.

    Args:
        candidate: What the graph has to answer as.
        graph: Made from it, or by anybody.
        repository: As in `publish_candidate`, and so are the others.
        name: Model name.
        variants: Names.

    Raises:
        ExportError, NotVerifiedError: as `publish_candidate`.
    """
    check_nothing_is_drawn(graph.content)
    content, sessions = graph.content, sessions_here(graph.content)
    candidate, sizes = prove_sizes(candidate, sessions, graph.assumptions)
    truth = Truth(candidate)
    verification = verify(candidate, sessions, truth)
    reasons = objections(verification)
    if reasons:
        raise NotVerifiedError("\n".join([verification_text(verification), "not published:", *reasons]))
    rows = prove_row_independence(candidate, content, sessions, truth)
    values = prove_values(candidate, sessions, truth)
    proof: dict[str, Any] = {"sizes": [one.to_json() for one in sizes], "rows": rows.to_json()}
    proof["values"] = values.to_json()
    if candidate.front is not None:
        proof["input_probe_count"] = prove_front(candidate, sessions, truth)
    record = _record(verification, candidate, sessions) | proof
    made = make_variants(candidate, content, variants, truth)
    others, other_facts = variant_files(made)
    # Whoever loads the version runs the probe's first example alone too: coupled rows would be answered otherwise.
    most = 1 if rows.seen else MAX_PROBE_EXAMPLES
    certificate = certificate_files(candidate, most)
    check_replay(Probe.from_bytes(certificate[PROBE_FILE]), sessions, verification.tolerances)
    files = {**candidate.extra_files, **certificate}
    facts = {file: _facts(file, data, candidate, most) for file, data in files.items()}
    manifest = _manifest(candidate, name, content, record, {**facts, **other_facts})
    described = {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: model_card(manifest)}
    path = write_version(repository, name, {MODEL_FILE: content, **others, **described, **files})
    return PublishedVersion(path.model, path.version, path.folder, manifest, verification, made)


def certificate_files(candidate: Candidate, most: int = MAX_PROBE_EXAMPLES) -> dict[str, bytes]:
    """Builds the probe of at most so many examples and, where there are labels, the bounded sample of the held-out set.

    Returns:
        File name to content.
    """
    files = {PROBE_FILE: make_probe(candidate, most).to_bytes()}
    held_out = candidate.held_out
    if held_out.labels is not None and candidate.task is not None:
        indices = sampled_indices(candidate, _affordable_count(candidate))
        files[HELD_OUT_FILE] = HeldOutExamples(held_out.rows(indices), held_out.labels[indices], indices).to_bytes()
    return files


def _affordable_count(candidate: Candidate) -> int:
    """Counts the held-out examples that both bounds allow; at least 1."""
    held_out = candidate.held_out
    total_bytes = sum(map(_bytes_of, held_out.inputs.values()))
    per_example_bytes = max(total_bytes // held_out.example_count, 1)
    return max(1, min(MAX_HELD_OUT_EXAMPLES, MAX_HELD_OUT_BYTES // per_example_bytes))


def _bytes_of(array: Array) -> int:
    return sum(len(text) + TEXT_BYTES for text in array.reshape(-1)) if array.dtype.kind == "O" else array.nbytes


def _record(verification: Verification, candidate: Candidate, sessions: Sequence[OrtSession]) -> dict[str, Any]:
    latency = {session.provider: measure_latency(candidate, session) for session in sessions}
    return {**verification.to_json(), "latency": latency}


def _manifest(
    candidate: Candidate, name: str, content: bytes, verification: Mapping[str, Any], files: Mapping[str, Any]
) -> Manifest:
    return Manifest(
        model=name,
        created_at=utc_now(),
        inputs=tuple(spec.to_tensor_spec() for spec in candidate.inputs),
        outputs=output_specs(content),
        task=candidate.task,
        training=candidate.training,
        verification=verification,
        environment=environment(),
        onnx=describe(content) | _export_facts(candidate),
        files=files,
    )


def _export_facts(candidate: Candidate) -> dict[str, Any]:
    notes: dict[str, Any] = {"notes": list(candidate.notes)} if candidate.notes else {}
    if isinstance(candidate.module, NumpyReference):  # has no parameters: those that the file holds are counted
        return notes
    return {"parameter_count": parameter_count(candidate.module), **notes}


def _facts(file: str, content: bytes, candidate: Candidate, most_probed: int) -> dict[str, Any]:
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if file not in (PROBE_FILE, HELD_OUT_FILE):
        return facts | {FOR_CALLERS: True}
    held_out = candidate.held_out
    most = most_probed if file == PROBE_FILE else _affordable_count(candidate)
    return facts | {
        "example_count": min(most, held_out.example_count),
        "sampled_from": held_out.example_count,
        "sampling_seed": candidate.seed,
        "source": held_out.source,
        "source_sha256": held_out.sha256 or None,
    }
