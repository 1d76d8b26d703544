"""`fitserve-serve token`: makes a token, shows it once, and writes its hash into the access file."""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from fitserve_contract.arguments import CommandParser
from fitserve_contract.files import sync_folder
from fitserve_contract.printable import printable
from fitserve_service.access.access_file import TOKEN_NAME, digest_of, parse_access
from fitserve_service.access.private_files import PrivateFileError, read_private
from fitserve_service.access.rules import GRANTED

PREFIX: Final = "fitserve_"
"""What tokens begin with, so that scanners for leaked secrets can tell them."""

_RANDOM_BYTES: Final = 32

_EPILOG: Final = """example:
  fitserve-serve token ci --access-file access.toml --scopes infer,evaluate --models lenet --days 90

The token is the one line on standard output; it is shown once, and only its SHA-256 is kept. Several tokens of one name
are valid at once: make the next, bring it to its users, then take the old entry out of the file. A running server reads
the file again within a second."""


def run(arguments: Sequence[str]) -> int:
    """Makes a token; the exit code is 0, and 2 where it could not be made."""
    options = _parser().parse_args(arguments)
    token = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    scopes = [scope for scope in options.scopes.split(",") if scope]
    models = None if options.models is None else [model for model in options.models.split(",") if model]
    try:
        if not TOKEN_NAME.fullmatch(options.name):
            raise PrivateFileError(f"NAME: expected letters, digits and ._@-, got '{options.name[:128]}'")
        entry = entry_text(options.name, token, scopes, models, options.days)
        append_entry(options.access_file, entry)
    except (PrivateFileError, OSError) as error:
        print(printable(f"fitserve-serve token: {error}"), file=sys.stderr)
        return 2
    print(token, flush=True)
    told = f"fitserve-serve token: its hash is in {options.access_file}; it is not shown again"
    print(printable(told), file=sys.stderr)
    return 0


def entry_text(name: str, token: str, scopes: Sequence[str], models: Sequence[str] | None, days: int | None) -> str:
    """Writes the entry of a token."""
    lines = [
        "[[token]]",
        f"name = {_quoted(name)}",
        f'sha256 = "{digest_of(token).hex()}"',
        f"scopes = {_list(scopes)}",
    ]
    if models is not None:
        lines.append(f"models = {_list(models)}")
    if days is not None:
        expiry = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        lines.append(f"expires = {expiry.isoformat()}")
    return "\n".join(lines) + "\n"


def append_entry(path: Path, entry: str) -> None:
    """Appends an entry to an access file, which is made with mode 0600 where it is not there.

    Readers see the old file or the new; two that append at once both come through.

    Raises:
        PrivateFileError: the file with the entry could not be taken; it is as it was.
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    with _locked(target.parent):
        before = read_private("--access-file", path).data.decode() if target.exists() else ""
        text = before + ("\n" if before else "") + entry
        parse_access(text, f"--access-file {path}")
        _replace(target, text.encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    # 0600 from its first moment on; an owner who has chosen another mode, or another group, keeps them.
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                status = path.stat()
                os.fchmod(descriptor, status.st_mode & 0o777)
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fitserve-serve token",
        description="Makes a token, shows it once, and writes its hash into the access file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="whose it is: in the audit log, and for quotas")
    parser.add_argument("--access-file", metavar="FILE", type=Path, required=True, help="made where it is not there")
    scopes = ", ".join(GRANTED)
    parser.add_argument("--scopes", metavar="LIST", required=True, help=f"of {scopes}, separated by commas")
    parser.add_argument("--models", metavar="LIST", help="models that it is good for, separated by commas (all)")
    parser.add_argument("--days", metavar="N", type=_days, help="days that it is good for (for ever)")
    return parser


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"expected a number of days in 1..36500, got '{text[:32]}'")
    return int(text)


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, values)) + "]"


def _quoted(text: str) -> str:
    """Writes a TOML basic string; names and models are plain, anything else is refused when the file is read back."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
