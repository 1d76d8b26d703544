"""Checks the caller's further files of a version: plain names that no file of the version has, and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fitserve_contract.certificate import HELD_OUT_FILE, PROBE_FILE
from fitserve_contract.repository import CARD_FILE, CHECKSUMS_FILE, MANIFEST_FILE, MODEL_FILE
from fitserve_exporters.errors import ExportError

_TAKEN: Final = (MODEL_FILE, MANIFEST_FILE, CHECKSUMS_FILE, CARD_FILE, PROBE_FILE, HELD_OUT_FILE)
_MODEL_SUFFIX: Final = ".onnx"
_MAX_NAME_BYTES: Final = 200


def check_extra_files(files: Any) -> dict[str, bytes]:
    """Returns further files by name.

    Raises:
        ExportError: no mapping of names to bytes, a name that is a path, hidden or taken, or content that is no bytes.
    """
    if files is None:
        return {}
    if not isinstance(files, Mapping):
        raise ExportError(
            f"extra_files: expected a mapping of file name to bytes, got {type(files).__name__}; for example "
            "{'tokenizer.json': Path('tokenizer.json').read_bytes()}"
        )
    return {_checked_name(name): _checked_content(name, content) for name, content in files.items()}


def _checked_name(name: Any) -> str:
    where = f"extra_files: {name!r}"[:300]
    is_plain = isinstance(name, str) and name.isprintable() and name == name.strip() and not set(name) & {"/", "\\"}
    if not is_plain or not name or name.startswith(".") or len(name.encode()) > _MAX_NAME_BYTES:
        raise ExportError(
            f"{where}: expected a plain file name: printable, without folders, not hidden, at most {_MAX_NAME_BYTES} "
            "bytes; for example 'tokenizer.json'"
        )
    if name.lower() in {taken.lower() for taken in _TAKEN} or name.lower().endswith(_MODEL_SUFFIX):
        raise ExportError(f"{where}: expected a name that no file of a version has; name it otherwise")
    return str(name)


def _checked_content(name: str, content: Any) -> bytes:
    if not isinstance(content, bytes | bytearray | memoryview):
        cure = "encode() it" if isinstance(content, str) else "give what read_bytes() returns"
        raise ExportError(f"extra_files['{name}']: expected bytes, got {type(content).__name__}; {cure}")
    return bytes(content)
