"""The servers that ours is held against: real processes that answer, and peers by name."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from tests.builders import bare_version, linear

from fitserve_benchmarks.peers import PEERS, PeerError, chosen_peers
from fitserve_benchmarks.peers_model import InlineModels
from fitserve_benchmarks.serve_inprocess import in_process_turn
from fitserve_benchmarks.serve_load import Target
from fitserve_benchmarks.serve_requests import infer_answer, infer_request, is_right, make_traffic
from fitserve_benchmarks.serve_servers import FLOORS, Launch, Served, own_launches, running
from fitserve_benchmarks.subject import open_subject
from fitserve_oip.inference_pb2 import ModelInferResponse


def _served(folder: Path) -> Served:
    path = bare_version(folder / "models", "tiny", 1, linear())
    (folder / "logs").mkdir()
    return Served(folder / "models", [f"tiny={path.folder / 'model.onnx'}"], 1, folder / "logs")


@pytest.mark.parametrize("name", FLOORS)
def test_each_floor_answers_as_it_should_and_is_over_with_its_context(name: str, tmp_path: Path) -> None:
    served = _served(tmp_path)
    traffic = make_traffic(open_subject(served.repository, "tiny"), 2, 3)
    (launch,) = (launch for launch in own_launches(served) if launch.name == name)
    with running(launch, served, traffic.messages[0]) as contestant:
        answer = contestant.ask(traffic.messages[1])
        assert contestant.cpu_s() > 0
    if launch.is_echo:
        assert answer == traffic.messages[1]
    else:
        assert is_right(answer, traffic.expected[1])
        assert not is_right(answer, traffic.expected[0])
    with pytest.raises(OSError, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
        contestant.ask(traffic.messages[0], 0.2)


def test_a_contestant_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    served = _served(tmp_path)
    launch = Launch("broken", ["sh", "-c", "echo no such thing; exit 3"], Target(9, "/"))
    with (
        pytest.raises(PeerError, match="ended with exit code 3; its last line: no such thing"),
        running(launch, served, b""),
    ):
        pass


def test_an_inline_model_answers_what_onnx_runtime_does(tmp_path: Path) -> None:
    served = _served(tmp_path)
    traffic = make_traffic(open_subject(served.repository, "tiny"), 4, 2)
    models = InlineModels(served.files, 1)
    assert is_right(models.answer(traffic.messages[1]), traffic.expected[1])


def test_typed_contents_are_read_like_raw_ones() -> None:
    response = ModelInferResponse()
    response.outputs.add(name="y", datatype="FP32", shape=(1, 2)).contents.fp32_contents.extend((1.0, 2.0))
    found = infer_answer(response.SerializeToString())
    assert np.array_equal(found["y"], np.array([[1.0, 2.0]], np.float32))
    assert not is_right(b"\xff\xff", found)
    assert not is_right(response.SerializeToString(), {"other": found["y"]})


def test_onnx_runtime_alone_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    served = _served(tmp_path)
    subject = open_subject(served.repository, "tiny")
    turn = in_process_turn(subject.onnx_path, 1, 2, 0.1, make_traffic(subject, 1, 1).batches[0])
    assert turn.rate == pytest.approx(len(turn.latencies_s) / 0.1)
    assert turn.latencies_s.size > 0


def test_a_server_that_takes_json_gets_the_same_message() -> None:
    launch = Launch("json", [], Target(1, "/", "http", "application/json"), encoding="base64")
    body = launch.request_of(b"\x00\x01")
    assert base64.b64encode(b"\x00\x01") in body
    assert launch.message_of(body) == b"\x00\x01"
    assert Launch("bytes", [], Target(1, "/")).request_of(b"\x00") == b"\x00"


def test_peers_are_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert chosen_peers("none") == ()
    assert chosen_peers("auto") == ()
    assert [peer.name for peer in chosen_peers("all")] == list(PEERS)
    assert [peer.name for peer in chosen_peers("ray, mlserver,ray")] == ["ray", "mlserver"]
    with pytest.raises(ValueError, match=r"expected none, auto, all or some of mlserver, .*, got 'triton'"):
        chosen_peers("triton")


def test_a_peer_that_is_installed_takes_part_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "fitserve" / "peers" / "ray"
    folder.mkdir(parents=True)
    (folder / "installed.json").write_text("{}")
    assert [peer.name for peer in chosen_peers("auto")] == ["ray"]


def test_a_request_names_its_model() -> None:
    assert b"tiny" in infer_request("tiny", {"x": np.zeros((1, 2), np.float32)})
