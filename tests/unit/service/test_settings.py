"""Where settings come from, which wins, and how each wrong one is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from fitserve_service.settings import ENVIRONMENT_PREFIX, OPTIONS, ServerSettings, SettingsError, resolve


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('repository = "r"\nport = 1\ngrace_s = 2.5\nhost = "::1"\nrequire_proof = true\n')
    environment = {f"{ENVIRONMENT_PREFIX}PORT": "2", f"{ENVIRONMENT_PREFIX}GRACE_S": "3", "OTHER": "x"}
    settings = resolve({"port": "4"}, environment, config)
    assert settings == ServerSettings(Path("r"), host="::1", port=4, grace_s=3.0, require_proof=True)


def test_the_defaults_are_loopback_and_tritons_ports() -> None:
    settings = resolve({"repository": "r"}, {}, None)
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 8001, 8002)
    assert settings.access_file is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("metrics_port", "off", None),
        ("metrics_port", "0", 0),
        ("device", "cuda:1", "cuda:1"),
        ("host", "[::1]", "::1"),
        ("tls_cert", "a/b.pem", Path("a/b.pem")),
        ("grace_s", "0.5", 0.5),
        ("canary_limit_s", "auto", None),
        ("canary_limit_s", "90", 90.0),
        ("canary_memory_bytes", "34359738368", 32 << 30),
        ("log_format", "json", "json"),
    ],
)
def test_values_are_read(name: str, text: str, value: object) -> None:
    assert getattr(resolve({"repository": "r", name: text}, {}, None), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("port", "1.5"),
        ("port", ""),
        ("device", "cuda:"),
        ("device", "gpu"),
        ("grace_s", "nan"),
        ("grace_s", "-1"),
        ("grace_s", "inf"),
        ("max_message_bytes", "0"),
        ("require_proof", "yes"),
        ("log_level", "loud"),
        ("host", " "),
        ("repository", ""),
        ("repository", "a\0b"),
        ("loader_count", "0"),
        ("canary_limit_s", "0"),
        ("canary_limit_s", "nan"),
        ("canary_memory_bytes", "-1"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_what_was_expected(name: str, text: str) -> None:
    flags = {"repository": "r", name: text}
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(SettingsError) as caught:
        resolve(flags, {}, None)
    assert str(caught.value) == f"{flag}: expected {OPTIONS[name].expected}, got '{text}'"
    with pytest.raises(SettingsError, match=f"{ENVIRONMENT_PREFIX}{name.upper()}: expected "):
        resolve({}, {f"{ENVIRONMENT_PREFIX}{name.upper()}": text}, None)


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text("prot = 1\n")
    with pytest.raises(SettingsError, match=r"server\.toml: prot: expected one of repository, follow_links, host"):
        resolve({}, {}, config)
    with pytest.raises(SettingsError, match="FITSERVE_SERVE_PROT: expected one of repository, follow_links, host"):
        resolve({}, {"FITSERVE_SERVE_PROT": "1"}, None)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        resolve({}, {}, tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("port = = 1")
    with pytest.raises(SettingsError, match=r"bad\.toml: expected TOML"):
        resolve({}, {}, tmp_path / "bad.toml")


def test_no_repository_is_said() -> None:
    with pytest.raises(SettingsError, match="--repository: expected a directory"):
        resolve({}, {}, None)


def test_every_setting_can_be_given() -> None:
    assert list(OPTIONS) == [entry.name for entry in fields(ServerSettings)]


def test_how_much_work_may_wait_is_a_number_or_left_to_the_models() -> None:
    def told(text: str) -> float | None:
        return resolve({"repository": "r", "max_queue_ms": text}, {}, None).max_queue_ms

    assert (told("auto"), told("0"), told("12.5")) == (None, 0.0, 12.5)
    with pytest.raises(SettingsError, match=r"--max-queue-ms: expected auto or 0..60000, got '-1'"):
        told("-1")


@pytest.mark.parametrize(
    ("host", "port", "metrics_port", "fits"),
    [
        ("127.0.0.1", "9000", "9000", False),
        ("::1", "9000", "9000", False),
        ("0.0.0.0", "9000", "9000", False),
        ("127.0.0.1", "8002", None, False),
        ("127.0.0.1", "0", "0", True),
        ("127.0.0.1", "9000", "off", True),
        ("192.0.2.1", "9000", "9000", True),
        ("unix:s", "9000", "9000", True),
    ],
)
def test_both_ports_have_numbers_of_their_own(host: str, port: str, metrics_port: str | None, fits: bool) -> None:
    flags = {"repository": "r", "host": host, "port": port}
    flags |= {"metrics_port": metrics_port} if metrics_port else {}
    if fits:
        assert resolve(flags, {}, None).host == host
    else:
        with pytest.raises(SettingsError, match=f"--metrics-port: expected another port than --port, got {port} for"):
            resolve(flags, {}, None)
