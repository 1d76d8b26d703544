"""Who is let in, by the settings: TLS, credentials and the audit log, held against each other before anything opens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import ref

from fitserve_service.access.access_file import AccessFileError, AccessRules, AccessWatcher, read_access
from fitserve_service.access.audit import AuditError, AuditTrail
from fitserve_service.access.guard import Guard
from fitserve_service.access.private_files import PrivateFileError
from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.access.tls_files import TlsFiles, read_tls
from fitserve_service.calls import Loop
from fitserve_service.listening import is_loopback
from fitserve_service.served_version import ServedVersion
from fitserve_service.settings import ServerSettings
from fitserve_service.status import answering


class EntranceError(Exception):
    """The settings would let in whom they should not, or cannot be used; the message says why and what to do."""


def check_entrance(settings: ServerSettings) -> None:
    """Holds the settings of access against each other and against their files.

    Raises:
        EntranceError: a file cannot be used, one setting lacks another, or the address is open to strangers.
    """
    files = tls_files(settings)
    try:
        if files is not None:
            read_tls(files)
        if settings.access_file is not None:
            _check_rules(settings, read_access(settings.access_file))
    except PrivateFileError as error:
        raise EntranceError(str(error)) from None
    if not is_loopback(settings.host) and (files is None or settings.access_file is None):
        hint = "without TLS and tokens everybody who reaches it could use it: give it --tls-cert, --tls-key"
        hint += " and --access-file (`fitserve-serve token --help`)"
        raise EntranceError(f"--host {settings.host}: expected an address of this machine alone (127.0.0.1); {hint}")


def tls_files(settings: ServerSettings) -> TlsFiles | None:
    """Gives the files of TLS; None for cleartext.

    Raises:
        EntranceError: there is one of certificate and key without the other, or authorities without both.
    """
    if settings.tls_cert is not None and settings.tls_key is not None:
        return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        if getattr(settings, name) is not None:
            raise EntranceError(f"--{name.replace('_', '-')}: expected both --tls-cert and --tls-key with it")
    return None


class Entrance:
    """The guard of a server with its audit log. Lives on the loop thread, but for `close`."""

    def __init__(self, settings: ServerSettings, loop: Loop, shared: SharedQuotas | None = None) -> None:
        """Opens the audit log and reads the access file.

        Args:
            settings: What the server is told.
            loop: Its loop.
            shared: Where there are several workers, what callers use in all of them.

        Raises:
            EntranceError: one of them cannot be used.
        """
        try:
            watcher = None
            if settings.access_file is not None:
                watcher = AccessWatcher(settings.access_file, partial(_check_rules, settings))
            self._trail = AuditTrail(settings.audit_log)
        except (PrivateFileError, AuditError) as error:
            raise EntranceError(str(error)) from None
        self._watcher = watcher
        self._guard = Guard(watcher, self._trail, loop, answering, shared=shared)
        self.wrap = self._guard.wrap
        self.keep = self._guard.keep
        self.refusals = self._guard.refusals
        self.admit: Callable[[ServedVersion, int], None] | None = self._admit if watcher is not None else None

    def reload(self) -> None:
        """Reads the access file anew, changed or not; logs why where the last good one goes on."""
        if self._watcher is not None:
            self._watcher.reload()

    def close(self) -> None:
        """Writes what the audit log still has to hold; once only, after the loop has ended."""
        self._trail.close()

    def _admit(self, served: ServedVersion, example_count: int) -> None:
        self._guard.admit(ref(served), example_count, served.queue_capacity())


def _check_rules(settings: ServerSettings, rules: AccessRules) -> None:
    where = f"--access-file {settings.access_file}"
    has_tls = settings.tls_cert is not None and settings.tls_key is not None
    if (rules.tokens or rules.certificates) and not has_tls:
        raise AccessFileError(f"{where}: expected --tls-cert and --tls-key with it: credentials go over TLS alone")
    if rules.certificates and settings.tls_client_ca is None:
        raise AccessFileError(f"{where}: certificate: expected --tls-client-ca with it, which checks them")
    if rules.anonymous is not None and not is_loopback(settings.host):
        raise AccessFileError(f"{where}: anonymous: expected only with an address of this machine alone")
    if not (rules.tokens or rules.certificates or rules.anonymous):
        raise AccessFileError(f"{where}: expected a token at least; `fitserve-serve token --help` says how")
