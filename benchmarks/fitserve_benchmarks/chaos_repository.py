"""Faults of the repository itself: links that flip, folders that are replaced, slow copies, mounts that go away.

The servers' repository is a link to a root beside it, as git-sync and Kubernetes keep theirs.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fitserve_contract.repository import MODEL_FILE, version_path

if TYPE_CHECKING:
    from fitserve_benchmarks.chaos import Chaos

_ROOTS: Final = "roots"
_PIECES: Final = 5


def make_root(repository: Path) -> None:
    """Makes an empty root and the link to it that the servers are given."""
    root = repository.parent / _ROOTS / "0"
    root.mkdir(parents=True)
    repository.symlink_to(root)


def flip_link(chaos: Chaos) -> None:
    """Another root with one version more takes the place of the first by a link; the old root is removed."""
    number, old = chaos.next_version(), chaos.repository.resolve()
    _point_at(chaos.repository, _copied_with_next(chaos))
    chaos.wait_until_served(number)
    shutil.rmtree(old)


def replace_root(chaos: Chaos) -> None:
    """Another folder with one version more takes the root's own place; for a moment there is none."""
    number, root = chaos.next_version(), chaos.repository.resolve()
    new, aside = _copied_with_next(chaos), root.with_name(f"{root.name}-aside")
    root.rename(aside)
    time.sleep(chaos.random.uniform(0.0, 0.5))
    new.rename(root)
    chaos.wait_until_served(number)
    shutil.rmtree(aside)


def copy_slowly(chaos: Chaos) -> None:
    """A version without checksums comes piece by piece, by chance at its full size from the first."""
    number = chaos.next_version()
    content = (chaos.prepare() / MODEL_FILE).read_bytes()
    folder = version_path(chaos.repository, chaos.model, number).folder
    folder.mkdir()
    time.sleep(chaos.random.uniform(0.0, 1.0))
    cuts = sorted(chaos.random.sample(range(1, len(content)), _PIECES - 1))
    with (folder / MODEL_FILE).open("wb") as file:
        if chaos.random.random() < 0.5:
            file.truncate(len(content))
        for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
            file.write(content[begin:end])
            file.flush()
            time.sleep(chaos.random.uniform(0.1, 0.6))
    chaos.wait_until_served(number)


def empty_mount(chaos: Chaos) -> None:
    """The volume is gone for up to two seconds, and an empty folder is in its place."""
    root, empty = chaos.repository.resolve(), chaos.work / "empty"
    empty.mkdir(exist_ok=True)
    _point_at(chaos.repository, empty)
    time.sleep(chaos.random.uniform(0.2, 2.0))
    _point_at(chaos.repository, root)


def _copied_with_next(chaos: Chaos) -> Path:
    """Copies the root beside it, and the next version into the copy."""
    number = chaos.next_version()
    prepared, root = chaos.prepare(), chaos.repository.resolve()
    copied = root.with_name(str(number))
    shutil.copytree(root, copied)
    shutil.copytree(prepared, version_path(copied, chaos.model, number).folder)
    return copied


def _point_at(link: Path, root: Path) -> None:
    """Replaces a link at once."""
    new = link.with_name(f"{link.name}-new")
    new.symlink_to(root)
    os.replace(new, link)
