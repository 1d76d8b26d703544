"""Labels of a model: `<model>/labels.json` says where they point, `<model>/labels.log` says how they came there.

A label moves by compare-and-swap under a lock that holds between processes. Every move is in the log before it is in
the label file, so that no label ever points where nobody put it; where the two differ (a crash between them, or a
label file edited by hand), the label file is right, and the next writer notes the difference in the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from fitserve_contract.files import open_to_write, replace_durably
from fitserve_contract.repository import LABELS_FILE, MAX_TEXT_BYTES, check_model_name, versions
from fitserve_contract.repository_view import Root, read_settled, root_of

STABLE: Final = "stable"
"""The label that a request without version and label takes, where the model has it."""

CANARY: Final = "canary"
"""The label that a share of the requests without version and label takes."""

SHADOW: Final = "shadow"
"""The label of the version that is run beside the answering one, unheard."""

LOG_FILE: Final = "labels.log"
MAX_NOTE_CHARS: Final = 1024
"""Longer names of writers and reasons are cut."""

MAX_FIGURES_BYTES: Final = 16 << 10
MAX_LINE_BYTES: Final = 64 << 10
"""Of the log; what is longer is no line that was written here."""

LOCK_TIMEOUT_S: Final = 5.0
_LOCK_PAUSE_S: Final = 0.005

_LABEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class LabelError(ValueError):
    """A move that cannot be made; nothing changed."""


class LabelConflictError(LabelError):
    """The label is not where the writer took it to be: another one moved it first."""


class VersionMissingError(LabelError):
    """The version that the label should point at is not in the repository."""


class LabelMissingError(LabelError):
    """The label that should be deleted is not there."""


class LinkedLabelsError(LabelError):
    """The labels are behind a symbolic link; they are read through it and written through none."""


class Action(StrEnum):
    """Why a label moved."""

    MOVE = "MOVE"
    ROLLBACK = "ROLLBACK"
    CORRECTION = "CORRECTION"
    """The label file was found to differ from the log: a crash in the middle of a move, or a hand."""


@dataclass(frozen=True, slots=True)
class LabelMove:
    """One line of the log.

    Args:
        label: The label.
        before: Version that it pointed at; 0: there was no such label.
        after: Version that it points at; 0: it was deleted.
        time: UTC, ISO 8601; set by whoever writes the log.
        who: Who moved it, as the writer calls itself.
        why: In words.
        action: What kind of move it is.
        figures: What it was decided by, as JSON.
    """

    label: str
    before: int
    after: int
    time: str = ""
    who: str = ""
    why: str = ""
    action: Action = Action.MOVE
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Gives the move as a line of the log.

        Raises:
            LabelError: the figures are no JSON or too large.
        """
        entry = {
            "time": self.time,
            "who": self.who[:MAX_NOTE_CHARS],
            "label": self.label,
            "from": self.before,
            "to": self.after,
            "action": self.action.value,
            "why": self.why[:MAX_NOTE_CHARS],
            "figures": _checked_figures(self.figures),
        }
        return json.dumps(entry, allow_nan=False).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> LabelMove | None:
        """Reads a line of the log; None where it is none: torn by a crash in the middle of it."""
        try:
            entry = json.loads(line)
            return LabelMove(
                label=_text(entry["label"]),
                before=_number(entry["from"]),
                after=_number(entry["to"]),
                time=_text(entry["time"]),
                who=_text(entry["who"]),
                why=_text(entry["why"]),
                action=Action(entry["action"]),
                figures=dict(entry["figures"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def check_label_name(name: str) -> str:
    """Gives the name back.

    Raises:
        LabelError: it may not name a label.
    """
    if _LABEL_NAME.fullmatch(name) is None:
        raise LabelError(f"label: expected [A-Za-z][A-Za-z0-9._-]{{0,63}}, got {name[:64]!r}")
    return name


def read_labels(root: Root, model: str) -> dict[str, int]:
    """Reads a model's labels; none where it has no label file.

    Raises:
        ValueError: the file is not an object of label to positive integer.
    """
    try:
        name = f"{check_model_name(model)}/{LABELS_FILE}"
        content = read_settled(root, lambda view: view.read(name, max_bytes=MAX_TEXT_BYTES))
        labels = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{model}/{LABELS_FILE}: expected JSON, got {error}") from None
    is_object = isinstance(labels, dict)
    if not is_object or not all(type(version) is int and version > 0 for version in labels.values()):
        raise ValueError(f"{model}/{LABELS_FILE}: expected an object of label to positive integer")
    return dict(labels)


def read_log(root: Root, model: str) -> list[LabelMove]:
    """Reads all moves of a model; see `logged_moves`."""
    return list(logged_moves(root, model))


def logged_moves(root: Root, model: str) -> Iterator[LabelMove]:
    """Reads a model's moves one by one, the oldest first; none where it has no log.

    Raises:
        UnsafeFileError: the log is behind a link that leaves the repository.
        OSError: it cannot be read.
    """
    try:
        with root_of(root).view() as view, view.open(f"{check_model_name(model)}/{LOG_FILE}") as descriptor:
            # As long as it is now: whoever appends meanwhile does not change what stands before.
            rest_bytes = os.fstat(descriptor).st_size
            with os.fdopen(os.dup(descriptor), "rb") as file:
                while rest_bytes > 0 and (line := file.readline(min(rest_bytes, MAX_LINE_BYTES))):
                    rest_bytes -= len(line)
                    if (move := LabelMove.from_line(line)) is not None:
                        yield move
    except (FileNotFoundError, NotADirectoryError):
        return


def replay(moves: Iterable[LabelMove]) -> dict[str, int]:
    """Gives where the labels point after a log."""
    labels: dict[str, int] = {}
    for move in moves:
        labels[move.label] = move.after
    return {label: version for label, version in labels.items() if version}


def previous_versions(moves: Iterable[LabelMove]) -> dict[str, int]:
    """Tells where a rollback of each label leads: to the last version before, another than now, not rolled back from.

    Moves that change nothing, and deletions, are no steps to go back by.

    Args:
        moves: The log, the oldest first.

    Returns:
        Label to version; labels without a version to go back to are left out.
    """
    histories: dict[str, list[int]] = {}
    for move in moves:
        history = histories.setdefault(move.label, [])
        for version in (move.before, move.after):
            if version and move.action is Action.ROLLBACK and version in history:
                while history[-1] != version:
                    history.pop()
            elif version and (not history or history[-1] != version):
                history.append(version)
    return {label: history[-2] for label, history in histories.items() if len(history) > 1}


def previous_version(moves: Iterable[LabelMove], label: str) -> int:
    """Tells where a rollback of one label leads; 0 where there is no version to go back to."""
    return previous_versions(moves).get(label, 0)


def move_label(
    root: Root,
    model: str,
    move: LabelMove,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> LabelMove:
    """Moves, makes or deletes a label by compare-and-swap. A move to where the label is changes and logs nothing.

    Args:
        root: The repository.
        model: Model name.
        move: `before` is where the writer takes the label to be (0: nowhere), `after` where it shall be (0: deleted);
            its `time` is set here.
        now: The time, for tests.

    Returns:
        The move as it stands in the log; without a time where nothing changed.

    Raises:
        LabelConflictError: the label is elsewhere.
        LinkedLabelsError: the model's folder or its label file is a symbolic link.
        VersionMissingError: the version that it should point at is not there.
        LabelMissingError: the label that should be deleted is not there.
        LabelError: a name or figures that cannot be taken.
        ValueError: the label file is broken.
        TimeoutError: another process keeps the labels locked.
        OSError: the folder cannot be written; where the log could not be written, nothing changed.
    """
    stamped = _stamped(move, now())
    line = stamped.to_line()
    check_move(root, model, move)
    path = root_of(root).path
    with _locked_log(path / model) as log:
        labels = read_labels(root, model)
        _check(root, model, labels, move)
        if move.after == move.before:
            return move
        content = _label_file(model, labels, move)
        corrections = _corrections(replay(logged_moves(root, model)), labels)
        _append(log, b"".join(_stamped(each, now()).to_line() for each in corrections) + line)
        _write_labels(path, model, content)
    return stamped


def check_move(root: Root, model: str, move: LabelMove) -> None:
    """Tells whether a move could be made now; raises as `move_label` where it could not."""
    check_label_name(move.label)
    folder = root_of(root).path / check_model_name(model)
    if not folder.is_dir():
        raise VersionMissingError(f"model '{model}': not in the repository")
    for path in (folder, folder / LABELS_FILE, folder / LOG_FILE):
        if path.is_symlink():
            name = path.relative_to(folder.parent)
            text = f"model '{model}': expected '{name}' to be no symbolic link, got one to '{os.readlink(path)[:128]}'"
            raise LinkedLabelsError(f"{text}; labels are written through none: edit {LABELS_FILE} where it lies")
    _check(root, model, read_labels(root, model), move)


def _check(root: Root, model: str, labels: Mapping[str, int], move: LabelMove) -> None:
    found = labels.get(move.label, 0)
    if move.after == 0 and found == 0:
        names = ", ".join(sorted(labels)) or "none"
        raise LabelMissingError(f"model '{model}': expected one of its labels ({names}), got '{move.label}'")
    if found != move.before:
        expected, got = _place(move.before), _place(found)
        raise LabelConflictError(f"label '{move.label}' of model '{model}': expected it {expected}, found it {got}")
    present = versions(root, model)
    if move.after and move.after not in present:
        listed = ", ".join(map(str, present)) or "none"
        raise VersionMissingError(f"model '{model}': expected one of its versions ({listed}), got {move.after}")


def _place(version: int) -> str:
    return f"at version {version}" if version else "nowhere"


def _corrections(logged: Mapping[str, int], labels: Mapping[str, int]) -> list[LabelMove]:
    why = f"found so in {LABELS_FILE}: a move that a crash cut short, or an edit by hand"
    return [
        LabelMove(label, logged.get(label, 0), labels.get(label, 0), why=why, action=Action.CORRECTION)
        for label in sorted(logged.keys() | labels.keys())
        if logged.get(label, 0) != labels.get(label, 0)
    ]


def _label_file(model: str, labels: Mapping[str, int], move: LabelMove) -> bytes:
    """Gives the label file after a move; LabelError: nobody would read it any more, it is too long."""
    moved = {label: version for label, version in {**labels, move.label: move.after}.items() if version}
    content = json.dumps(moved, indent=2, sort_keys=True).encode() + b"\n"
    if len(content) > MAX_TEXT_BYTES:
        text = f"model '{model}': expected at most {MAX_TEXT_BYTES} bytes of labels, got {len(content)}"
        raise LabelError(f"{text}; delete some of its {len(labels)} labels")
    return content


def _write_labels(root: Path, model: str, content: bytes) -> None:
    # Under the lock nobody else writes: what lies aside is of a writer that was killed.
    for leftover in (root / model).glob(f".{LABELS_FILE}.*.tmp"):
        leftover.unlink(missing_ok=True)
    replace_durably(root / model / LABELS_FILE, content)


@contextlib.contextmanager
def _locked_log(folder: Path) -> Iterator[int]:
    """Opens the log to append, locked against others: it is never replaced, so that it can serve as the lock."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open_to_write(folder) as within:
        is_new = LOG_FILE not in os.listdir(within)
        descriptor = os.open(LOG_FILE, flags, 0o644, dir_fd=within)
        try:
            _lock(descriptor, folder / LOG_FILE)
            if is_new:
                os.fsync(within)
            yield descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                where = f"{path.parent.name}/{path.name}"
                text = f"file '{where}': expected it free within {LOCK_TIMEOUT_S:g} s, got it locked by another process"
                raise TimeoutError(text) from None
            time.sleep(_LOCK_PAUSE_S)


def _append(descriptor: int, lines: bytes) -> None:
    """Appends and flushes; a line that a crash tore before is ended first, so that it spoils no other."""
    size_bytes = os.fstat(descriptor).st_size
    is_torn = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
    rest = memoryview(b"\n" + lines if is_torn else lines)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _stamped(move: LabelMove, now: datetime) -> LabelMove:
    stamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return LabelMove(move.label, move.before, move.after, stamp, move.who, move.why, move.action, move.figures)


def _checked_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    try:
        size_bytes = len(json.dumps(dict(figures), allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise LabelError(f"figures: expected JSON of finite numbers, got {error}") from None
    if size_bytes > MAX_FIGURES_BYTES:
        raise LabelError(f"figures: expected at most {MAX_FIGURES_BYTES} bytes of JSON, got {size_bytes}")
    return dict(figures)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(value)
    return value
