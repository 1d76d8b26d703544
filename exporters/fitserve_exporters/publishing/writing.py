"""Writes a version's files into a model repository: all of them or none, also where a signal ends the process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from fitserve_contract.files import UnsafeFileError, write_durably
from fitserve_contract.repository import VersionPath, publish, publishing
from fitserve_exporters.errors import ExportError


class Writing:
    """The one writer of this process: whoever ends the process asks it first.

    `lock` is held while files are written: a process that ended meanwhile would leave some behind. `has_published`
    changes under the lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.has_published = False


WRITING: Final = Writing()

_HELD_BACK: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _EndedError(Exception):
    """A signal came before the version was there."""


def write_version(repository: Path, name: str, files: Mapping[str, bytes]) -> VersionPath:
    """Publishes files as the model's next version; readers see all of them or none.

    SIGINT, SIGTERM and SIGHUP are held back until the files are removed or published, and delivered then.

    Raises:
        ExportError: the repository cannot be written, or the model's folder in it is a link.
    """
    new_folders = [path for path in (repository, *repository.absolute().parents) if not path.exists()]
    with contextlib.suppress(_EndedError), held_signals() as check:
        try:
            with publishing(repository, name) as aside:
                for file, content in files.items():
                    check()
                    write_durably(aside / file, content)
                check()
                published = publish(repository, name, aside)
                WRITING.has_published = True
                return published
        except UnsafeFileError as error:
            raise ExportError(f"repository '{repository}': {error}") from error
        except OSError as error:
            _remove(new_folders)
            raise ExportError(
                f"repository '{repository}': expected a folder to write in, got {error.strerror}"
            ) from error
        except BaseException:
            _remove(new_folders)
            raise
    raise ExportError("export: ended by a signal before the version was published")


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], None]]:
    """Holds signals that end the process back while it lasts, in the main thread.

    Yields:
        Raises _EndedError where one came.
    """
    came: list[int] = []

    def check() -> None:
        if came:
            raise _EndedError

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    # A handler that is None was set by C code, and cannot be set again.
    held = [number for number in _HELD_BACK if is_main and signal.getsignal(number) not in (None, signal.SIG_IGN)]
    with WRITING.lock:
        before = {number: signal.signal(number, note) for number in held}
        try:
            yield check
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for late in dict.fromkeys(came):
                signal.raise_signal(late)


def _remove(folders: list[Path]) -> None:
    """Removes folders that were not there before, innermost first, as far as they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
