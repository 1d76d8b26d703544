"""Sessions of several processes that have a model's weights in memory once.

ONNX Runtime saves the model as it was optimized for this machine, weights packed for the kernels included, and every
process maps that file instead of holding weights of its own. The copy is made from bytes that were checked, in a folder
that is the server's alone, and it serves only where it answers bit for bit as the model itself does.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from fitserve_contract.onnx_file import OnnxFacts
from fitserve_service.session import Session, SessionError, SessionOptions, device_kind, runtime_version
from fitserve_service.warmup import answers_alike
from fitserve_service.weight_files import lease_copy

MIN_SHARED_BYTES: Final = 16 << 20
"""A smaller model is not worth a file: the libraries around it take several times as much in each process."""

_GRAPH: Final = "model.onnx"
_WEIGHTS: Final = "weights"

_SAVING: Final = {
    "session.optimized_model_external_initializers_file_name": _WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}
_FOLDER_ENTRY: Final = "session.model_external_initializers_file_folder_path"

_log = logging.getLogger(__name__)


class SharedWeights:
    """Opens sessions whose weights are shared with other processes. Thread-safe: the folder is all its state.

    Args:
        root: The folder of copies; see `weight_files`.
        min_bytes: Models smaller than this are not shared.
    """

    def __init__(self, root: Path, min_bytes: int = MIN_SHARED_BYTES) -> None:
        self._root = root
        self._min_bytes = min_bytes

    def open_session(
        self, model: bytes, facts: OnnxFacts, options: SessionOptions, external: Mapping[str, bytes]
    ) -> Session:
        """Opens a session; on a GPU, of a small model, or where no copy can be made, as `Session` itself does.

        Args:
            model: Serialized ModelProto.
            facts: What `read_facts` read from it.
            options: How it runs.
            external: Contents of its external files by their relative path.

        Raises:
            SessionError: the runtime refuses the model.
        """
        size_bytes = len(model) + sum(map(len, external.values()))
        if size_bytes >= self._min_bytes and device_kind(options.device) == "cpu":
            try:
                return self._open_copy(model, facts, options, external)
            except (OSError, SessionError) as error:
                _log.warning("weights are not shared between workers: %s", error)
        return Session(model, facts, options, external)

    def _open_copy(
        self, model: bytes, facts: OnnxFacts, options: SessionOptions, external: Mapping[str, bytes]
    ) -> Session:
        def make(folder: Path) -> None:
            saving = replace(options, saves_to=folder / _GRAPH, entries=_SAVING)
            own = Session(model, facts, saving, external)
            copy = _session_of(folder, facts, options)
            if (own.inputs, own.outputs) != (copy.inputs, copy.outputs) or not answers_alike(own, copy):
                raise SessionError("the model's optimized copy does not answer as the model does")

        lease = lease_copy(self._root, _key(model, external), make)
        try:
            session = _session_of(lease.folder, facts, options)
        except BaseException:
            lease.release()
            raise
        # At the process's end the kernel gives it back, and the parent removes the folder.
        weakref.finalize(session, lease.release).atexit = False
        return session


def _session_of(folder: Path, facts: OnnxFacts, options: SessionOptions) -> Session:
    entries = {_FOLDER_ENTRY: str(folder)}
    copied = replace(facts, external_files=set())
    return Session((folder / _GRAPH).read_bytes(), copied, replace(options, is_optimized=True, entries=entries))


def _key(model: bytes, external: Mapping[str, bytes]) -> str:
    """Names what a copy is made of. Threads are not part of it: they change neither the graph nor how weights lie."""
    parts = hashlib.sha256(f"{runtime_version()}\n".encode())
    for name, content in [("", model), *sorted(external.items())]:
        parts.update(f"{len(name.encode())} {name} {len(content)}\n".encode())
        parts.update(content)
    return parts.hexdigest()
