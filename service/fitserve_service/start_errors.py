"""Why a process of the server cannot start, in a sentence."""

from __future__ import annotations


def import_sentence(error: ImportError) -> str:
    """Says what an import wanted and what to do."""
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and name:
        text = f"expected the package '{name}' in this Python's environment, found none"
    else:
        text = f"expected to import {name or 'a package'}, got {type(error).__name__}: {error}"
    return f"{text}; install fitserve anew with its dependencies (pip install --force-reinstall fitserve)"


def failure_sentence(error: BaseException) -> str:
    """Says which error nobody expected."""
    return f"expected to start, got {type(error).__name__}: {error}; please report it with the settings that lead to it"
