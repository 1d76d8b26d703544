"""After a swap of files behind a name and a number no API answers with anything of the old file: one suite of swaps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import helper
from tests import builders
from tests.wire.serving import WAIT_S, connected, serving, tensor

from fitserve.control.v1 import control_pb2, control_pb2_grpc
from fitserve.inference.v1 import inference_pb2, inference_pb2_grpc
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.repository import MANIFEST_FILE, MODEL_FILE, publish, publishing
from fitserve_oip import inference_pb2 as oip
from fitserve_service.server import Server

pytestmark = pytest.mark.parametrize("transport", ["fast", pytest.param("stock", marks=pytest.mark.slow)])

METHODS = "/inference.GRPCInferenceService"
ROWS = np.array([[1, 2]], np.float32)
LEARNT = 4
"""So often a kind of request comes until its answers are written by template."""

TOGETHER = 48


@dataclass(frozen=True)
class Form:
    """What a file answers: each output's name, datatype and factor, in order; and the names of its classes."""

    outputs: tuple[tuple[str, str, float], ...]
    classes: tuple[str, ...] = ()

    def model(self) -> bytes:
        nodes, weights = [], {}
        for name, datatype, factor in self.outputs:
            nodes.append(helper.make_node("Mul", ["x", f"{name}-factor"], [f"{name}-product"]))
            kind = builders.ELEMENT_TYPES[datatype]
            nodes.append(helper.make_node("Cast", [f"{name}-product"], [name], to=kind))
            weights[f"{name}-factor"] = np.array(factor, np.float32)
        outputs = [builders.value(n, element_type=builders.ELEMENT_TYPES[d]) for n, d, _ in self.outputs]
        return builders.model(nodes, [builders.value("x")], outputs, weights)

    def answer(self, rows: np.ndarray[Any, Any] = ROWS) -> list[tuple[str, str, list[list[float]]]]:
        return [(name, datatype, (rows * factor).tolist()) for name, datatype, factor in self.outputs]

    def publish(self, root: Path, model: str, modified_ns: int | None = None) -> None:
        """Publishes it, in one step, as version 1: with a manifest where it has classes, else as a bare file."""
        with publishing(root, model) as aside:
            (aside / MODEL_FILE).write_bytes(self.model())
            if modified_ns is not None:
                os.utime(aside / MODEL_FILE, ns=(modified_ns, modified_ns))
            if not self.classes:
                aside.rename(root / model / "1")
                return
            task = replace(builders.classes_task(self.outputs[0][0]), class_names=self.classes)
            (aside / MANIFEST_FILE).write_bytes(builders.manifest(model, task).to_bytes())
            publish(root, model, aside)


FIRST = Form((("spam", "FP32", 1.0), ("ham", "FP32", 100.0)), ("cat", "dog"))
FORMS = {
    "other order": Form((("ham", "FP32", 100.0), ("spam", "FP32", 1.0)), ("cat", "dog")),
    "other numbers": Form((("spam", "FP32", 3.0), ("ham", "FP32", 7.0)), ("cat", "dog")),
    "other datatypes": Form((("spam", "INT32", 1.0), ("ham", "FP64", 100.0)), ("cat", "dog")),
    "other classes": Form(FIRST.outputs, ("dog", "cat")),
    "fewer outputs": Form((("ham", "FP32", 5.0),)),
    "more outputs": Form((("a", "FP32", 1.0), ("b", "INT8", 2.0), ("c", "FP32", 4.0)), ("x", "y")),
}


class Caller:
    """Everything that a caller can ask of one server."""

    def __init__(self, server: Server, channel: Any) -> None:
        self.server = server
        self.channel = channel
        self.control = control_pb2_grpc.ModelControlServiceStub(channel)  # type: ignore[no-untyped-call]
        self.native = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]

    def oip(self, method: str, request: Any) -> Any:
        call = self.channel.unary_unary(
            f"{METHODS}/{method}", type(request).SerializeToString, getattr(oip, f"{method}Response").FromString
        )
        return call(request, timeout=WAIT_S)

    def load(self, model: str) -> None:
        self.oip("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=model))

    def unload(self, model: str) -> None:
        self.oip("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=model))

    def infer(self, model: str, request_id: str = "", rows: np.ndarray[Any, Any] = ROWS) -> Any:
        return self.oip("ModelInfer", infer_request(model, request_id, rows))

    def streamed(self, model: str) -> Any:
        call = self.channel.stream_stream(
            f"{METHODS}/ModelStreamInfer",
            oip.ModelInferRequest.SerializeToString,
            oip.ModelStreamInferResponse.FromString,
        )
        (answer,) = call(iter([infer_request(model, "streamed")]), timeout=WAIT_S)
        return answer.infer_response

    def predict(self, model: str) -> Any:
        spec = tensor_pb2.ModelSpec(name=model)
        request = inference_pb2.PredictRequest(model=spec, inputs=[tensor("x", ROWS)])
        return self.native.Predict(request, timeout=WAIT_S)

    def details(self, model: str) -> Any:
        spec = tensor_pb2.ModelSpec(name=model, version=1)
        return self.control.GetModelVersion(control_pb2.GetModelVersionRequest(model=spec), timeout=WAIT_S)

    def count(self, model: str) -> int:
        found = self.oip("ModelStatistics", oip.ModelStatisticsRequest(name=model, version="1"))
        return int(found.model_stats[0].inference_count)

    def row(self, model: str) -> dict[str, Any]:
        """What the status page shows of a version."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.metrics_port}/status.json", timeout=WAIT_S) as page:
            models = {entry["name"]: entry for entry in json.load(page)["models"]}
        found: dict[str, Any] = models[model]["versions"][0]
        return found

    def warm(self, model: str) -> None:
        """Has every kind of request known, those with ids too."""
        for number in range(LEARNT):
            self.infer(model)
            self.infer(model, f"id-{number}")
            self.predict(model)
            self.streamed(model)

    def check(self, model: str, form: Form, *, is_new: bool = True) -> None:
        """Asks everything, more than once, and expects what the file answers and nothing else."""
        if is_new:
            assert self.count(model) == 0
            assert self.row(model)["activity"]["request_count"] == 0
        for number in range(LEARNT):
            assert oip_answer(self.infer(model)) == form.answer()
            named = self.infer(model, f"id-{number}")
            assert (named.id, named.model_name, named.model_version) == (f"id-{number}", model, "1")
            assert oip_answer(named) == form.answer()
            assert oip_answer(self.streamed(model)) == form.answer()
            predicted = self.predict(model)
            assert (predicted.model_name, predicted.model_version) == (model, 1)
            assert native_answer(predicted) == form.answer()
        self.check_together(model, form)
        names = [(name, datatype) for name, datatype, _ in form.outputs]
        metadata = self.oip("ModelMetadata", oip.ModelMetadataRequest(name=model))
        assert [(spec.name, spec.datatype) for spec in metadata.outputs] == names
        config = self.oip("ModelConfig", oip.ModelConfigRequest(name=model)).config
        assert [spec.name for spec in config.output] == [name for name, _ in names]
        details = self.details(model)
        assert [(spec.name, spec.datatype) for spec in details.outputs] == names
        assert tuple(details.class_names) == form.classes
        answered = 4 * LEARNT + TOGETHER
        if is_new:
            assert self.count(model) == answered
            assert self.row(model)["activity"]["request_count"] == answered
        assert self.row(model)["task"] == ("classification" if form.classes else "")

    def check_together(self, model: str, form: Form) -> None:
        with ThreadPoolExecutor(8) as pool:
            rows = [np.array([[number, number + 0.0]], np.float32) for number in range(TOGETHER)]
            found = list(pool.map(lambda each: self.infer(model, rows=each), rows))
        assert [oip_answer(each) for each in found] == [form.answer(each) for each in rows]


def infer_request(model: str, request_id: str, rows: np.ndarray[Any, Any] = ROWS) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    return request


def oip_answer(response: Any) -> list[tuple[str, str, list[list[float]]]]:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return [
        (each.name, each.datatype, np.frombuffer(raw, NUMPY_DTYPES[each.datatype]).reshape(list(each.shape)).tolist())
        for each, raw in pairs
    ]


def native_answer(response: Any) -> list[tuple[str, str, list[list[float]]]]:
    return [
        (t.name, t.datatype, tensor_bytes.decode(t.name, t.datatype, tuple(t.shape), t.content).tolist())
        for t in response.outputs
    ]


@contextmanager
def calling(root: Path, transport: str, **changes: Any) -> Iterator[Caller]:
    with serving(root, transport=transport, metrics_port=0, **changes) as server, connected(server) as channel:
        yield Caller(server, channel)


def until(is_so: Callable[[], bool]) -> None:
    """Asks again and again: the server looks at its repository when it does."""
    for _ in range(int(WAIT_S * 1e3)):
        if is_so():
            return
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_a_file_that_was_replaced_between_unload_and_load(tmp_path: Path, transport: str, form: Form) -> None:
    FIRST.publish(tmp_path, "m")
    with calling(tmp_path, transport) as caller:
        caller.warm("m")
        caller.unload("m")
        shutil.rmtree(tmp_path / "m" / "1")
        form.publish(tmp_path, "m")
        caller.load("m")
        caller.check("m", form)


def test_a_version_of_a_number_that_was_deleted(tmp_path: Path, transport: str) -> None:
    FIRST.publish(tmp_path, "m")
    others = [*FORMS.values(), FIRST]
    with calling(tmp_path, transport) as caller:
        caller.check("m", FIRST)
        for form in others:
            modified_ns = (tmp_path / "m" / "1" / MODEL_FILE).stat().st_mtime_ns
            shutil.rmtree(tmp_path / "m")
            until(lambda: not caller.control.ListModels(control_pb2.ListModelsRequest(), timeout=WAIT_S).models)
            form.publish(tmp_path, "m", modified_ns)
            request = oip.ModelReadyRequest(name="m")
            until(lambda request=request: caller.oip("ModelReady", request).ready)  # type: ignore[misc]
            caller.check("m", form)


def test_two_models_whose_folders_were_swapped(tmp_path: Path, transport: str) -> None:
    forms = {"a": FORMS["other order"], "b": FORMS["other datatypes"]}
    for name, form in forms.items():
        form.publish(tmp_path, name)
    with calling(tmp_path, transport) as caller:
        for _ in range(2):
            for name, form in forms.items():
                caller.check(name, form)
                caller.unload(name)
            (tmp_path / "a").rename(tmp_path / ".aside")
            (tmp_path / "b").rename(tmp_path / "a")
            (tmp_path / ".aside").rename(tmp_path / "b")
            forms = {"a": forms["b"], "b": forms["a"]}
            for name in forms:
                caller.load(name)
        for name, form in forms.items():
            caller.check(name, form)


def test_models_whose_folders_were_swapped_while_they_serve(tmp_path: Path, transport: str) -> None:
    forms = {"a": FORMS["other order"], "b": FORMS["other datatypes"]}
    for name, form in forms.items():
        form.publish(tmp_path, name)
    with calling(tmp_path, transport) as caller:
        for turn in range(2):
            for name, form in forms.items():
                caller.check(name, form, is_new=turn == 0)
            (tmp_path / "a" / "1").rename(tmp_path / "a" / ".aside")
            (tmp_path / "b" / "1").rename(tmp_path / "a" / "1")
            (tmp_path / "a" / ".aside").rename(tmp_path / "b" / "1")
            forms = {"a": forms["b"], "b": forms["a"]}
            for name, form in forms.items():
                until(lambda name=name, form=form: oip_answer(caller.infer(name)) == form.answer())  # type: ignore[misc]
                caller.check(name, form, is_new=False)


def test_a_version_that_was_made_anew_between_two_looks(tmp_path: Path, transport: str) -> None:
    FIRST.publish(tmp_path, "m")
    with calling(tmp_path, transport, poll_interval_s=600.0) as caller:
        caller.check("m", FIRST)
        for form in FORMS.values():
            shutil.rmtree(tmp_path / "m")
            form.publish(tmp_path, "m")
            # The repository is not looked at, but for the call.
            caller.load("m")
            caller.check("m", form)


def test_a_variant_that_was_chosen_anew(tmp_path: Path, transport: str) -> None:
    plain, variant = FORMS["other numbers"], FORMS["other order"]
    with publishing(tmp_path, "m") as aside:
        facts = {"variant": "small", "device": "cpu", "speed": [{"ratio": 2.0}], "verification": {}}
        task = replace(builders.classes_task("spam"), class_names=plain.classes)
        described = replace(builders.manifest("m", task), files={"model.small.onnx": facts})
        (aside / MODEL_FILE).write_bytes(plain.model())
        (aside / "model.small.onnx").write_bytes(variant.model())
        (aside / MANIFEST_FILE).write_bytes(described.to_bytes())
        publish(tmp_path, "m", aside)
    settings = tmp_path / "m" / "model.toml"
    settings.write_text('variant = "fp32"\n')
    with calling(tmp_path, transport) as caller:
        for name, form in (("small", variant), ("fp32", plain), ("small", variant)):
            caller.unload("m")
            settings.write_text(f'variant = "{name}"\n')
            caller.load("m")
            caller.check("m", form)
            assert f'variant = "{name}"' in caller.details("m").effective_config_toml


def test_a_label_that_moves_between_versions_of_other_forms(tmp_path: Path, transport: str) -> None:
    forms = {1: FORMS["other order"], 2: FORMS["other datatypes"]}
    for number, form in forms.items():
        builders.bare_version(tmp_path, "m", number, form.model())
    (tmp_path / "m" / "model.toml").write_text("keep_versions = 2\n")
    with calling(tmp_path, transport) as caller:
        for before, number in pairwise((0, 1, 2, 1, 2)):
            moved = control_pb2.SetLabelRequest(model="m", label="stable", version=number, expected_version=before)
            caller.control.SetLabel(moved, timeout=WAIT_S)
            for _ in range(LEARNT):
                answer = caller.infer("m")
                assert (answer.model_version, oip_answer(answer)) == (str(number), forms[number].answer())
                predicted = caller.predict("m")
                assert (predicted.model_version, native_answer(predicted)) == (number, forms[number].answer())
            caller.check_together("m", forms[number])


def test_requests_in_flight_are_answered_by_one_file_or_the_other(tmp_path: Path, transport: str) -> None:
    forms = [FORMS["other order"], FORMS["other datatypes"]]
    forms[0].publish(tmp_path, "m")
    is_over = False

    def keep_asking(caller: Caller) -> list[Any]:
        found = []
        while not is_over:
            # Between unload and load nobody answers, and that is told.
            with contextlib.suppress(grpc.RpcError):
                found.append(oip_answer(caller.infer("m")))
        return found

    with calling(tmp_path, transport) as caller, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(keep_asking, caller) for _ in range(8)]
        try:
            for turn in range(1, 9):
                caller.unload("m")
                shutil.rmtree(tmp_path / "m" / "1")
                forms[turn % 2].publish(tmp_path, "m")
                caller.load("m")
                assert oip_answer(caller.infer("m")) == forms[turn % 2].answer()
        finally:
            is_over = True
        found = [answer for each in asked for answer in each.result()]
    assert len(found) > 16
    assert all(answer in [form.answer() for form in forms] for answer in found)
