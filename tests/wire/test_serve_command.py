"""fitserve-serve as a process: what it says, what it refuses, how it stops; and a repository of a thousand models."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import onnx
import pytest
from tests import builders
from tests.wire.serving import WAIT_S, connected, serving

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_oip import health_pb2
from fitserve_service import session

PREDICT = "/fitserve.inference.v1.InferenceService/Predict"
COMMAND = (sys.executable, "-c", "from fitserve_service.cli import main; main()")


def predict_request(name: str, shape: tuple[int, ...] = (1, 2)) -> bytes:
    content = np.ones(shape, np.float32).tobytes()
    tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=shape, content=content)
    return pb.PredictRequest(model=tensor_pb2.ModelSpec(name=name), inputs=[tensor]).SerializeToString()


@contextmanager
def started(root: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts the command and gives it with its ready line; kills what is left of it."""
    fixed = ["--repository", str(root), "--port", "0", "--device", "cpu"]
    metrics = [] if "--metrics-port" in flags else ["--metrics-port", "off"]
    command = [*COMMAND, *fixed, *metrics, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def port_of(line: str) -> int:
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert found, line
    return int(found[1])


def refusal(*flags: str, **environment: str) -> str:
    """Runs the command where it must refuse to start, and gives its one sentence."""
    env = os.environ | environment
    ran = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=60, check=False, env=env)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Traceback" not in ran.stderr
    return ran.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_it_says_in_one_line_where_it_is_and_what_it_serves(tmp_path: Path, workers: int) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    with started(tmp_path, "--metrics-port", "0", "--workers", str(workers)) as (process, line):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == workers
        assert "twice version 1 on CPUExecutionProvider" in line
        with grpc.insecure_channel(f"127.0.0.1:{port_of(line)}") as channel:
            call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
            assert call(predict_request("twice"), timeout=WAIT_S)
        found = re.search(r"http://\S+/metrics", line)
        assert found
        with urlopen(found[0], timeout=WAIT_S) as scraped:
            metrics = scraped.read().decode()
        assert 'fitserve_requests_total{code="OK",method="Predict",model="twice",version="1"} 1.0' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        assert all(json.loads(record)["level"] == "info" for record in process.stderr)


def test_an_empty_repository_is_waited_for(tmp_path: Path) -> None:
    with started(tmp_path, "--poll-interval-s", "0.05") as (_, line):
        assert "holds no model yet" in line
        assert "fitserve-export" in line
        with grpc.insecure_channel(f"127.0.0.1:{port_of(line)}") as channel:
            watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")  # type: ignore[call-arg]
            answers = watch(health_pb2.HealthCheckRequest(service="late").SerializeToString(), timeout=WAIT_S)
            builders.bare_version(tmp_path, "late", 1, builders.scaled())
            while health_pb2.HealthCheckResponse.FromString(next(answers)).status != 1:
                pass
            call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
            assert call(predict_request("late"), timeout=WAIT_S)
            answers.cancel()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_names_hold_forges_no_line_and_moves_no_cursor(tmp_path: Path, workers: str) -> None:
    root = tmp_path / os.fsdecode(b"a\nFORGED\x1b[2J\xe2\x80\xae\xff")
    root.mkdir()
    with started(root, "--workers", workers, "--log-format", "text") as (process, line):
        assert line.startswith("fitserve is ready on")
        assert "a\\nFORGED\\x1b[2J\\u202e\\udcff" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == ""
        assert not any(record.startswith("FORGED") or not record[:-1].isprintable() for record in process.stderr)


def test_sigterm_answers_what_is_in_flight_and_refuses_the_rest(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "slow", 1, builders.slow(rounds=600, width=256))
    with started(tmp_path) as (process, line), grpc.insecure_channel(f"127.0.0.1:{port_of(line)}") as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")  # type: ignore[call-arg]
        health = watch(b"", timeout=WAIT_S)
        assert health_pb2.HealthCheckResponse.FromString(next(health)).status == 1
        call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
        ready: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")  # type: ignore[call-arg]
        running = [call.future(predict_request("slow", (64, 256)), timeout=WAIT_S) for _ in range(4)]
        # Answered behind the four on the same connection: they have arrived.
        ready(b"", timeout=WAIT_S)
        process.send_signal(signal.SIGTERM)
        assert health_pb2.HealthCheckResponse.FromString(next(health)).status == 2
        assert all(future.result() for future in running)
        with pytest.raises(grpc.RpcError) as caught:
            call(predict_request("slow", (64, 256)), timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.wait(WAIT_S) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "slow", 1, builders.slow(rounds=5000, width=256))
    grace = ["--grace-s", "600"]
    with started(tmp_path, *grace) as (process, line), grpc.insecure_channel(f"127.0.0.1:{port_of(line)}") as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")  # type: ignore[call-arg]
        health = watch(b"", timeout=WAIT_S)
        next(health)
        call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
        running = [call.future(predict_request("slow", (256, 256)), timeout=WAIT_S) for _ in range(8)]
        ready: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")  # type: ignore[call-arg]
        ready(b"", timeout=WAIT_S)
        process.send_signal(signal.SIGTERM)
        next(health)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 128 + signal.SIGINT
        assert any(future.exception() for future in running)


def counting_model() -> bytes:
    """n INT64 () -> y FP32 (): counts to n, one step at a time."""
    count, flag, number = (
        builders.value(name, (), builders.ELEMENT_TYPES[datatype])
        for name, datatype in (("i", "INT64"), ("go", "BOOL"), ("v", "FP32"))
    )
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["go"], ["go_on"]), onnx.helper.make_node("Add", ["v", "one"], ["w"])],
        "body",
        [count, flag, number],
        [builders.value("go_on", (), builders.ELEMENT_TYPES["BOOL"]), builders.value("w", ())],
    )
    loop = onnx.helper.make_node("Loop", ["n", "", "zero"], ["y"], body=body)
    scalars = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
    return builders.model(
        [loop], [builders.value("n", (), builders.ELEMENT_TYPES["INT64"])], [builders.value("y", ())], scalars
    )


def test_a_run_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "count", 1, counting_model())
    endless = tensor_pb2.Tensor(name="n", datatype="INT64", content=np.int64(2**60).tobytes())
    request = pb.PredictRequest(model=tensor_pb2.ModelSpec(name="count"), inputs=[endless])
    with (
        started(tmp_path, "--grace-s", "0.1") as (process, line),
        grpc.insecure_channel(f"127.0.0.1:{port_of(line)}") as channel,
    ):
        call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
        ready: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")  # type: ignore[call-arg]
        running = call.future(request.SerializeToString(), timeout=WAIT_S)
        ready(b"", timeout=WAIT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert running.code() is not grpc.StatusCode.OK


def test_a_closed_stdout_does_not_stop_it(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    reader, writer = os.pipe()
    os.close(reader)
    flags = ["--repository", str(tmp_path), "--port", "0", "--metrics-port", "off", "--device", "cpu"]
    with subprocess.Popen([*COMMAND, *flags], stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        assert process.stderr is not None
        line = next(record for record in process.stderr if "listening" in record)
        # The next records have nowhere to go either.
        process.stderr.close()
        with grpc.insecure_channel(f"127.0.0.1:{port_of(line)}") as channel:
            watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")  # type: ignore[call-arg]
            answers = watch(b"", timeout=WAIT_S)
            while health_pb2.HealthCheckResponse.FromString(next(answers)).status != 1:
                pass
            predict: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
            assert predict(predict_request("twice"), timeout=WAIT_S)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0


def test_it_refuses_to_start_in_one_sentence(tmp_path: Path) -> None:
    repository = ["--repository", str(tmp_path)]
    assert "--repository: expected a directory" in refusal()
    assert "expected a directory, found none; create it" in refusal("--repository", str(tmp_path / "none"))
    assert "--port: expected 0..65535, got 'x'" in refusal(*repository, "--port", "x")
    assert "FITSERVE_SERVE_PROT: expected one of" in refusal(*repository, FITSERVE_SERVE_PROT="1")
    assert "give it --tls-cert, --tls-key and --access-file" in refusal(*repository, "--host", "0.0.0.0")
    config = tmp_path / "server.toml"
    config.write_text("prot = 1\n")
    assert f"{config}: prot: expected one of" in refusal(*repository, "--config", str(config))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in refusal(*repository, "--port", port, "--metrics-port", "off")
        assert f"--metrics-port: port {port} on 127.0.0.1 is in use" in refusal(
            *repository, "--port", "0", "--metrics-port", port
        )
    problem = session.cuda_problem()
    if problem is not None:
        assert f"--device cuda: {problem}" in refusal(*repository, "--device", "cuda")


@pytest.mark.slow
def test_a_thousand_models_load_and_answer_and_a_broken_one_harms_nobody(tmp_path: Path) -> None:
    content = builders.scaled()
    for index in range(1000):
        builders.bare_version(tmp_path, f"model-{index}", 1, content)
    builders.bare_version(tmp_path, "broken", 1, content[:-5])
    failures: list[str] = []

    def ask(channel: Any, indices: range) -> None:
        call = channel.unary_unary(PREDICT)
        for index in indices:
            answer = pb.PredictResponse.FromString(call(predict_request(f"model-{index}"), timeout=WAIT_S))
            if answer.outputs[0].content != np.full((1, 2), 2, np.float32).tobytes():
                failures.append(f"model-{index}")

    with serving(tmp_path) as server, connected(server) as channel:
        threads = [threading.Thread(target=ask, args=(channel, range(part, 1000, 4))) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        states = {version.state.value for model in server.registry.snapshot() for version in model.versions}
    assert failures == []
    assert states == {"READY", "FAILED"}
