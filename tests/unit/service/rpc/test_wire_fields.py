"""Names of models found on the wire: what protobuf reads in the whole message, or a refusal."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve_benchmarks.hostile_messages import HostileMessages
from fitserve_oip.pool import private_pool
from fitserve_service.access.rules import Rule, rules_of
from fitserve_service.errors import ServiceError
from fitserve_service.messages import MAX_FIELDS, MAX_NAMING_BYTES

OTHERS = ("inference.GRPCInferenceService", "grpc.health.v1.Health")
SERVICES = [
    *(service for module in (control_pb2, inference_pb2) for service in module.DESCRIPTOR.services_by_name.values()),
    *map(private_pool().FindServiceByName, OTHERS),
]
ALL = rules_of(f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods)
RULES = {name: rule for name, rule in ALL.items() if rule.model_fields}
INFER = RULES["/inference.GRPCInferenceService/ModelInfer"]
COMPARE = RULES["/fitserve.inference.v1.InferenceService/CompareVersions"]


def parsed(rule: Rule, message: bytes) -> list[str] | None:
    """What protobuf reads; None where it reads nothing."""
    try:
        request: Any = rule.request.FromString(message)
    except DecodeError:
        return None
    names = []
    for path in rule.model_fields:
        value = request
        for part in path.split("."):
            value = getattr(value, part)
        names.append(value)
    return names


def found(rule: Rule, message: bytes) -> list[str] | None:
    try:
        return rule.models(message)
    except ServiceError:
        return None


def check(rule: Rule, message: bytes) -> None:
    """Refused, or the same names; and never refused without a group where protobuf takes it."""
    expected, names = parsed(rule, message), found(rule, message)
    if expected is not None:
        assert names == expected or (names is None and is_refused_for_a_group(rule, message))


def is_refused_for_a_group(rule: Rule, message: bytes) -> bool:
    try:
        rule.models(message)
    except ServiceError as error:
        return "group" in error.message
    return False


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(st.randoms(use_true_random=False))
def test_names_are_found_as_protobuf_reads_them(rule: Rule, random: Random) -> None:
    messages = HostileMessages(random, ("m", "other"))
    for _ in range(3):
        check(rule, messages.message(rule.request.DESCRIPTOR))


WRAP = b"\x80" * 8 + b"\x02"
PIECES = [
    b"\x0a\x01m", b"\x0a\x00", b"\x0a\x05other", b"\x0a\x03\x0a\x01m", b"\x12\x03\x0a\x01m", b"\x0a\x02\x10\x07",
    b"\x0a\x01\xff",
    b"\x08\x01", b"\x0d\x0a\x01mm", b"\x09\x0a\x01m\x0a\x01mm", b"\x0b\x0a\x01m\x0c", b"\x0c", b"\x0e", b"\x02\x01a",
    b"\x8a\x00\x01m", b"\x8a\x80\x80\x80\x00\x01m", b"\x8a\x80\x80\x80\x80\x00\x01m", b"\x8a\x80\x80\x80\x10\x01m",
    b"\x0a\x81\x80\x80\x80\x80\x00m", b"\x0a\x81" + WRAP + b"m", b"\x3a\x85" + WRAP + b"\x0a\x03abc",
    b"\x10" + b"\x80" * 9 + b"\x7f", b"\x10" + b"\x80" * 10 + b"\x00", b"\x2a\x05\x0a\x03abc", b"\x0a\x7fm",
]  # fmt: skip


@example([b"\x0a\x01m", b"\x3b\x0a\x01x\x3c"])
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=8))
def test_no_spelling_of_a_field_makes_two_of_a_name(pieces: list[bytes]) -> None:
    for rule in (INFER, COMPARE):
        check(rule, b"".join(pieces))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_field_that_names_models_shares_a_oneof(rule: Rule) -> None:
    """Else the last of its fields counts, which may be one that is left out."""
    for path in rule.model_fields:
        assert rule.request.DESCRIPTOR.fields_by_name[path.partition(".")[0]].containing_oneof is None


class Watched(bytes):
    """Counts the bytes that are copied out."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        self.copied += len(part) if isinstance(key, slice) else 0
        return part


def test_contents_are_not_looked_at() -> None:
    message = Watched(b"\x0a\x01m" + b"\x2a\x80\x80\x80\x04" + b"\x42\x00" * (4 << 20))
    assert INFER.models(message) == ["m"]
    assert message.copied == 3


def test_a_message_of_many_fields_is_refused() -> None:
    assert INFER.models(b"\x32\x00" * (MAX_FIELDS - 1) + b"\x0a\x01m") == ["m"]
    with pytest.raises(ServiceError, match=r"at most 16384 fields .* name fewer inputs, outputs and parameters"):
        INFER.models(b"\x32\x00" * MAX_FIELDS + b"\x0a\x01m")


def test_a_long_name_is_refused() -> None:
    with pytest.raises(ServiceError, match=f"at most {MAX_NAMING_BYTES} bytes that name models, got 70004"):
        INFER.models(b"\x0a\xf0\xa2\x04" + b"m" * 70_000)
