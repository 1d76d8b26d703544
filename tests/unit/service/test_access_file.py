"""The access file and the command that writes it: what can be taken, what is named, who may read it."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.access import token_command
from fitserve_service.access.access_file import (
    AccessFileError,
    AccessWatcher,
    Caller,
    digest_of,
    parse_access,
    read_access,
)
from fitserve_service.access.private_files import PrivateFileError
from fitserve_service.access.quotas import Limits
from fitserve_service.access.rules import GRANTED, Scope

TOKEN = f'[[token]]\nname = "ci"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\n'


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,20}", fullmatch=True).filter(lambda name: name != "default"),
    scopes=st.lists(st.sampled_from(GRANTED), min_size=1, unique=True),
    models=st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=4),
    days=st.none() | st.integers(1, 3000),
    token=st.text(max_size=20),
)
def test_what_the_command_writes_is_what_is_read(
    name: str, scopes: list[Scope], models: list[str] | None, days: int | None, token: str
) -> None:
    text = token_command.entry_text(name, token, scopes, models, days)
    (grant,) = parse_access(text, "file").tokens.values()
    assert grant.caller == Caller("token", name)
    assert grant.scopes == frozenset(scopes)
    assert grant.models == (None if models is None else frozenset(models))
    assert (grant.expires_s is None) == (days is None)
    assert grant.digest == digest_of(token)


def test_a_whole_file_is_read() -> None:
    rules = parse_access(
        TOKEN + 'models = ["m"]\nexpires = 2027-01-31T00:00:00+01:00\n'
        '[[certificate]]\nidentity = "spiffe://x/y"\nscopes = ["control"]\n'
        '[anonymous]\nscopes = ["evaluate"]\n[quotas.default]\nrequests_per_s = 5\n[quotas.ci]\nqueue_share = 0.25\n',
        "file",
    )
    (token,) = rules.tokens.values()
    assert token.models == frozenset({"m"})
    assert token.expires_s == datetime(2027, 1, 30, 23, tzinfo=UTC).timestamp()
    assert rules.certificates["spiffe://x/y"].scopes == frozenset({Scope.CONTROL})
    assert rules.anonymous is not None
    assert rules.limits_of(token.caller) == Limits(queue_share=0.25)
    assert rules.limits_of(Caller("peer", "127.0.0.1")) == Limits(requests_per_s=5)
    assert parse_access("", "file").limits_of(token.caller) == Limits()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "expected TOML"),
        ("tokens = []", "expected one of token, certificate, anonymous, quotas, got 'tokens'"),
        ("token = 1", r"token: expected entries that begin with \[\[token\]\]"),
        ("[token]\nname = 'x'", r"expected entries that begin with \[\[token\]\]"),
        (TOKEN.replace("ci", "a b"), "token 1: name: expected letters"),
        (TOKEN.replace("ci", "default"), "token 1: name: expected letters"),
        (TOKEN.replace("0" * 64, "0" * 63), r"token 1 \('ci'\): sha256: expected 64 hexadecimal digits"),
        (TOKEN.replace("0" * 64, "A" * 64), "expected 64 hexadecimal digits, lower case"),
        (TOKEN.replace("infer", "predict"), r"scopes: expected a list of infer, evaluate, control, got \['predict'\]"),
        (TOKEN.replace('"infer"', ""), "scopes: expected a list"),
        (TOKEN.replace('["infer"]', '"infer"'), "scopes: expected a list"),
        (TOKEN + 'models = "m"', "models: expected a list of names"),
        (TOKEN + 'models = [""]', "models: expected a list of names"),
        (TOKEN + "expires = 2027-01-31", "expires: expected a time with its zone"),
        (TOKEN + "expires = 2027-01-31T00:00:00", "expires: expected a time with its zone"),
        (TOKEN + "expired = 1", "expected one of name, sha256, scopes, models, expires, got 'expired'"),
        (TOKEN + TOKEN, "expected each sha256 once"),
        ('[[certificate]]\nscopes = ["infer"]', "certificate 1: identity: expected a name"),
        ("[anonymous]", "anonymous: scopes: expected a list"),
        ("anonymous = 1", "anonymous: expected a table"),
        ("[quotas]\nci = 1", "quotas.ci: expected a table"),
        ("[quotas.ci]\nrate = 1", "quotas.ci: expected one of requests_per_s, burst, .* got 'rate'"),
        ("[quotas.ci]\nburst = -1", "quotas.ci.burst: expected a number in 0..9007199254740992, got -1"),
        ("[quotas.ci]\nburst = inf", "quotas.ci.burst: expected a number"),
        (f"[quotas.ci]\nrequests_per_s = {10**400}", "quotas.ci.requests_per_s: expected a number in 0"),
        ("[quotas.ci]\nburst = nan", "quotas.ci.burst: expected a number"),
        ("[quotas.ci]\nburst = true", "quotas.ci.burst: expected a number"),
        ("[quotas.ci]\nqueue_share = 0", "quotas.ci.queue_share: expected a number in 0..1"),
        ("[quotas.ci]\nqueue_share = 1.5", "quotas.ci.queue_share: expected a number in 0..1"),
    ],
)
def test_what_cannot_be_taken_is_named(text: str, message: str) -> None:
    with pytest.raises(AccessFileError, match=f"file: .*{message}|file.*{message}"):
        parse_access(text, "file")


VALUES = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.text(st.characters(exclude_categories=["C"]), max_size=8),
    lambda values: st.lists(values, max_size=3),
    max_leaves=4,
)
KEYS = ("name", "sha256", "scopes", "models", "expires", "identity", "requests_per_s", "queue_share")
SECTIONS = ("[[token]]", "[[certificate]]", "[anonymous]", "[quotas.ci]", "[token]", "[quotas]")


@given(
    st.dictionaries(st.sampled_from(SECTIONS), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), max_size=4)
)
def test_whatever_a_file_holds_it_is_rules_or_a_sentence(document: dict[str, dict[str, object]]) -> None:
    sections = [
        "\n".join([section, *(f"{key} = {toml(value)}" for key, value in table.items())])
        for section, table in document.items()
    ]
    try:
        rules = parse_access("\n".join(sections), "file")
    except AccessFileError as error:
        assert str(error).startswith("file: ")  # noqa: PT017 - either is right, and the sentence names the file
    else:
        assert all(grant.scopes <= frozenset(GRANTED) for grant in rules.tokens.values())


def toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o666])
def test_a_file_that_others_may_touch_is_not_taken(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "access.toml", TOKEN)
    path.chmod(mode)
    with pytest.raises(PrivateFileError, match=f"got mode {mode:04o}; chmod 06[04]0 helps"):
        read_access(path)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_a_file_of_its_owner_and_for_its_group_to_read_is_taken(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "access.toml", TOKEN)
    path.chmod(mode)
    assert len(read_access(path).tokens) == 1


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, message in (("fifo", "regular file"), ("none", "No such file"), (".", "regular file")):
        with pytest.raises(PrivateFileError, match=message):
            read_access(tmp_path / name)
    (tmp_path / "large").touch(0o600)
    os.truncate(tmp_path / "large", 2 << 20)
    with pytest.raises(PrivateFileError, match="expected at most 1048576 bytes"):
        read_access(tmp_path / "large")


def test_a_change_is_seen_within_a_second_and_a_broken_one_leaves_what_was(tmp_path: Path) -> None:
    clock = [0.0]
    path = private(tmp_path / "access.toml", TOKEN)

    def refuse_anonymous(rules: object) -> None:
        if getattr(rules, "anonymous", None):
            raise AccessFileError("anonymous: not here")

    watcher = AccessWatcher(path, refuse_anonymous, lambda: clock[0])
    first = watcher.rules()
    private(path, TOKEN.replace("ci", "next"))
    assert watcher.rules() is first
    clock[0] = 1.0
    assert [grant.caller.name for grant in watcher.rules().tokens.values()] == ["next"]
    good = watcher.rules()
    for clock[0], text in ((2.0, "broken"), (3.0, TOKEN + '[anonymous]\nscopes = ["infer"]\n')):
        private(path, text)
        assert watcher.rules() is good
    clock[0] = 4.0
    path.unlink()
    assert watcher.rules() is good
    clock[0] = 5.0
    private(path, TOKEN)
    assert watcher.rules() is not good


def test_the_command_shows_a_token_once_and_keeps_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "access.toml"
    arguments = ["ci", "--access-file", str(path), "--scopes", "infer,evaluate", "--models", "lenet", "--days", "90"]
    assert token_command.run(arguments) == 0
    first = capsys.readouterr()
    token = first.out.strip()
    assert token.startswith(token_command.PREFIX)
    assert len(token) == len(token_command.PREFIX) + 43
    assert token not in first.err + path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    grant = read_access(path).tokens[digest_of(token)]
    assert grant.scopes == frozenset({Scope.INFER, Scope.EVALUATE})
    assert grant.models == frozenset({"lenet"})
    # What an operator has written stays, and so does the mode that he has chosen.
    path.write_text("# ours\n" + path.read_text())
    path.chmod(0o640)
    assert token_command.run(["ci", "--access-file", str(path), "--scopes", "control"]) == 0
    assert path.read_text().startswith("# ours\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(read_access(path).tokens) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["access.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a b", "--scopes", "infer"], "NAME: expected letters"),
        (["ci", "--scopes", "predict"], "scopes: expected a list of infer, evaluate, control"),
        (["default", "--scopes", "infer"], "name: expected letters"),
    ],
)
def test_the_command_refuses_in_a_sentence_and_leaves_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = private(tmp_path / "access.toml", TOKEN)
    assert token_command.run([*arguments, "--access-file", str(path)]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""
    assert path.read_text() == TOKEN


def test_many_commands_at_once_all_come_through(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    entries = [token_command.entry_text("ci", str(number), ["infer"], None, None) for number in range(20)]
    threads = [threading.Thread(target=token_command.append_entry, args=(path, entry)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_access(path).tokens) == {digest_of(str(number)) for number in range(20)}
