"""Names model files that lie where no server looks for them, and the command that puts them right."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fitserve_contract.printable import printable
from fitserve_contract.repository import MODEL_FILE, is_model_name

_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_NUMBER_LIKE: Final = re.compile(r"[vV]?(?:er(?:sion)?)?[._-]?0*([1-9][0-9]{0,17})")

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + "/._-+=@%,:")

_NOT_OF_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_NAME_CHARS: Final = 128

_MOST: Final = 20
"""Only so many are named: a repository that is no repository may hold thousands."""


def misplaced_in_root(root: Path) -> list[str]:
    """Names a model file in the root of a repository, and versions in folders whose name is no model's."""
    found = (
        [_text(root, root / MODEL_FILE, root / "NAME" / "1" / MODEL_FILE)] if os.path.isfile(root / MODEL_FILE) else []
    )
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not is_model_name(entry.name) and entry.name[0] != ".")
        for name in names:
            if (version := _first_version(root / name)) is not None:
                meant = _NOT_OF_NAMES.sub("-", name).strip("-._")[:_MOST_NAME_CHARS] or "NAME"
                file = printable(f"{name}/{version}/{MODEL_FILE}")
                expected = "expected a model name of letters, digits, '.', '_' and '-'"
                found.append(
                    f"'{file}' is not served: {expected}: mv -T {_quoted(root / name)} {_quoted(root / meant)}"
                )
    return found[:_MOST]


def _first_version(folder: Path) -> str | None:
    """Returns the lowest number of a folder in it that holds a model file; None where there is none."""
    try:
        numbers = [name for name in os.listdir(folder) if _VERSION.fullmatch(name)]
    except OSError:
        return None
    return next((name for name in sorted(numbers, key=int) if os.path.isfile(folder / name / MODEL_FILE)), None)


def misplaced_in_model(root: Path, model: str, versions: tuple[int, ...]) -> list[str]:
    """Names model files in a model's folder that belong to no version: in the folder itself, or in one like `v1`.

    Args:
        root: The repository.
        model: Name of the model's folder.
        versions: Versions that it has.

    Raises:
        OSError: the folder cannot be listed.
    """
    folder = root / model
    free = max(versions, default=0) + 1
    found = []
    if os.path.isfile(folder / MODEL_FILE):
        found.append(_text(root, folder / MODEL_FILE, folder / str(free) / MODEL_FILE))
    linked = {os.path.realpath(folder / str(version)) for version in versions if os.path.islink(folder / str(version))}
    for name in _strange_folders(folder):
        if os.path.realpath(folder / name) in linked:
            # Where releases lie that versions link to.
            continue
        meant = _NUMBER_LIKE.fullmatch(name)
        number = meant[1] if meant and int(meant[1]) not in versions else str(free)
        found.append(_text(root, folder / name, folder / number))
    return found[:_MOST]


def _strange_folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        if not name.startswith(".") and not _VERSION.fullmatch(name) and os.path.isfile(folder / name / MODEL_FILE):
            yield name


def _text(root: Path, found: Path, wanted: Path) -> str:
    where = found if found.name == MODEL_FILE else found / MODEL_FILE
    there = wanted if wanted.name == MODEL_FILE else wanted / MODEL_FILE
    folder = there.parent if wanted.name == MODEL_FILE else there.parent.parent
    make = f"mkdir -p {_quoted(folder)} && " if wanted.name == MODEL_FILE else ""
    command = f"{make}mv {_quoted(found)} {_quoted(wanted)}"
    expected = there.relative_to(root)
    return f"'{printable(str(where.relative_to(root)))}' is not served: expected it at '{expected}': {command}"


def _quoted(path: Path) -> str:
    """Quotes a path for a shell, in one line and in characters that any message can carry."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"
