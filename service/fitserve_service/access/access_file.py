"""The access file: which credentials there are, what each is good for, and how much each caller may use at once.

Tokens stand there as SHA-256 of themselves. A token is 256 random bits, which nobody can try through, so the slow
hashes that protect passwords would protect nothing here and cost each request milliseconds.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fitserve_service.access.private_files import Content, Mark, PrivateFileError, mark_of, read_private
from fitserve_service.access.quotas import Limits
from fitserve_service.access.rules import GRANTED, Scope

DEFAULT_LIMITS: Final = "default"
"""The table of `quotas` that holds for callers without one of their own."""

TOKEN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_UNLIMITED: Final = Limits()
_MAX_LIMIT: Final = 2**53
"""Sums of such numbers are exact, and no TOML integer of any length gets into a product of floats."""

_LOOK_S: Final = 1.0
"""How often the file is looked at: a token that is taken out is refused after so long."""

_log = logging.getLogger(__name__)


class AccessFileError(PrivateFileError):
    """An access file that cannot be taken; the message names the entry, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: quotas are kept by it, and the audit log names it.

    Args:
        kind: "token", "certificate" or "peer".
        name: Name of the token, a name in the certificate, or the address.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a credential is good for.

    Args:
        caller: Whose it is.
        scopes: Scopes it has.
        models: Models it is good for; None: all.
        expires_s: Unix time after which it is good for nothing; None: never.
        digest: SHA-256 of the token; empty for another kind.
    """

    caller: Caller
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    expires_s: float | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """An access file, read.

    Args:
        tokens: Grants by SHA-256 of the token.
        certificates: Grants by name in the certificate.
        anonymous: What callers without a credential may do; None: nothing. Its caller is a place holder.
        limits: Quotas by name of the caller.
    """

    tokens: Mapping[bytes, Grant] = field(default_factory=dict)
    certificates: Mapping[str, Grant] = field(default_factory=dict)
    anonymous: Grant | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def limits_of(self, caller: Caller) -> Limits:
        """Gives a caller's quota."""
        return self.limits.get(caller.name) or self.limits.get(DEFAULT_LIMITS) or _UNLIMITED


class AccessWatcher:
    """Holds the rules of an access file and reads it again when it changes. Used by one thread.

    A file that cannot be taken is logged once; until it changes again, the last good one goes on.
    """

    def __init__(
        self, path: Path, check: Callable[[AccessRules], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads the file.

        Args:
            path: The file.
            check: Raises AccessFileError where rules are not for this server.
            clock: Monotonic seconds.

        Raises:
            PrivateFileError: it cannot be taken.
        """
        self._path = path
        self._check = check
        self._clock = clock
        self._next_look_s = clock() + _LOOK_S
        self._rules, self._mark = _read(path)
        check(self._rules)

    def rules(self) -> AccessRules:
        """Gives the rules that hold now."""
        now_s = self._clock()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            if mark_of(self._path) != self._mark:
                self.reload()
        return self._rules

    def reload(self) -> None:
        """Reads the file now, whether it has changed or not."""
        self._mark = mark_of(self._path)
        try:
            rules, self._mark = _read(self._path)
            self._check(rules)
        except PrivateFileError as error:
            _log.error("access: the file cannot be used; the one before goes on: %s", error)
        else:
            self._rules = rules
            _log.info("access: %d tokens are read anew", len(self._rules.tokens))


def digest_of(token: str) -> bytes:
    """Gives what the file holds in place of a token."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def read_access(path: Path) -> AccessRules:
    """Reads an access file.

    Raises:
        PrivateFileError: it cannot be read or is open to others.
        AccessFileError: it is not TOML, or an entry cannot be taken.
    """
    return _read(path)[0]


def parse_access(text: str, where: str) -> AccessRules:
    """Reads the text of an access file; see `read_access`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AccessFileError(f"{where}: expected TOML, got: {error}") from None
    _check_keys(where, document, ("token", "certificate", "anonymous", "quotas"))
    tokens = [_token(f"{where}: token {n}", entry) for n, entry in enumerate(_entries(where, document, "token"), 1)]
    certificates = [
        _certificate(f"{where}: certificate {number}", entry)
        for number, entry in enumerate(_entries(where, document, "certificate"), 1)
    ]
    return AccessRules(
        _unique(where, "sha256", {grant.digest: grant for grant in tokens}, tokens),
        _unique(where, "identity", {grant.caller.name: grant for grant in certificates}, certificates),
        _anonymous(where, document),
        {name: _limits(f"{where}: quotas.{name}", table) for name, table in _table(where, document, "quotas").items()},
    )


def _read(path: Path) -> tuple[AccessRules, Mark | None]:
    content: Content = read_private("--access-file", path)
    where = f"--access-file {path}"
    try:
        text = content.data.decode()
    except UnicodeDecodeError:
        raise AccessFileError(f"{where}: expected TOML in UTF-8") from None
    return parse_access(text, where), content.mark


def _token(where: str, entry: Mapping[str, Any]) -> Grant:
    _check_keys(where, entry, ("name", "sha256", "scopes", "models", "expires"))
    name, digest = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not TOKEN_NAME.fullmatch(name) or name == DEFAULT_LIMITS:
        raise AccessFileError(f"{where}: name: expected letters, digits and ._@- (and not '{DEFAULT_LIMITS}')")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise AccessFileError(f"{where} ('{name}'): sha256: expected 64 hexadecimal digits, lower case")
    where = f"{where} ('{name}')"
    return _grant(where, entry, Caller("token", name), bytes.fromhex(digest))


def _certificate(where: str, entry: Mapping[str, Any]) -> Grant:
    _check_keys(where, entry, ("identity", "scopes", "models", "expires"))
    identity = entry.get("identity")
    if not isinstance(identity, str) or not identity:
        raise AccessFileError(f"{where}: identity: expected a name in the certificate")
    return _grant(f"{where} ('{identity[:128]}')", entry, Caller("certificate", identity))


def _anonymous(where: str, document: Mapping[str, Any]) -> Grant | None:
    if "anonymous" not in document:
        return None
    table = _table(where, document, "anonymous")
    _check_keys(f"{where}: anonymous", table, ("scopes", "models"))
    return _grant(f"{where}: anonymous", table, Caller("peer", ""))


def _grant(where: str, entry: Mapping[str, Any], caller: Caller, digest: bytes = b"") -> Grant:
    scopes = entry.get("scopes")
    names = [scope.value for scope in GRANTED]
    if not isinstance(scopes, list) or not scopes or not all(scope in names for scope in scopes):
        raise AccessFileError(f"{where}: scopes: expected a list of {', '.join(names)}, got {scopes!r}"[:500])
    models = entry.get("models")
    if models is not None and not (isinstance(models, list) and all(isinstance(m, str) and m for m in models)):
        raise AccessFileError(f"{where}: models: expected a list of names of models")
    return Grant(
        caller,
        frozenset(Scope(scope) for scope in scopes),
        None if models is None else frozenset(models),
        _expiry(where, entry.get("expires")),
        digest,
    )


def _expiry(where: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        example = datetime(2027, 1, 31, tzinfo=UTC).isoformat()
        raise AccessFileError(f"{where}: expires: expected a time with its zone, as {example}, without quotes")
    return value.timestamp()


def _limits(where: str, table: object) -> Limits:
    if not isinstance(table, dict):
        raise AccessFileError(f"{where}: expected a table")
    _check_keys(where, table, Limits.__slots__)
    for name, value in table.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= _MAX_LIMIT or (name == "queue_share" and not 0 < value <= 1):
            expected = "a number in 0..1, above 0" if name == "queue_share" else f"a number in 0..{_MAX_LIMIT}"
            raise AccessFileError(f"{where}.{name}: expected {expected}, got {value!r}"[:500])
    return Limits(**table)


def _entries(where: str, document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries = document.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AccessFileError(f"{where}: {name}: expected entries that begin with [[{name}]]")
    return entries


def _table(where: str, document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise AccessFileError(f"{where}: {name}: expected a table, [{name}]")
    return table


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise AccessFileError(f"{where}: expected one of {', '.join(known)}, got '{key[:128]}'")


def _unique(where: str, what: str, found: dict[Any, Grant], entries: list[Grant]) -> Mapping[Any, Grant]:
    if len(found) != len(entries):
        raise AccessFileError(f"{where}: expected each {what} once, got one twice")
    return found
