"""Makes a served version out of a folder: checks it, loads it, learns how it can be served, warms it up.

Loading is dear (disk, hashing, graph optimization) and belongs on a loader thread; nothing here touches the registry.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fitserve_contract.certificate import MAX_CERTIFICATE_BYTES, CertificateError
from fitserve_contract.files import UnsafeFileError
from fitserve_contract.folder_view import FolderView
from fitserve_contract.joinability.proof import joining_text
from fitserve_contract.manifest import Manifest, ManifestError, TensorSpec
from fitserve_contract.onnx_file import OnnxFileError, read_facts
from fitserve_contract.printable import printable
from fitserve_contract.repository import MANIFEST_FILE, MAX_TEXT_BYTES, MODEL_FILE, ChecksumError, VersionPath
from fitserve_contract.repository_view import RepositoryChangedError
from fitserve_service.allocator import return_freed_memory
from fitserve_service.control_groups import available_cores
from fitserve_service.costs import CostTable
from fitserve_service.loading.coupled_contents import CoupledContents, content_digest
from fitserve_service.loading.joining_trial import JoiningError, settle_joining
from fitserve_service.loading.load_errors import (
    MEMORY,
    IncompleteError,
    LoadError,
    RunLimitError,
    ShortageError,
    load_error,
    shortage_kind,
    shortage_kind_of_text,
)
from fitserve_service.loading.version_reader import VersionReader
from fitserve_service.loading.version_task import settle_task
from fitserve_service.model_config import DEFAULT_SPOT_CHECK_SHARE, ModelConfig, Overrides, settle_queue
from fitserve_service.placement import placement_text
from fitserve_service.proof import HeldOut, ProofError, Replay, read_certificate, read_held_out, replay
from fitserve_service.run_errors import DeviceMemoryError, GraphError, has_no_memory
from fitserve_service.runtime.run_limit import DEFAULT_RUN_LIMIT_S
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import (
    CUDA_PROVIDER,
    RunawayError,
    Session,
    SessionError,
    SessionOptions,
    device_kind,
)
from fitserve_service.shared_weights import SharedWeights
from fitserve_service.signature import Signature, with_ranges
from fitserve_service.variants import AUTO, FP32, Choice, choices
from fitserve_service.warmup import measure

MAX_MODEL_BYTES: Final = 8 << 30
"""Largest model or external file that is loaded."""

MAX_CALLERS_FILE_BYTES: Final = 8 << 20
"""Largest file that callers may ask for: it is held in memory, and one message carries it."""

_SINGLE_THREAD_S: Final = 0.002
"""A model that answers one example within this time gets one thread: more would cost more than they give."""

_WARM_UP_BUDGET_S: Final = 0.2


_REFUSALS: Final = (
    *(UnsafeFileError, ManifestError, ChecksumError, CertificateError),
    *(OnnxFileError, SessionError, RunawayError, ProofError, JoiningError),
)


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Content:
    model: bytes
    manifest_json: bytes
    reader: VersionReader

    @property
    def is_summed(self) -> bool:
        """It has checksums, and they hold."""
        return self.reader.expected is not None


class Loader:
    """Loads versions. Thread-safe: it holds no state but its settings.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N", where the model's overrides name none.
        is_proof_required: Refuses versions without manifest, checksums and probe, which are else served unverified.
        process_count: Processes that share the cores.
        p99_target_ms: Latency target of models whose overrides name none; 0: no target.
        device_memory_limit_bytes: On a GPU, most memory of a model whose overrides name none; 0: all that is free.
        max_queue_ms: How much work may wait for models whose overrides do not say; None: by the time of a run.
        variant: "auto", "fp32" or a variant's name, where the model's overrides name none.
        spot_check_share: How many of the joined requests are run again and compared, for models that do not say.
        max_answer_bytes: Larger answers are refused; 0: none is.
        max_elements: See `SessionOptions`.
        run_limit_s: Seconds for each run of one row before a version is READY.
        on_run: See `SessionOptions`.
        weights: Opens sessions whose weights other processes share; None: each session has its own.
        coupled: Files that spot checks found to mix rows: they are not joined again.
    """

    def __init__(
        self,
        device: str,
        *,
        is_proof_required: bool = False,
        process_count: int = 1,
        variant: str = AUTO,
        p99_target_ms: float = 0.0,
        device_memory_limit_bytes: int = 0,
        max_queue_ms: float | None = None,
        spot_check_share: float = DEFAULT_SPOT_CHECK_SHARE,
        max_answer_bytes: int = 0,
        max_elements: int = 0,
        run_limit_s: float = DEFAULT_RUN_LIMIT_S,
        on_run: Callable[[float], None] | None = None,
        weights: SharedWeights | None = None,
        coupled: CoupledContents | None = None,
    ) -> None:
        self._device = device
        self._open: Callable[..., Session] = Session if weights is None else weights.open_session
        self._defaults = ModelConfig(
            p99_target_ms=p99_target_ms,
            device_memory_limit_bytes=device_memory_limit_bytes,
            spot_check_share=spot_check_share,
        )
        self._max_queue_ms = max_queue_ms
        self._coupled = coupled or CoupledContents()
        self._max_answer_bytes = max_answer_bytes
        self._limits = SessionOptions(run_limit_s=run_limit_s, on_run=on_run, max_elements=max_elements)
        self._variant = variant
        self._core_count = max(available_cores() // process_count, 1)
        self._is_proof_required = is_proof_required

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:
        """Loads one version and warms it up.

        Raises:
            IncompleteError: a file is missing, or not what its checksums say.
            ShortageError: there was too little memory, or too few descriptors or threads; the files may be good.
            LoadError: a file is unsafe or not what the runtime takes; or the version does not answer here as its
                certificate says.
        """
        begin_s = time.monotonic()
        with _told(), path.view() as folder:
            content = _read(folder)
            manifest = Manifest.from_bytes(content.manifest_json) if content.manifest_json else None
            served = self._make_best(path, overrides, content, manifest)
        del content
        # Up to the size of a model, which the allocator would keep.
        return_freed_memory()
        served.load_ms = (time.monotonic() - begin_s) * 1e3
        return served

    def _make_best(
        self, path: VersionPath, overrides: Overrides, content: _Content, manifest: Manifest | None
    ) -> ServedVersion:
        """Makes it of the best variant that holds here; one that does not is named, and fp32 goes on serving."""
        wanted = str(overrides.values.get("variant") or self._variant)
        device = device_kind(str(overrides.values.get("device", self._device)))
        *variants, fp32 = choices(manifest if content.is_summed else None, wanted, device)
        for choice in variants:
            try:
                with _told():
                    model = content.reader.read(choice.file, MAX_MODEL_BYTES)
                    return self._make(path, overrides, replace(content, model=model), manifest, choice)
            except (IncompleteError, ShortageError):
                # The variant is not to blame: its files still come, or something is short.
                raise
            except LoadError as error:
                note = f"variant {choice.name} does not serve here: {error}"
                _log.warning("%s version %d: %s; fp32 serves in its place", path.model, path.version, note)
                fp32 = replace(fp32, reason=note)
        return self._make(path, overrides, content, manifest, fp32)

    def _make(
        self, path: VersionPath, overrides: Overrides, content: _Content, manifest: Manifest | None, choice: Choice
    ) -> ServedVersion:
        """Makes it of one file; without CUDA graphs where they cannot be, on the CPU where a GPU is nobody's demand."""
        try:
            return self._make_of(path, overrides, content, manifest, choice)
        except GraphError as error:
            note, plain = str(error), overrides.put_right("cuda_graphs", False, str(error))
        except (SessionError, DeviceMemoryError) as error:
            device = str(overrides.values.get("device", self._device))
            if device != "auto" or device_kind(device) == "cpu" or choice.name != FP32:
                raise
            note = f"the GPU does not take it: {error}"
            plain = overrides.put_right("device", "cpu", note)
        _log.warning("%s version %d: %s; it is served without", path.model, path.version, note)
        return self._make(path, plain, content, manifest, choice)

    def _make_of(
        self, path: VersionPath, overrides: Overrides, content: _Content, manifest: Manifest | None, choice: Choice
    ) -> ServedVersion:
        facts = read_facts(content.model)
        external = {name: content.reader.read(name, MAX_MODEL_BYTES) for name in sorted(facts.external_files)}
        device = str(overrides.values.get("device", self._device))
        config = replace(overrides.apply(self._defaults), device=device, variant=choice.name)

        def open_session(threads: int) -> Session:
            options = _session_options(self._limits, config, threads)
            return self._open(content.model, facts, options, external)

        session = open_session(config.intra_op_num_threads or 1)
        for line in session.unserved:
            _log.warning("%s version %d: %s", path.model, path.version, line)
        digest = content_digest([content.model, *external.values()])
        joining = settle_joining(session, content.model, config, overrides, self._coupled.problem(digest))
        config, comments = joining.config, {"joinable": joining.comment}
        session, config, costs = _settle_threads(session, config, open_session, self._core_count)
        config = _settle_parallel_runs(session, config, self._core_count)
        if "max_queue_ms" not in overrides.values:
            config, comments["max_queue_ms"] = _settle_queue(config, self._max_queue_ms, costs)
        config, comments["task"] = settle_task(config, manifest, session.outputs)
        row_limit = int(overrides.values.get("max_batch_size", 0))
        inputs = _ranged_inputs(session, manifest)
        signature = Signature(inputs, session.outputs, config.joinable, row_limit, self._max_answer_bytes)
        said = {key: "model.toml" for key in overrides.values if key != "joinable" and not comments.get(key)}
        comments |= said | {"variant": choice.reason}
        if session.placement.node_counts:
            comments["device"] = placement_text(session.placement)
        comments |= overrides.notes
        replayed, held_out = self._prove(content, _proved_by(manifest, choice), session, signature)
        return ServedVersion(
            model=path.model,
            version=path.version,
            session=session,
            signature=signature,
            config=config,
            comments=comments,
            manifest=manifest,
            manifest_json=content.manifest_json,
            is_verified=replayed is not None and content.is_summed,
            files=_files_for_callers(manifest, content),
            costs=costs,
            replay=replayed,
            held_out=held_out,
            joining=joining_text(joining.problem),
            content_digest=digest,
            summed_digest=_summed_digest(content.reader),
            file_sums=content.reader.sums,
        )

    def _prove(
        self, content: _Content, manifest: Manifest | None, session: Session, signature: Signature
    ) -> tuple[Replay | None, HeldOut | None]:
        """Replays the version's probe on the session that is to serve, and reads its held-out examples."""

        def read(name: str) -> bytes:
            return content.reader.read(name, MAX_CERTIFICATE_BYTES)

        certificate = read_certificate(read, manifest) if manifest is not None else None
        if self._is_proof_required and (certificate is None or not content.is_summed):
            parts = (("manifest", manifest), ("checksums", content.reader.expected), ("probe", certificate))
            missing = " and no ".join(name for name, part in parts if part is None)
            text = f"expected manifest, checksums and probe (--require-proof), found no {missing}"
            raise LoadError(f"certificate: {text}")
        replayed = replay(session, certificate) if certificate is not None else None
        return replayed, read_held_out(read, manifest, signature) if manifest is not None else None


def _summed_digest(reader: VersionReader) -> str:
    """Names what a version's checksums say, whichever of its variants serves; empty where it has none."""
    lines = sorted(f"{digest}  {name}" for name, digest in (reader.expected or {}).items())
    return content_digest([line.encode(errors="surrogateescape") for line in lines]) if lines else ""


def _session_options(base: SessionOptions, config: ModelConfig, threads: int) -> SessionOptions:
    return replace(
        base,
        device=config.device,
        intra_op_num_threads=threads,
        max_cpu_nodes=config.max_cpu_nodes,
        batch_size_buckets=config.batch_size_buckets,
        has_graphs=config.cuda_graphs,
        device_memory_limit_bytes=config.device_memory_limit_bytes,
    )


def _proved_by(manifest: Manifest | None, choice: Choice) -> Manifest | None:
    """Gives the manifest with the record of the file that serves: a variant has bounds of its own."""
    if manifest is None or choice.verification is None:
        return manifest
    return replace(manifest, verification=choice.verification)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Puts into words, fit for a caller, what a version is refused for; tells its content from circumstances."""
    try:
        yield
    except (FileNotFoundError, ChecksumError, RepositoryChangedError) as error:
        name = f"'{_name(error)}'" if isinstance(error, FileNotFoundError) else ""
        text = f"file {name}: expected it in the version, found none" if name else str(error)
        raise IncompleteError(text) from None
    except OSError as error:
        text = f"file '{_name(error)}': cannot be read: {error.strerror}"
        if isinstance(error, PermissionError):
            text += f"; let user {os.geteuid()} read the version's folder and files (chmod -R u+rX)"
        if kind := shortage_kind(error):
            raise ShortageError(text, kind) from None
        raise LoadError(text) from None
    except MemoryError:
        raise ShortageError("out of memory while loading the version's files", MEMORY) from None
    except _REFUSALS as error:
        kind = MEMORY if has_no_memory(str(error)) else shortage_kind_of_text(str(error))
        if isinstance(error, RunawayError) and not kind:
            raise RunLimitError(str(error)) from error
        raise load_error(str(error), kind) from error
    except RuntimeError as error:
        if not (kind := shortage_kind_of_text(str(error))):
            raise
        raise ShortageError(f"no thread could be started: {error}", kind) from error


def _name(error: OSError) -> str:
    return printable(Path(error.filename or "").name)


def _read(folder: FolderView) -> _Content:
    """Reads what is served, and holds it against the checksums where there are any."""
    reader = VersionReader(folder)
    model = reader.read(MODEL_FILE, MAX_MODEL_BYTES)
    try:
        manifest_json = reader.read(MANIFEST_FILE, MAX_TEXT_BYTES)
    except FileNotFoundError:
        manifest_json = b""
    return _Content(model, manifest_json, reader)


def _files_for_callers(manifest: Manifest | None, content: _Content) -> dict[str, bytes]:
    """Reads what callers may ask for; without checksums a manifest could name any file of the folder, so none."""
    if manifest is None or not content.is_summed:
        return {}
    return {name: content.reader.read(name, MAX_CALLERS_FILE_BYTES) for name in manifest.files_for_callers}


def _settle_threads(
    session: Session, config: ModelConfig, open_session: Callable[[int], Session], cores: int
) -> tuple[Session, ModelConfig, CostTable]:
    """Warms the model up; one that takes its time gets all cores, where that makes it faster."""
    sizes = _warm_up_sizes(config)
    budget_s = float("inf") if config.batch_size_buckets else _WARM_UP_BUDGET_S
    single_s, costs = measure(session, sizes, budget_s=budget_s)
    if config.intra_op_num_threads == 0 and single_s > _SINGLE_THREAD_S and cores > 1:
        wider = open_session(cores)
        wider_s, wider_costs = measure(wider, sizes, budget_s=budget_s)
        if 0 < wider_s < single_s:
            return wider, replace(config, intra_op_num_threads=cores), wider_costs
    return session, replace(config, intra_op_num_threads=config.intra_op_num_threads or 1), costs


def _settle_parallel_runs(session: Session, config: ModelConfig, cores: int) -> ModelConfig:
    """Decides how many runs the runtime has at a time: what each leaves of the cores, the next may take."""
    most = 1 if session.provider == CUDA_PROVIDER else max(cores // config.intra_op_num_threads, 1)
    return replace(config, parallel_runs=config.parallel_runs or most)


def _settle_queue(config: ModelConfig, wanted_ms: float | None, costs: CostTable) -> tuple[ModelConfig, str]:
    """Decides how much work may wait: as the server says, else by what a run takes; with where it comes from."""
    if wanted_ms is not None:
        return replace(config, max_queue_ms=wanted_ms), "--max-queue-ms"
    return settle_queue(config, costs.least_s * 1e3)


def _warm_up_sizes(config: ModelConfig) -> list[int]:
    """Every bucket, as the promise is; else sizes that are only for the cost table, as many as the time allows."""
    if config.max_batch_size == 0:
        return [1]
    sizes = config.batch_size_buckets or [1 << shift for shift in range(7)]
    return [size for size in sizes if size <= config.max_batch_size]


def _ranged_inputs(session: Session, manifest: Manifest | None) -> tuple[TensorSpec, ...]:
    try:
        return with_ranges(session.inputs, () if manifest is None else manifest.inputs)
    except ValueError as error:
        raise ManifestError(str(error)) from None
