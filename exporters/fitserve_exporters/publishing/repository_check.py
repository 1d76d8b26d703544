"""Checks a model repository before anything is computed. Loads neither torch nor onnx."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fitserve_exporters.errors import ExportError


def check_repository(repository: Any, name: str) -> Path:
    """Returns the path of a repository that can be written.

    Raises:
        ExportError: it is no path, or a file is in its place or in the model's, or it cannot be written.
    """
    if not isinstance(repository, str | os.PathLike) or not os.fspath(repository) or "\0" in os.fsdecode(repository):
        raise ExportError(f"repository: expected the path of a folder, got {repository!r}")
    try:
        path = Path(os.fsdecode(repository))
        problem = repository_problem(path, name)
    except (OSError, ValueError) as error:  # a name too long
        reason = getattr(error, "strerror", None) or error
        raise ExportError(
            f"repository: expected the path of a folder, got {str(repository)[:200]!r}: {reason}"
        ) from error
    if problem:
        raise ExportError(problem)
    return path


def repository_problem(repository: Path, name: str | None = None) -> str:
    """Says why a repository, or the model's folder in it, cannot be written; empty where it can."""
    wanted = repository if name is None else repository / name
    nearest = next((path for path in (wanted, *wanted.absolute().parents) if os.path.lexists(path)), repository)
    if name is not None and wanted.is_symlink():
        return (
            f"repository '{repository}': expected the folder of model '{name}' to be no symbolic link, got one to "
            f"'{os.readlink(wanted)}'; nothing is written through links: name the repository that it leads to"
        )
    if not nearest.is_dir():
        return f"repository '{repository}': expected a folder to write in, '{nearest}' is a file; name another folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return (
            f"repository '{repository}': expected a folder to write in, got Permission denied on '{nearest}'; "
            "change its mode or name another folder"
        )
    return ""
