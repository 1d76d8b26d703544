"""The code on a model card, copied from the page as a reader does, against a live server."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest
from google.protobuf import json_format
from onnx import helper
from tests import builders
from tests.wire.serving import WAIT_S, connected, serving, url

from fitserve.inference.v1 import inference_pb2
from fitserve_contract.manifest import Manifest, TensorSpec
from fitserve_contract.repository import CARD_FILE, MODEL_FILE, publish, publishing
from fitserve_exporters.card import model_card
from fitserve_exporters.card_calls import SERVER
from fitserve_service.server import Server

PREDICT = "/fitserve.inference.v1.InferenceService/Predict"

DATATYPES = [("FP32", "FP16", "BF16", "INT64", "UINT8", "BOOL"), ("BYTES", "FP64")]
"""Two models: ONNX Runtime for Python takes no BYTES beside BF16."""

ODD_NAME = "a \"b\" 'c' $(id) `id` <b> \\ \u00e9"


class Blocks(HTMLParser):
    """Reads the text of every <pre>."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._is_inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag == "pre":
            self._is_inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = self._is_inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            self.found[-1] += data


def identities(datatypes: tuple[str, ...]) -> tuple[bytes, Manifest]:
    """A model with an input of each datatype and an odd name, each given back."""
    names = {datatype: f"{datatype} {ODD_NAME}" for datatype in datatypes}
    tensors = {name: builders.ELEMENT_TYPES[datatype] for datatype, name in names.items()}
    nodes = [helper.make_node("Identity", [name], [f"out {name}"]) for name in tensors]
    inputs = [builders.value(name, ("B", 3), kind) for name, kind in tensors.items()]
    outputs = [builders.value(f"out {name}", ("B", 3), kind) for name, kind in tensors.items()]
    content = builders.model(nodes, inputs, outputs)
    onnx.checker.check_model(onnx.load_model_from_string(content))
    specs = [TensorSpec(name, datatype, ("B", 3)) for datatype, name in names.items()]
    given_back = [TensorSpec(f"out {spec.name}", spec.datatype, spec.shape) for spec in specs]
    return content, Manifest("odd", "2026-01-01T00:00:00Z", tuple(specs), tuple(given_back))


def published(root: Path, datatypes: tuple[str, ...]) -> list[str]:
    """Publishes the model with its card; gives the code on the card."""
    content, manifest = identities(datatypes)
    card = model_card(manifest)
    with publishing(root, manifest.model) as aside:
        (aside / MODEL_FILE).write_bytes(content)
        (aside / CARD_FILE).write_bytes(card)
        publish(root, manifest.model, aside)
    return Blocks(card.decode()).found


def printed(code: str, server: Server) -> str:
    assert SERVER in code
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(compile(code.replace(SERVER, url(server)), "card", "exec"), {})
    return text.getvalue()


@pytest.mark.parametrize("datatypes", DATATYPES)
def test_python_on_the_card_runs_as_it_stands(tmp_path: Path, datatypes: tuple[str, ...]) -> None:
    ours, triton, _ = published(tmp_path, datatypes)
    expected = "".join(f"out {datatype} {ODD_NAME} (1, 3)\n" for datatype in datatypes)
    with serving(tmp_path) as server:
        assert printed(ours, server) == f"version 1\n{expected}"
        assert printed(triton, server) == expected


@pytest.mark.parametrize("datatypes", DATATYPES)
def test_request_that_the_shell_makes_is_answered(tmp_path: Path, datatypes: tuple[str, ...]) -> None:
    command = published(tmp_path, datatypes)[2]
    written = subprocess.run(
        ["sh", "-c", f"grpcurl() {{ cat; }}\n{command}"], capture_output=True, text=True, check=True, timeout=WAIT_S
    )
    request = json_format.Parse(written.stdout, inference_pb2.PredictRequest())
    with serving(tmp_path) as server, connected(server) as channel:
        content = channel.unary_unary(PREDICT)(request.SerializeToString(), timeout=WAIT_S)
    response = inference_pb2.PredictResponse.FromString(content)
    assert [tensor.name for tensor in response.outputs] == [f"out {name} {ODD_NAME}" for name in datatypes]
    assert [list(tensor.shape) for tensor in response.outputs] == [[1, 3]] * len(datatypes)


@pytest.mark.needs_program("grpcurl")
@pytest.mark.parametrize("datatypes", DATATYPES)
def test_grpcurl_on_the_card_runs_as_it_stands(tmp_path: Path, datatypes: tuple[str, ...]) -> None:
    assert shutil.which("grpcurl")
    command = published(tmp_path, datatypes)[2]
    with serving(tmp_path) as server:
        done = subprocess.run(
            ["sh", "-c", command.replace(SERVER, url(server))],
            capture_output=True, text=True, check=True, timeout=WAIT_S,
        )  # fmt: skip
    response = json_format.Parse(done.stdout, inference_pb2.PredictResponse())
    assert [tensor.name for tensor in response.outputs] == [f"out {name} {ODD_NAME}" for name in datatypes]
