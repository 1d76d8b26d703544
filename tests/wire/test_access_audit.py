"""What control actions leave on record, over the wire; on both transports."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tests.wire.access_world import (
    CONTROL,
    OIP,
    OWN,
    access_text,
    predict,
    world,
)
from tests.wire.conforming import TRANSPORTS
from tests.wire.serving import refused

from fitserve.control.v1 import control_pb2 as control
from fitserve_oip import inference_pb2

pytestmark = [
    pytest.mark.parametrize("transport", sorted(TRANSPORTS)),
    pytest.mark.needs_program("openssl"),
]


def test_control_actions_are_on_record_refused_ones_too_and_no_token_is(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "audit.log"
    with caplog.at_level(logging.DEBUG), world(tmp_path, transport, access_text(), audit_log=log) as made:
        move = control.SetLabelRequest(model="open", label="stable", version=1, why="better\nnow")
        assert made.code(f"{CONTROL}/SetLabel", move, "allall") == "OK"
        first = log.read_text()
        assert json.loads(first.splitlines()[1])["result"] == "OK"
        # Rotated: the next line goes into a new file of the name.
        log.rename(tmp_path / "audit.log.1")
        load = inference_pb2.RepositoryModelLoadRequest(model_name="nothing")
        assert made.code(f"{OIP}/RepositoryModelLoad", load, "controlcontrol") == "NOT_FOUND"
        assert made.code(f"{CONTROL}/UnloadModel", control.UnloadModelRequest(name="secret"), "oneone") != "OK"
        assert made.code(f"{CONTROL}/UnloadModel", control.UnloadModelRequest(name="open"), "wrongtoken") != "OK"
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"
    records = [json.loads(line) for line in (first + log.read_text()).splitlines()]
    told = [(r["event"], r["caller"], r["action"].rpartition("/")[2], r.get("result")) for r in records]
    assert told == [
        ("asked", "token:all", "SetLabel", None),
        ("done", "token:all", "SetLabel", "OK"),
        ("asked", "token:control", "RepositoryModelLoad", None),
        ("done", "token:control", "RepositoryModelLoad", "MODEL_NOT_FOUND"),
        ("refused", "token:one", "UnloadModel", "NOT_PERMITTED"),
        ("refused", "", "UnloadModel", "NOT_AUTHENTICATED"),
    ]
    assert records[0]["id"] == records[1]["id"] != records[2]["id"]
    assert records[0]["target"] | {"who": ""} == {
        "model": "open", "label": "stable", "version": "1", "why": "better\nnow", "who": "",
    }  # fmt: skip
    assert all(record["peer"].startswith("ipv") for record in records)
    assert log.stat().st_mode & 0o777 == 0o600
    everything = first + log.read_text() + caplog.text
    for token in ("allall", "controlcontrol", "oneone", "wrongtoken"):
        assert token not in everything


def test_an_action_that_cannot_be_put_on_record_is_not_carried_out(transport: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with world(tmp_path, transport, access_text(), audit_log=folder / "audit.log") as made:
        (folder / "audit.log").unlink()
        folder.rmdir()
        request = control.UnloadModelRequest(name="open")
        method = made.channel.unary_unary(f"/{CONTROL}/UnloadModel")
        metadata = (("authorization", "Bearer allall"),)
        found = refused(method, request.SerializeToString(), metadata=metadata)
        assert found[:2] == ("FAILED_PRECONDITION", "AUDIT_FAILED")
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"
        folder.mkdir()
        assert made.code(f"{CONTROL}/UnloadModel", request, "allall") == "OK"
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "UNAVAILABLE"
