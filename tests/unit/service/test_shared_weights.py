"""Sessions that share their weights answer bit for bit as the model does, and leave nothing behind."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from fitserve_contract.onnx_file import read_facts
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.session import Session, SessionError, SessionOptions
from fitserve_service.shared_weights import SharedWeights
from fitserve_service.warmup import answers_alike, made_up_inputs
from fitserve_service.weight_files import OwnedFolder

WIDTH = 512


def layers(seed: int = 0) -> bytes:
    """x FP32 (B, WIDTH) -> y, two matrix products with GELU between; and an embedding that is only looked up."""
    random = np.random.default_rng(seed)
    weights = {name: random.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in ("a", "b")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "b"], ["y"]),
    ]
    return builders.model(nodes, [builders.value("x", ("B", WIDTH))], [builders.value("y", ("B", WIDTH))], weights)


def convolution() -> bytes:
    """x FP32 (B, 3, 16, 16) -> y (B, 64, 14, 14): what the runtime lays out by blocks of channels."""
    kernel = np.random.default_rng(0).standard_normal((64, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    shapes = [builders.value("x", ("B", 3, 16, 16))], [builders.value("y", ("B", 64, 14, 14))]
    return builders.model(nodes, *shapes, {"w": kernel})


def quantized() -> bytes:
    """x FP32 (B, WIDTH) -> y: a product of integers."""
    weights = np.random.default_rng(0).integers(-100, 100, (WIDTH, WIDTH)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["y"]),
    ]
    shapes = [builders.value("x", ("B", WIDTH))], [builders.value("y", ("B", WIDTH))]
    return builders.model(nodes, *shapes, {"w": weights})


def random_noise() -> bytes:
    """x FP32 (B, WIDTH) -> y: other values at every run."""
    weights = np.ones((WIDTH, WIDTH), np.float32)
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
    ]
    return builders.model(
        nodes, [builders.value("x", ("B", WIDTH))], [builders.value("y", ("B", WIDTH))], {"w": weights}
    )


def shared(owned: OwnedFolder, model: bytes, threads: int = 1, external: dict[str, bytes] | None = None) -> Session:
    options = SessionOptions("cpu", threads)
    return SharedWeights(owned.path, min_bytes=0).open_session(model, read_facts(model), options, external or {})


def plain(model: bytes, external: dict[str, bytes] | None = None) -> Session:
    return Session(model, read_facts(model), SessionOptions("cpu"), external)


def copies(owned: OwnedFolder) -> list[Path]:
    return [path for path in owned.path.iterdir() if path.is_dir()]


def mapped(owned: OwnedFolder) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(owned.path) in line]


def settle() -> None:
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("remove-"):
            thread.join()


@pytest.mark.parametrize("model", [layers(), convolution(), quantized(), builders.linear(), builders.default_input()])
@pytest.mark.parametrize("rows", [1, 5])
def test_answers_are_the_same_bit_for_bit(tmp_path: Path, model: bytes, rows: int) -> None:
    owned = OwnedFolder(tmp_path)
    own, first, second = plain(model), shared(owned, model), shared(owned, model, threads=2)
    assert (first.inputs, first.outputs) == (own.inputs, own.outputs)
    assert len(copies(owned)) == 1
    inputs = made_up_inputs(own.inputs, rows, 1)
    names = [spec.name for spec in own.outputs]
    expected = own.run(inputs, names)
    for session in (first, second):
        found = session.run(inputs, names)
        assert {name: tensor.array.tobytes() for name, tensor in found.items()} == {
            name: tensor.array.tobytes() for name, tensor in expected.items()
        }
    owned.close()


def test_weights_are_mapped_and_packed_ones_too(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    session = shared(owned, layers())
    # Two products of WIDTH x WIDTH: nothing of them is a session's own.
    sizes = [int(end, 16) - int(begin, 16) for begin, end in (line.split()[0].split("-") for line in mapped(owned))]
    assert sum(sizes) >= 2 * WIDTH * WIDTH * 4
    assert all(line.split()[1] == "rw-p" for line in mapped(owned)), "what one writes must not reach the others"
    assert session.provider == "CPUExecutionProvider"
    owned.close()


def test_a_copy_goes_with_its_last_session(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    first, second = shared(owned, layers()), shared(owned, layers())
    other = shared(owned, layers(seed=1))
    assert len(copies(owned)) == 2
    del first
    settle()
    assert len(copies(owned)) == 2
    del second
    settle()
    assert len(copies(owned)) == 1
    del other
    settle()
    assert copies(owned) == []
    assert mapped(owned) == []
    owned.close()


def test_external_data_goes_into_the_copy(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    model, files = builders.external("weights.bin", 64), {"weights.bin": builders.external_content(64)}
    own, session = plain(model, files), shared(owned, model, external=files)
    assert len(copies(owned)) == 1
    assert answers_alike(own, session)
    with pytest.raises(SessionError, match=r"expected file 'weights\.bin', found none"):
        shared(owned, model)
    owned.close()


def test_a_model_that_never_answers_alike_has_weights_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owned = OwnedFolder(tmp_path)
    with caplog.at_level(logging.WARNING):
        session = shared(owned, random_noise())
    assert "does not answer as the model does" in caplog.text
    assert copies(owned) == []
    assert session.run(made_up_inputs(session.inputs, 2, 1), ["y"])["y"].array.shape == (2, WIDTH)
    owned.close()


def test_without_a_folder_there_are_weights_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    owned = OwnedFolder(tmp_path)
    owned.path.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        session = shared(owned, layers())
    assert "weights are not shared between workers: folder" in caplog.text
    assert answers_alike(plain(layers()), session)
    owned.close()


def test_a_broken_model_is_refused_in_the_words_of_the_plain_session(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path)
    model = builders.model([helper.make_node("Nothing", ["x"], ["y"])], [builders.value("x")], [builders.value("y")])
    with pytest.raises(SessionError) as expected:
        plain(model)
    with pytest.raises(SessionError) as found:
        shared(owned, model)
    assert str(found.value) == str(expected.value)
    assert copies(owned) == []
    owned.close()


@pytest.mark.parametrize(("least", "count"), [(1 << 20, 1), (64 << 20, 0)])
def test_the_loader_shares_what_is_large_enough(tmp_path: Path, least: int, count: int) -> None:
    owned = OwnedFolder(tmp_path)
    path = builders.bare_version(tmp_path / "repository", "m", 1, layers())
    served = Loader("cpu", weights=SharedWeights(owned.path, least)).load(path, Overrides({}))
    assert len(copies(owned)) == count
    own: Any = Loader("cpu").load(path, Overrides({}))
    assert answers_alike(own.session, served.session)
    assert served.config == own.config
    del served
    settle()
    assert copies(owned) == []
    owned.close()
