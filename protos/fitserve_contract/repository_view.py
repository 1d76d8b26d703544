"""Reads a repository whose files may be symbolic links, and never a byte from anywhere else.

Start with `RepositoryRoot.view`. A view reads the text of each link once, so that all files that are read through it
are of one state of the repository, also where a link is flipped meanwhile (git-sync's `current`, Kubernetes' `..data`).
The real path that comes out of it is opened from the root's descriptor, component by component and following no link.
That does what `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)` does, on every kernel and under every seccomp filter.
Links are followed for reading alone: `files.replace_durably` and `labels` write through none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

from fitserve_contract.files import (
    UnsafeFileError,
    check_regular,
    open_folder,
    open_steps,
    read_descriptor,
    relative_parts,
    sha256_of,
)
from fitserve_contract.printable import printable

MAX_LINKS: Final = 40
"""A path that goes through more links is refused, as the kernel refuses it."""

_TRIES: Final = 4
_MOST_CHARS: Final = 256
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

_Result = TypeVar("_Result")


class LinkError(UnsafeFileError):
    """A symbolic link that is not followed; the text names it, where it leads, and the cure."""


class OutsideLinkError(LinkError):
    """A symbolic link that leaves the repository."""


class RepositoryChangedError(UnsafeFileError):
    """Links or folders were replaced while they were read; another view shows what is there now."""


@dataclass(frozen=True, slots=True)
class RepositoryRoot:
    """Where a repository is, and where its links may lead.

    Args:
        path: The repository. Links on the way to it are followed, anew for each view.
        follow_links: The one folder outside that links may lead to; None: none may leave.
    """

    path: Path
    follow_links: Path | None = None

    @contextlib.contextmanager
    def view(self) -> Iterator[RepositoryView]:
        """Opens the repository as it is now.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        with contextlib.ExitStack() as stack:
            places = [_open_place(self.path, stack)]
            if self.follow_links is not None:
                with contextlib.suppress(FileNotFoundError):
                    places.append(_open_place(self.follow_links, stack))
            yield RepositoryView(self, places)

    def holds(self, path: Path) -> bool:
        """Tells whether a path leads, links followed, to what may be read; opening it checks again."""
        places = [self.path] if self.follow_links is None else [self.path, self.follow_links]
        real = os.path.realpath(path)
        return any(_Place(os.path.realpath(place), -1).below(real) is not None for place in places)


Root: TypeAlias = Path | RepositoryRoot
"""A repository; a path's links may not leave it."""


def root_of(root: Root) -> RepositoryRoot:
    """Returns a repository's root, with no place outside where only its path is given."""
    return root if isinstance(root, RepositoryRoot) else RepositoryRoot(root)


def read_settled(root: Root, read: Callable[[RepositoryView], _Result]) -> _Result:
    """Reads from one view; from another one where links or folders were replaced meanwhile.

    Raises:
        RepositoryChangedError: they were, several times in a row.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(RepositoryChangedError), root_of(root).view() as view:
            return read(view)
    with root_of(root).view() as view:
        return read(view)


class _Place(NamedTuple):
    """A folder that may be read: its real path, and its descriptor."""

    path: str
    descriptor: int

    def below(self, path: str) -> list[str] | None:
        """Returns a real path's components below this folder; None where it is elsewhere."""
        if path == self.path:
            return []
        prefix = self.path.rstrip("/") + "/"
        return path[len(prefix) :].split("/") if path.startswith(prefix) else None

    def is_at(self, path: Path) -> bool:
        """Tells whether a path still leads to this folder."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self.descriptor))
        except OSError:
            return False


class _Step(NamedTuple):
    """A component still to be walked: its name, and the link whose text it is of; empty: of the path asked for."""

    name: str
    link: str = ""


class RepositoryView:
    """One look at a repository, each of whose links is read once. Not thread-safe; made by `RepositoryRoot.view`."""

    def __init__(self, root: RepositoryRoot, places: list[_Place]) -> None:
        self._root = root
        self._places = places
        self._texts: dict[str, str | None] = {}

    @contextlib.contextmanager
    def open(self, relative: str, *, name: str = "") -> Iterator[int]:
        """Opens a regular file for reading.

        Args:
            relative: Path below the root, with `/`.
            name: What messages call it; empty: `relative`.

        Yields:
            File descriptor, closed on exit.

        Raises:
            UnsafeFileError: absolute path, `..`, a hard link, or no regular file.
            LinkError: a link that leaves the repository, dangles, or goes in circles.
            RepositoryChangedError: another view is needed.
            OSError: it cannot be opened.
        """
        name = name or relative
        with self._opened(relative, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            check_regular(descriptor, name)
            yield descriptor

    def read(self, relative: str, *, max_bytes: int, name: str = "") -> bytes:
        """Reads a whole file; raises as `open`, and UnsafeFileError where it is larger, or changes meanwhile."""
        with self.open(relative, name=name) as descriptor:
            return read_descriptor(descriptor, name or relative, max_bytes)

    def sha256(self, relative: str, *, name: str = "") -> str:
        """Computes the SHA-256 of a file, in lower-case hexadecimal; raises as `open`."""
        with self.open(relative, name=name) as descriptor:
            return sha256_of(descriptor)

    def status(self, relative: str) -> os.stat_result:
        """Returns the status of what a path leads to; raises as `open`, but for files of any type."""
        with self._opened(relative, os.O_PATH) as descriptor:
            return os.fstat(descriptor)

    def is_folder(self, relative: str) -> bool:
        """Tells whether a path leads to a folder; raises as `status`."""
        return stat.S_ISDIR(self.status(relative).st_mode)

    def entries(self, relative: str) -> list[os.DirEntry[str]]:
        """Lists a folder, links unfollowed; raises as `open`, NotADirectoryError."""
        with self._opened(relative, os.O_RDONLY | os.O_NONBLOCK) as descriptor, os.scandir(descriptor) as found:
            entries = list(found)
            for entry in entries:
                # Its type must be known before the descriptor is closed; file systems that leave it out are asked.
                entry.is_dir(follow_symlinks=False)
            return entries

    def real_path(self, relative: str) -> str:
        """Resolves a path that must be there to one without links; raises as `status`."""
        return self._resolve(relative)

    @contextlib.contextmanager
    def _opened(self, relative: str, flags: int) -> Iterator[int]:
        place, parts = self._located(self._resolve(relative))
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(open_steps(place.descriptor, parts, flags))
            except OSError as error:
                if error.errno in _GONE:
                    raise RepositoryChangedError(
                        f"'{printable(relative)}': it was replaced while it was read"
                    ) from None
                raise
            yield descriptor

    def _located(self, path: str) -> tuple[_Place, list[str]]:
        for place in self._places:
            if (parts := place.below(path)) is not None:
                return place, parts
        raise RepositoryChangedError(f"'{self._shown(path)}': it was moved while it was read")

    def _resolve(self, relative: str) -> str:
        """Walks a path and the texts of its links to a real path within the places that may be read."""
        waiting = [_Step(part) for part in reversed(relative_parts(relative))] if relative else []
        at, by, leaving, link_count = self._places[0].path, "", "", 0
        while waiting:
            step, was_inside = waiting.pop(), self._is_inside(at)
            if step.name == "..":
                at, by = os.path.dirname(at), step.link
            elif (text := self._text(at, step, by, leaving)) is None:
                at, by = _joined(at, step.name), step.link
            else:
                link, link_count = _joined(at, step.name), link_count + 1
                if link_count > MAX_LINKS:
                    raise LinkError(f"{self._named(link)}, in a circle or through more than {MAX_LINKS} links")
                at, by = "/" if text.startswith("/") else at, link
                waiting += [_Step(name, link) for name in reversed(text.split("/")) if name not in ("", ".")]
            if was_inside and not self._is_inside(at):
                leaving = by
        if not self._is_inside(at):
            self._check_unchanged()
            raise OutsideLinkError(self._outside_text(leaving, at))
        return at

    def _is_inside(self, path: str) -> bool:
        return any(place.below(path) is not None for place in self._places)

    def _text(self, at: str, step: _Step, by: str, leaving: str) -> str | None:
        """Returns the text of a link; None of what is no link.

        Raises:
            LinkError: a link leads to nothing, or (`by`) to what is no folder.
            OutsideLinkError: nothing is there, outside (`leaving`): what is out there is not told.
            FileNotFoundError: nothing is there.
            NotADirectoryError: what it should be in is no folder.
        """
        path = _joined(at, step.name)
        if path not in self._texts:
            try:
                self._texts[path] = self._read_link(path)
            except FileNotFoundError:
                self._check_unchanged()
                if step.link:
                    text = f"{self._named(step.link)}, which is not there; put it there, or remove the link"
                    raise LinkError(text) from None
                if not self._is_inside(at):
                    raise OutsideLinkError(self._outside_text(leaving, path)) from None
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
            except NotADirectoryError:
                self._check_unchanged()
                if by:
                    raise LinkError(f"{self._named(by)}, which is no folder; expected a folder") from None
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        return self._texts[path]

    def _read_link(self, path: str) -> str | None:
        try:
            for place in self._places:
                if (parts := place.below(path)) is not None:
                    return os.readlink("/".join(parts) or ".", dir_fd=place.descriptor)
            return os.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def _check_unchanged(self) -> None:
        """Raises RepositoryChangedError where the root or a link that was read leads elsewhere by now."""
        is_same = self._places[0].is_at(self._root.path)
        for path, text in self._texts.items():
            try:
                is_same = is_same and self._read_link(path) == text
            except OSError:
                is_same = False
        if not is_same:
            raise RepositoryChangedError("links or folders of the repository were replaced while they were read")

    def _outside_text(self, link: str, path: str) -> str:
        found = path if os.path.isdir(path) else os.path.dirname(path)
        cure = f"move it inside, or allow reading there: --follow-links {printable(shlex.quote(found))}"
        return f"{self._named(link)}, outside of the repository ({printable(path)}); {cure}"

    def _named(self, link: str) -> str:
        return f"link '{self._shown(link)}' leads to '{printable(self._texts.get(link) or '')[:_MOST_CHARS]}'"

    def _shown(self, path: str) -> str:
        parts = self._places[0].below(path)
        return printable(path if parts is None else "/".join(parts))[-_MOST_CHARS:]


def _open_place(path: Path, stack: contextlib.ExitStack, tries: int = _TRIES) -> _Place:
    """Opens a folder by its real path, anew where a link on the way to it is flipped in between."""
    real = os.path.realpath(path, strict=True)
    try:
        descriptor = open_folder(real)
    except OSError:
        if tries > 1:
            return _open_place(path, stack, tries - 1)
        raise
    stack.callback(os.close, descriptor)
    return _Place(real, descriptor)


def _joined(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
