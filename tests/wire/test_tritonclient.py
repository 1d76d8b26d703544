"""Unmodified tritonclient against the server: sync, aio, stream, callbacks, and every datatype."""

from __future__ import annotations

import asyncio
import queue
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tests import builders
from tests.wire.serving import WAIT_S, serving, url
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from fitserve_contract.tensor_bytes import encode

SPECIAL_FLOATS = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.5]

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "FP16": SPECIAL_FLOATS,
    "BF16": [0.0, -0.0, np.inf, -np.inf, 1.5, -2.0],
    "FP32": SPECIAL_FLOATS,
    "FP64": SPECIAL_FLOATS,
    "BYTES": ["", "ä", "line\nbreak", "x" * 1000],
}


def elements(datatype: str) -> list[Any]:
    if datatype in VALUES:
        return VALUES[datatype]
    bounds = np.iinfo(triton_to_np_dtype(datatype))
    return [int(bounds.min), int(bounds.max), 0, 1]


def array_of(datatype: str) -> Any:
    """(B, 2) of the datatype's edge values."""
    dtypes = {"BYTES": np.object_, "BF16": ml_dtypes.bfloat16}
    return np.array(elements(datatype), dtype=dtypes.get(datatype) or triton_to_np_dtype(datatype)).reshape(-1, 2)


def infer_input(name: str, array: Any, datatype: str | None = None) -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def same_bits(left: Any, right: Any) -> bool:
    return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())


@pytest.mark.parametrize("datatype", sorted(builders.ELEMENT_TYPES))
def test_every_datatype_survives_raw(tmp_path: Path, datatype: str) -> None:
    builders.bare_version(tmp_path, "same", 1, builders.identity(datatype))
    sent = array_of(datatype)
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        result = client.infer("same", [infer_input("x", sent, datatype)], client_timeout=WAIT_S)
        got = result.as_numpy("y")
        if datatype == "BYTES":
            assert [element.decode() for element in got.reshape(-1)] == sent.reshape(-1).tolist()
        else:
            assert same_bits(got, sent)
        assert result.get_output("y").datatype == datatype
        assert client.get_model_metadata("same").inputs[0].datatype == datatype


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (2, 3, 1)])
def test_scalars_and_tensors_without_elements_survive(tmp_path: Path, shape: tuple[int, ...]) -> None:
    builders.bare_version(tmp_path, "any", 1, builders.identity(shape=None))
    sent = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        got = client.infer("any", [infer_input("x", sent)], client_timeout=WAIT_S).as_numpy("y")
        assert same_bits(got.reshape(shape), sent)


def test_the_answer_names_model_version_and_id_and_brings_what_was_asked_for(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "pair", 7, builders.two_in_two_out())
    a, b = np.ones((3, 2), np.float32), np.full((3, 2), 4, np.float32)
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        wanted = [triton.InferRequestedOutput("difference")]
        inputs = [infer_input("b", b), infer_input("a", a)]
        result = client.infer("pair", inputs, model_version="7", outputs=wanted, request_id="r1", timeout=20_000_000)
        response = result.get_response()
        assert (response.model_name, response.model_version, response.id) == ("pair", "7", "r1")
        assert [output.name for output in response.outputs] == ["difference"]
        assert (result.as_numpy("difference") == -3).all()


def test_callbacks_and_futures_are_answered(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled(2.0))
    answers: queue.Queue[Any] = queue.Queue()
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        for value in range(20):
            sent = np.full((1, 2), value, np.float32)
            client.async_infer(
                "twice",
                [infer_input("x", sent)],
                callback=lambda result, error, value=value: answers.put((value, result, error)),
            )
        for _ in range(20):
            value, result, error = answers.get(timeout=WAIT_S)
            assert error is None
            assert (result.as_numpy("y") == 2 * value).all()


def test_a_stream_is_answered_in_order_and_goes_on_after_an_error(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled(2.0))
    answers: queue.Queue[Any] = queue.Queue()
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for index in range(12):
            model = "none" if index == 5 else "twice"
            sent = np.full((1, 2), index, np.float32)
            client.async_stream_infer(
                model, [infer_input("x", sent)], request_id=str(index), enable_empty_final_response=index == 3
            )
        got = [answers.get(timeout=WAIT_S) for _ in range(12)]
        client.stop_stream()
    for index, (result, error) in enumerate(got):
        if index == 5:
            assert isinstance(error, InferenceServerException)
            assert "model 'none'" in str(error)
            continue
        assert error is None
        response = result.get_response()
        assert response.id == str(index)
        assert (result.as_numpy("y") == 2 * index).all()
        assert ("triton_final_response" in response.parameters) == (index == 3)
    assert got[3][0].get_response().parameters["triton_final_response"].bool_param


def test_the_aio_client_infers_and_streams(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled(2.0))

    async def requests() -> Any:
        for index in range(5):
            yield {"model_name": "twice", "inputs": [infer_input("x", np.full((1, 2), index, np.float32))]}

    async def talk(address: str) -> tuple[list[Any], list[Any]]:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            sent = [np.full((2, 2), index, np.float32) for index in range(8)]
            unary = await asyncio.gather(*(client.infer("twice", [infer_input("x", array)]) for array in sent))
            streamed = [pair async for pair in client.stream_infer(requests())]
        return list(unary), streamed

    with serving(tmp_path) as server:
        unary, streamed = asyncio.run(talk(url(server)))
    assert [result.as_numpy("y")[0, 0] for result in unary] == [2.0 * index for index in range(8)]
    assert [error for _, error in streamed] == [None] * 5
    assert [result.as_numpy("y")[0, 0] for result, _ in streamed] == [2.0 * index for index in range(5)]


def test_the_server_and_its_models_describe_themselves(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    builders.bare_version(tmp_path, "fixed", 3, builders.fixed_shape())
    (tmp_path / "fixed" / "model.toml").write_text("parallel_runs = 3\n")
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("twice")
        assert client.is_model_ready("fixed", "3")
        assert not client.is_model_ready("fixed", "1")
        assert not client.is_model_ready("none")
        about = client.get_server_metadata()
        assert about.name == "fitserve"
        assert list(about.extensions) == ["model_repository", "model_configuration", "statistics"]
        metadata = client.get_model_metadata("twice")
        assert (metadata.platform, list(metadata.versions)) == ("onnxruntime_onnx", ["1"])
        assert list(metadata.inputs[0].shape) == [-1, 2]
        config = client.get_model_config("twice", as_json=True)["config"]
        assert config["max_batch_size"] == 256
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}]
        assert config["parameters"]["execution_provider"]["string_value"] == "CPUExecutionProvider"
        assert "dynamic_batching" in config
        fixed = client.get_model_config("fixed").config
        assert (fixed.max_batch_size, list(fixed.input[0].dims)) == (0, [2, 3])
        assert not fixed.HasField("dynamic_batching")
        assert [group.count for group in fixed.instance_group] == [3]


def test_statistics_count_examples_and_runs(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        for _ in range(3):
            client.infer("twice", [infer_input("x", np.zeros((4, 2), np.float32))])
        (stats,) = client.get_inference_statistics("twice").model_stats
        assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("twice", "1", 12, 3)
        assert stats.inference_stats.success.count == 3
        assert stats.inference_stats.success.ns > 0
        assert stats.last_inference > 1_600_000_000_000
        assert [(batch.batch_size, batch.compute_infer.count) for batch in stats.batch_stats] == [(4, 3)]
        assert len(client.get_inference_statistics().model_stats) == 1


def test_the_repository_is_listed_unloaded_and_loaded(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "good", 1, builders.scaled())
    builders.bare_version(tmp_path, "good", 2, builders.scaled())
    builders.bare_version(tmp_path, "bad", 1, b"no model")
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        index = {(entry.name, entry.version): entry for entry in client.get_model_repository_index().models}
        assert index["good", "2"].state == "READY"
        assert index["good", "1"].state == "UNAVAILABLE"
        assert index["bad", "1"].state == "UNAVAILABLE"
        assert index["bad", "1"].reason
        client.unload_model("good")
        assert not client.is_model_ready("good")
        client.unload_model("none")
        client.load_model("good")
        assert client.is_model_ready("good", "2")
        with pytest.raises(InferenceServerException, match="bad"):
            client.load_model("bad")
        with pytest.raises(InferenceServerException, match="not in the repository"):
            client.load_model("none")
        with pytest.raises(InferenceServerException, match="parameter 'config'"):
            client.load_model("good", config="{}")
        with pytest.raises(InferenceServerException, match="parameter"):
            client.load_model("good", config="{}", files={"file:1/model.onnx": encode(np.zeros(1, np.uint8), "UINT8")})


def test_what_is_not_served_says_so(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    with serving(tmp_path) as server, triton.InferenceServerClient(url(server)) as client:
        sent = infer_input("x", np.zeros((1, 2), np.float32))
        with pytest.raises(InferenceServerException, match="'classification' is not served"):
            client.infer("twice", [sent], outputs=[triton.InferRequestedOutput("y", class_count=2)])
        sent.set_shared_memory("region", 8)
        with pytest.raises(InferenceServerException, match="'shared_memory_region' is not served"):
            client.infer("twice", [sent])
        for call in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
