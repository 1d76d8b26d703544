"""Clients that share no code with the server: grpclib, @grpc/grpc-js and perf_analyzer."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import grpclib.client
import numpy as np
import pytest
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from tests import builders
from tests.wire.serving import WAIT_S, serving, url

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_oip import health_pb2
from fitserve_oip import inference_pb2 as oip

PROTOS = Path(__file__).parents[2] / "protos"
GRPC_JS = ("@grpc/grpc-js@1.14", "@grpc/proto-loader@0.8")

SCRIPT = """
const grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader");
const [address, protos] = process.argv.slice(2);
const load = file => grpc.loadPackageDefinition(loader.loadSync(file, {includeDirs: [protos], keepCase: true}));
const inference = load("fitserve_oip/inference.proto").inference;
const health = load("fitserve_oip/health.proto").grpc.health.v1;
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());
const checker = new health.Health(address, grpc.credentials.createInsecure());
const call = (stub, name, request) => new Promise((done, fail) =>
  stub[name](request, {deadline: Date.now() + 30000}, (error, answer) => error ? fail(error) : done(answer)));
const request = values => ({model_name: "twice", inputs: [{name: "x", datatype: "FP32", shape: [1, 2]}],
  raw_input_contents: [Buffer.from(new Float32Array(values).buffer)]});
const floats = answer => { const b = answer.raw_output_contents[0]; return [b.readFloatLE(0), b.readFloatLE(4)]; };
async function main() {
  const typed = request([]);
  typed.raw_input_contents = [];
  typed.inputs[0].contents = {fp32_contents: [3, 4]};
  const stream = client.ModelStreamInfer(), streamed = [];
  const ended = new Promise(done => stream.on("data", m => streamed.push(floats(m.infer_response))).on("end", done));
  for (const value of [1, 2, 3]) stream.write(request([value, value]));
  stream.end();
  await ended;
  const unknown = await call(client, "ModelMetadata", {name: "none"}).catch(error => error.code);
  console.log(JSON.stringify({
    raw: floats(await call(client, "ModelInfer", request([1, 2]))),
    typed: floats(await call(client, "ModelInfer", typed)),
    streamed, unknown,
    health: (await call(checker, "Check", {service: "twice"})).status,
  }));
  client.close(); checker.close();
}
main().catch(error => { console.error(error); process.exit(1); });
"""


def test_grpclib_talks_to_the_server(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    rows = np.arange(4, dtype=np.float32).reshape(2, 2)

    async def talk(port: int) -> tuple[bytes, bytes, int, GrpclibStatus]:
        channel = grpclib.client.Channel("127.0.0.1", port)
        predict = grpclib.client.UnaryUnaryMethod(
            channel, "/fitserve.inference.v1.InferenceService/Predict", pb.PredictRequest, pb.PredictResponse
        )
        stream = grpclib.client.StreamStreamMethod(
            channel,
            "/inference.GRPCInferenceService/ModelStreamInfer",
            oip.ModelInferRequest,
            oip.ModelStreamInferResponse,
        )
        watch = grpclib.client.UnaryStreamMethod(
            channel, "/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        )
        tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=[2, 2], content=rows.tobytes())
        request = pb.PredictRequest(model=tensor_pb2.ModelSpec(name="twice"), inputs=[tensor])
        answer = await predict(request, timeout=WAIT_S)
        infer = oip.ModelInferRequest(model_name="twice", raw_input_contents=[rows.tobytes()])
        infer.inputs.add(name="x", datatype="FP32", shape=[2, 2])
        (streamed,) = await stream([infer], timeout=WAIT_S)
        async with watch.open(timeout=WAIT_S) as watching:
            await watching.send_message(health_pb2.HealthCheckRequest(service="twice"), end=True)
            status = await watching.recv_message()
            assert status is not None
            await watching.cancel()
        request.model.name = "none"
        with pytest.raises(GRPCError) as caught:
            await predict(request, timeout=WAIT_S)
        channel.close()
        raw = streamed.infer_response.raw_output_contents[0]
        return answer.outputs[0].content, raw, status.status, caught.value.status

    with serving(tmp_path) as server:
        predicted, streamed, health, status = asyncio.run(talk(server.port))
    assert predicted == streamed == (2 * rows).tobytes()
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert status is GrpclibStatus.NOT_FOUND


@pytest.mark.needs_program("node")
@pytest.mark.needs_program("npm")
def test_grpc_js_talks_to_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *GRPC_JS]
    try:
        installed = subprocess.run(install, cwd=folder, capture_output=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("needs_program(node): npm did not bring @grpc/grpc-js within 90 s")
    if installed.returncode != 0:
        pytest.skip("needs_program(node): npm cannot install @grpc/grpc-js here")
    (folder / "client.js").write_text(SCRIPT)
    repository = tmp_path / "repository"
    builders.bare_version(repository, "twice", 1, builders.scaled())
    with serving(repository) as server:
        command = ["node", "client.js", url(server), str(PROTOS)]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "raw": [2, 4],
        "typed": [6, 8],
        "streamed": [[2, 2], [4, 4], [6, 6]],
        "unknown": 5,
        "health": 1,
    }


@pytest.mark.needs_program("perf_analyzer")
def test_perf_analyzer_measures_the_server(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    with serving(tmp_path) as server:
        command = [shutil.which("perf_analyzer") or "", "-m", "twice", "-i", "grpc", "-u", url(server), "-b", "4"]
        limits = ["--measurement-mode", "count_windows", "--measurement-request-count", "50", "-s", "100"]
        ran = subprocess.run([*command, *limits], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Throughput" in ran.stdout
