"""A process that only publishes a prepared version: what the publish faults kill, starve and race. Imports no torch.

python -m fitserve_benchmarks.chaos_publisher once ROOT MODEL PREPARED [LIMIT_BYTES]
python -m fitserve_benchmarks.chaos_publisher race ROOT PUBLISHERS ROUNDS
python -m fitserve_benchmarks.chaos_publisher full ROOT MODEL PREPARED
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fitserve_contract.repository import (
    MODEL_FILE,
    VersionPath,
    publish,
    publishing,
    remove_leftovers,
    verify_checksums,
    version_path,
    versions,
)

BEGIN_MARK: Final = "/fitserve-publish-begins"
END_MARK: Final = "/fitserve-publish-ends"
"""Names that are looked up around the publish, so that a trace of system calls shows where it begins and ends."""

_RACED: Final = "raced"


def publish_prepared(root: Path, model: str, prepared: Path) -> VersionPath:
    """Publishes a copy of a folder as the next version."""
    with publishing(root, model) as aside:
        shutil.copytree(prepared, aside, dirs_exist_ok=True)
        return publish(root, model, aside)


def once(root: str, model: str, prepared: str, limit_bytes: str = "") -> int:
    """Publishes once, between the marks; prints the version.

    Args:
        root: The repository.
        model: Model name.
        prepared: Folder with model.onnx and what goes with it.
        limit_bytes: The disk's room for any one file; empty: as it is.
    """
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    os.path.exists(BEGIN_MARK)
    path = publish_prepared(Path(root), model, Path(prepared))
    os.path.exists(END_MARK)
    print(path.version)
    return 0


def race(root: str, publishers: str, rounds: str) -> int:
    """Has processes publish the same model at the same moment, round after round; prints how many versions came.

    In every round each publisher gets a number of its own, the numbers have no gap, and under each number lies what
    its publisher wrote, whole.
    """
    context = multiprocessing.get_context("fork")
    barrier, numbers = context.Barrier(int(publishers)), context.Array("i", int(publishers))
    arguments = (Path(root), int(rounds), barrier, numbers)
    processes = [context.Process(target=_racer, args=(index, *arguments)) for index in range(int(publishers))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        print(f"race: {len(failed)} publishers failed: {failed}", file=sys.stderr)
        return 1
    print(int(publishers) * int(rounds))
    return 0


def full(root: str, model: str, prepared: str) -> int:
    """Publishes on a file system of its own with less and less taken; prints how many publishes had no room.

    First bytes are short, then inodes. A publish that fails leaves nothing, and the first that has room succeeds.
    """
    folder, filler = Path(root), Path(root, "filler")
    publish_prepared(folder, model, Path(prepared))
    failed = 0
    for fill in (_fill_bytes, _fill_inodes):
        for room in itertools.count():
            fill(filler, room)
            has_failed = _publish_fails(folder, model, Path(prepared))
            shutil.rmtree(filler)
            if not has_failed:
                break
            failed += 1
    print(failed)
    return 0


def _fill_bytes(filler: Path, room: int) -> None:
    """Leaves so many blocks."""
    filler.mkdir()
    found = os.statvfs(filler)
    (filler / "0").write_bytes(bytes(max(found.f_bavail - room, 0) * found.f_bsize))


def _fill_inodes(filler: Path, room: int) -> None:
    """Leaves so many inodes."""
    filler.mkdir()
    for number in range(os.statvfs(filler).f_favail - room):
        (filler / str(number)).touch()


def _publish_fails(root: Path, model: str, prepared: Path) -> bool:
    """Publishes; where that fails for want of room, makes sure that nothing is left and what was there is whole."""
    before = versions(root, model)
    try:
        publish_prepared(root, model, prepared)
    except OSError as error:
        # shutil's own error has no number: it holds the texts of several.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        strange = [name for name in os.listdir(root / model) if not name.isdigit()]
        if strange or versions(root, model) != before:
            raise ValueError(f"publish on a full disk: it left {strange}, versions {versions(root, model)}") from error
        return True
    finally:
        for number in versions(root, model):
            verify_checksums(version_path(root, model, number).folder)
    return False


def _racer(index: int, root: Path, rounds: int, barrier: Any, numbers: Any) -> None:
    try:
        for _ in range(rounds):
            barrier.wait()
            with publishing(root, _RACED) as aside:
                (aside / MODEL_FILE).write_bytes(_content(index))
                numbers[index] = publish(root, _RACED, aside).version
            barrier.wait()
            if index == 0:
                _check_round(root, list(numbers))
                shutil.rmtree(root / _RACED)
            barrier.wait()
    except BaseException:
        barrier.abort()
        raise


def _content(index: int) -> bytes:
    return f"publisher {index}".encode() * 200


def _check_round(root: Path, numbers: Sequence[int]) -> None:
    expected = list(range(1, len(numbers) + 1))
    if sorted(numbers) != expected or versions(root, _RACED) != expected:
        raise ValueError(f"race: expected versions {expected}, got {sorted(numbers)}: {versions(root, _RACED)}")
    for index, number in enumerate(numbers):
        folder = version_path(root, _RACED, number).folder
        verify_checksums(folder)
        if (folder / MODEL_FILE).read_bytes() != _content(index):
            raise ValueError(f"race: version {number} is not what publisher {index} wrote")


def left_behind(root: Path, now_s: float) -> int:
    """Removes what dead publishers left; gives how many folders.

    Raises:
        ValueError: something else than versions is left.
    """
    removed = remove_leftovers(root, older_than_s=0, now_s=now_s)
    for model in root.iterdir():
        if strange := [name for name in os.listdir(model) if not name.isdigit()]:
            raise ValueError(f"publish: expected nothing but versions in '{model.name}', found {strange}")
    return len(removed)


_COMMANDS: Final[dict[str, Callable[..., int]]] = {"once": once, "race": race, "full": full}

if __name__ == "__main__":
    sys.exit(_COMMANDS[sys.argv[1]](*sys.argv[2:]))
