"""The server's settings: command line over environment over file over defaults, each named when it is wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fitserve_contract.repository_view import RepositoryRoot
from fitserve_service import logs
from fitserve_service import setting_values as to
from fitserve_service.listening import EVERY_ADDRESS, is_loopback, is_unix
from fitserve_service.rpc.wire_scan import DEFAULT_MAX_ELEMENTS

ENVIRONMENT_PREFIX: Final = "FITSERVE_SERVE_"
"""`FITSERVE_SERVE_PORT=9001` is `--port 9001`."""

TRANSPORTS: Final = ("auto", "fast", "stock")
"""What `transport_choice.choose` takes."""

DRAIN_DELAY_S: Final = 5.0
"""Two looks of a load balancer at its usual interval of 2 s (HAProxy's `inter`), and one that is lost."""


class SettingsError(ValueError):
    """A setting that cannot be taken; the message names it, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is told at its start.

    Args:
        repository: The model repository.
        follow_links: The one folder outside of it that links in it may lead to; None: none may leave it.
        host: Where it listens: a name or address, or `unix:PATH`.
        port: gRPC port; 0 takes a free one. Of no meaning with `unix:PATH`.
        metrics_port: Prometheus port; 0 takes a free one; None: no metrics.
        device: "auto", "cpu", "cuda" or "cuda:N", for models that do not say.
        variant: "auto", "fp32" or a variant's name, for models that do not say.
        device_memory_limit_bytes: On a GPU, most memory of each model that does not say; 0: all that is free.
        transport: "auto", "fast" or "stock"; see `transport_choice`.
        tls_cert: PEM certificate of the server; None: cleartext.
        tls_key: PEM key of the certificate.
        tls_client_ca: PEM authorities of the certificates that callers must show; None: they show none.
        access_file: Tokens, certificates, scopes and quotas; None: everybody who reaches the port may do everything.
        audit_log: Where control actions are written down; None: in the log.
        require_proof: Refuses versions without a certificate, which are else served unverified.
        canary: "auto": a version is first loaded and run in a throw-away process with limits; "off": at once here.
        canary_limit_s: Seconds that loading and each run of one row of a small version may take there, and half of what
            a run may take in the server before READY; larger ones have longer. None: by the machine, see `Canaries`.
        canary_memory_bytes: Most memory that a version may take there; 0: three quarters of what is free.
        poll_interval_s: How often the repository is looked at.
        drain_delay_s: How long a server still takes calls once it was told to stop and says that it is not ready; None:
            see `drain_wait_s`.
        grace_s: How long requests in flight have to end after that.
        max_message_bytes: Larger requests are refused.
        max_elements: BYTES elements of one request or answer; 128 bytes of text count as one more, 16 numbers of typed
            contents as one. Each takes up to 400 bytes of memory, see `rpc.wire_scan`.
        max_answer_bytes: Answers whose outputs are larger are refused.
        loader_count: Versions that load at once.
        p99_target_ms: For models that do not say: what 99 of 100 requests should take at most; 0: no target.
        max_queue_ms: For models that do not say: how long all that waits may take to run; 0: no bound in time; None:
            by the time of a run, see `model_config.settle_queue`.
        max_queued_bytes: Bytes of inputs that may wait for all models together, in each worker.
        max_unread_bytes: Bytes of answers that their callers have not taken, over all connections, in each worker; one
            connection may hold half of them.
        spot_check_share: For models that do not say: how many of the joined requests are run again and compared.
        runner_count: Threads for long runs; 0: as many as there are cores, and two at least.
        workers: Processes on the one port, each with all models, under a parent that starts them again; several share
            the cores. 0: the one process that was started, with none to start it again.
        crash_limit: A version that crashes its worker so often is set aside; 0: never.
        crash_window_s: How long a crash counts.
        connection_age_s: With several workers: how long a connection stays with one; 0: for good.
        tracing: "off" or "otlp"; see `tracing`.
        log_format: "auto", "json" or "text".
        log_level: "debug", "info", "warning" or "error".
    """

    repository: Path
    follow_links: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int | None = 8002
    device: str = "auto"
    variant: str = "auto"
    device_memory_limit_bytes: int = 0
    transport: str = "auto"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    access_file: Path | None = None
    audit_log: Path | None = None
    require_proof: bool = False
    canary: str = "auto"
    canary_limit_s: float | None = None
    canary_memory_bytes: int = 0
    poll_interval_s: float = 1.0
    drain_delay_s: float | None = None
    grace_s: float = 10.0
    max_message_bytes: int = 64 << 20
    max_elements: int = DEFAULT_MAX_ELEMENTS
    max_answer_bytes: int = 64 << 20
    loader_count: int = 2
    runner_count: int = 0
    p99_target_ms: float = 0.0
    max_queue_ms: float | None = None
    max_queued_bytes: int = 1 << 30
    max_unread_bytes: int = 1 << 30
    spot_check_share: float = 0.001
    workers: int = 1
    crash_limit: int = 3
    crash_window_s: float = 600.0
    connection_age_s: float = 60.0
    tracing: str = "off"
    log_format: str = "auto"
    log_level: str = "info"

    @property
    def repository_root(self) -> RepositoryRoot:
        """The repository, and where its links may lead."""
        return RepositoryRoot(self.repository, self.follow_links)

    @property
    def metrics_host(self) -> str:
        """Where the metrics port listens: on this machine alone, whatever `host` is, because it asks for no token."""
        return self.host if is_loopback(self.host) and not is_unix(self.host) else "127.0.0.1"

    @property
    def is_overlapping(self) -> bool:
        """Whether the gRPC port and the metrics port cannot have the same number: they listen on a common address."""
        return self.host in (self.metrics_host, *EVERY_ADDRESS)

    @property
    def drain_wait_s(self) -> float:
        """The drain delay, seconds: as set; else 5 where load balancers of other machines may have to notice, or 0."""
        if self.drain_delay_s is not None:
            return self.drain_delay_s
        return 0.0 if is_loopback(self.host) else DRAIN_DELAY_S


@dataclass(frozen=True, slots=True)
class Option:
    """How one setting is written.

    Args:
        metavar: What stands for the value in the help; empty for a switch.
        help: What it does, with what it expects.
        expected: What a value must be, for messages.
        read: Reads a value from text; raises ValueError where it is none.
    """

    metavar: str
    help: str
    expected: str
    read: Callable[[str], Any]


_TRANSPORTS = ", ".join(TRANSPORTS)
_LOG_FORMATS, _LOG_LEVELS = ", ".join(logs.FORMATS), ", ".join(logs.LEVELS)

OPTIONS: Final[Mapping[str, Option]] = {
    "repository": Option("DIR", "model repository: DIR/<model>/<version>/model.onnx", "a directory", to.path),
    "follow_links": Option(
        "DIR", "the one folder outside of the repository that links in it may lead to (none)", "a directory", to.path
    ),
    "host": Option(
        "HOST",
        "address to listen on, or unix:PATH; any but this machine's own needs TLS and tokens (127.0.0.1)",
        "a host name, an address or unix:PATH",
        to.host,
    ),
    "port": Option("PORT", "gRPC port, 0 takes a free one (8001)", "0..65535", to.number(0, 65535)),
    "metrics_port": Option(
        "PORT",
        "Prometheus port, on this machine alone, 0 takes a free one, off: none (8002)",
        "0..65535 or off",
        to.metrics_port,
    ),
    "device": Option(
        "DEVICE", "auto, cpu, cuda or cuda:N; cuda never falls back (auto)", "auto, cpu, cuda or cuda:N", to.device
    ),
    "variant": Option(
        "NAME",
        "auto, fp32, int8, fused, …; auto takes the fastest that the version holds for the device (auto)",
        "auto, fp32 or a variant's name",
        to.variant,
    ),
    "device_memory_limit_bytes": Option(
        "N", "most memory of a model on a GPU, bytes, 0: all that is free (0)", "0..2^62", to.number(0, 1 << 62)
    ),
    "transport": Option(
        "NAME",
        "auto, fast or stock; fast falls back where grpcio is not as it needs (auto)",
        _TRANSPORTS,
        to.one_of(*TRANSPORTS),
    ),
    "tls_cert": Option(
        "FILE", "PEM certificate of the server; read anew when it changes (cleartext)", "a file", to.path
    ),
    "tls_key": Option("FILE", "PEM key of the certificate, not encrypted, not for others to read", "a file", to.path),
    "tls_client_ca": Option(
        "FILE",
        "PEM authorities; callers must show a certificate of one of them (they need none)",
        "a file",
        to.path,
    ),
    "access_file": Option(
        "FILE",
        "TOML of tokens, scopes and quotas; see `fitserve-serve token --help` (open to all)",
        "a file",
        to.path,
    ),
    "audit_log": Option(
        "FILE", "appends control actions, one JSON line each (they go into the log)", "a file", to.path
    ),
    "require_proof": Option(
        "", "refuse versions without a certificate, else served unverified", "true or false", to.switch
    ),
    "canary": Option(
        "WHEN",
        "auto: try each version out in a throw-away process first; off: never (auto)",
        "auto or off",
        to.one_of("auto", "off"),
    ),
    "canary_limit_s": Option(
        "S",
        "seconds that loading and each run of one row may take there, for a small version "
        "(auto: 30, up to four times as many on a slow machine)",
        "auto or 1..3600",
        to.auto_or(1, 3600),
    ),
    "canary_memory_bytes": Option(
        "N",
        "most memory that a version may take there, bytes, 0: three quarters of what is free (0)",
        "0..2^62",
        to.number(0, 1 << 62),
    ),
    "poll_interval_s": Option(
        "S", "seconds between looks at the repository (1)", "0.05..3600", to.number(0.05, 3600, float)
    ),
    "drain_delay_s": Option(
        "S",
        "seconds that calls are still taken once SIGTERM has made the server not ready, so that load balancers notice "
        "(auto: 5 where other machines reach it, else 0)",
        "auto or 0..3600",
        to.auto_or(0, 3600),
    ),
    "grace_s": Option(
        "S", "seconds for requests in flight once no more are taken (10)", "0..3600", to.number(0, 3600, float)
    ),
    "max_message_bytes": Option(
        "N", "largest request, bytes (67108864)", f"1024..{2**31 - 1}", to.number(1024, 2**31 - 1)
    ),
    "max_elements": Option(
        "N",
        "most BYTES elements in a request or an answer; 128 bytes of text count as one more, 16 numbers of typed "
        f"contents as one ({DEFAULT_MAX_ELEMENTS})",
        f"{1 << 14}..{2**31 - 1}",
        to.number(1 << 14, 2**31 - 1),
    ),
    "max_answer_bytes": Option(
        "N", "largest outputs of an answer, bytes (67108864)", f"1024..{2**31 - 1}", to.number(1024, 2**31 - 1)
    ),
    "loader_count": Option("N", "versions that load at once (2)", "1..64", to.number(1, 64)),
    "runner_count": Option(
        "N", "threads for long runs (0: one for each core, at least two)", "0..256", to.number(0, 256)
    ),
    "p99_target_ms": Option(
        "MS",
        "sets delay and size of batches so that 99 of 100 take less, 0: none (0)",
        "0..60000",
        to.number(0, 60000, float),
    ),
    "max_queue_ms": Option(
        "MS",
        "how long all that waits for a model may take to run, more is refused at once, 0: no such bound "
        "(auto: 10 s, and 64 requests however long, where a run takes 1 ms or more)",
        "auto or 0..60000",
        to.auto_or(0, 60_000),
    ),
    "max_queued_bytes": Option(
        "N",
        "bytes of inputs that may wait for all models together, in each worker (1073741824)",
        f"1024..{2**50}",
        to.number(1024, 2**50),
    ),
    "max_unread_bytes": Option(
        "N",
        "bytes of answers that callers have not read, in each worker, half of them on one connection (1073741824)",
        f"1024..{2**50}",
        to.number(1024, 2**50),
    ),
    "spot_check_share": Option(
        "SHARE",
        "share of the joined requests that are run again and compared; a mismatch turns joining off (0.001)",
        "0..1",
        to.number(0, 1, float),
    ),
    "workers": Option(
        "N",
        "processes on the one port, each with all models, started again when one dies; 0: none but this one (1)",
        "0..256",
        to.number(0, 256),
    ),
    "crash_limit": Option(
        "N", "crashes of its worker after which a version is set aside, 0: never (3)", "0..1000", to.number(0, 1000)
    ),
    "crash_window_s": Option("S", "seconds that a crash counts (600)", "1..86400", to.number(1, 86400, float)),
    "connection_age_s": Option(
        "S",
        "with several workers, seconds that a connection stays with one, 0: for good (60)",
        "0..86400",
        to.number(0, 86400, float),
    ),
    "tracing": Option("NAME", "off, or otlp: spans of OpenTelemetry (off)", "off or otlp", to.one_of("off", "otlp")),
    "log_format": Option(
        "FORMAT", f"{_LOG_FORMATS} (auto: text on a terminal)", _LOG_FORMATS, to.one_of(*logs.FORMATS)
    ),
    "log_level": Option("LEVEL", f"{_LOG_LEVELS} (info)", _LOG_LEVELS, to.one_of(*logs.LEVELS)),
}
"""Every setting, in the order of the help."""


def resolve(flags: Mapping[str, str], environment: Mapping[str, str], config_file: Path | None) -> ServerSettings:
    """Puts the settings together: a flag wins over the environment, that over the file, that over the default.

    Args:
        flags: Setting name to its text, as far as given.
        environment: The process's environment.
        config_file: A TOML file of settings; None: none.

    Raises:
        SettingsError: an unknown setting, a value that cannot be taken, an unreadable file, no repository, or settings
            that exclude each other.
    """
    found = {} if config_file is None else _read_file(config_file)
    found |= _read_environment(environment)
    found |= {name: _read(f"--{name.replace('_', '-')}", name, text) for name, text in flags.items()}
    if "repository" not in found:
        raise SettingsError("--repository: expected a directory with models, got nothing")
    settings = ServerSettings(**found)
    _check_place(settings)
    return settings


def _check_place(settings: ServerSettings) -> None:
    if is_unix(settings.host):
        if settings.workers > 1:
            text = f"expected 0 or 1 with --host {settings.host}, got {settings.workers}"
            raise SettingsError(f"--workers: {text}: only one process can listen at a path; give several a port")
    elif settings.port and settings.port == settings.metrics_port and settings.is_overlapping:
        text = f"expected another port than --port, got {settings.port} for both"
        raise SettingsError(f"--metrics-port: {text}; choose another, 0 (any free one) or off")


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for key, text in environment.items():
        if key.startswith(ENVIRONMENT_PREFIX):
            values_key = key.removeprefix(ENVIRONMENT_PREFIX).lower()
            values[values_key] = _read(key, values_key, text)
    return values


def _read_file(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"--config {path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path}: expected TOML, got {error}") from None
    return {name: _read(f"{path}: {name}", name, _text(value)) for name, value in document.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(where: str, name: str, text: str) -> Any:
    option = OPTIONS.get(name)
    if option is None:
        raise SettingsError(f"{where}: expected one of {', '.join(OPTIONS)}, got an unknown setting")
    try:
        return option.read(text)
    except ValueError:
        raise SettingsError(f"{where}: expected {option.expected}, got '{text[:128]}'") from None
