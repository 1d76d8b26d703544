"""What is loaded: how it is served, what was inferred of it, and what is run before it is ready."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from loader_world import load, refusal
from onnx import helper

from fitserve_contract.onnx_file import OnnxFacts
from fitserve_contract.repository import checksum_text, checksums
from fitserve_service.loader import Loader
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.run_errors import DeviceMemoryError, GraphError
from fitserve_service.session import Session, SessionOptions
from fitserve_service.signature import Tensor


def test_a_published_version_brings_its_manifest_and_without_a_certificate_is_unverified(tmp_path: Path) -> None:
    served = load(builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task()))

    assert (served.model, served.version, served.provider) == ("m", 1, "CPUExecutionProvider")
    assert not served.is_verified
    assert (served.replay, served.held_out) == (None, None)
    assert served.manifest == builders.manifest("m", builders.classes_task())
    assert served.manifest_json == served.manifest.to_bytes()
    assert served.task == builders.classes_task()
    assert served.load_ms > 0


def test_a_foreign_file_is_served_as_unverified(tmp_path: Path) -> None:
    served = load(builders.bare_version(tmp_path, "m", 4, builders.scaled()))

    assert not served.is_verified
    assert (served.manifest, served.manifest_json, served.task) == (None, b"", None)


def test_a_manifest_without_checksums_proves_nothing(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    (path.folder / "manifest.json").write_bytes(builders.manifest("m").to_bytes())
    served = load(path)

    assert served.manifest == builders.manifest("m")
    assert not served.is_verified


def test_checksums_without_a_manifest_prove_nothing(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    (path.folder / "SHA256SUMS").write_text(checksum_text(checksums(path.folder)))

    assert not load(path).is_verified


def test_what_was_inferred_is_shown_with_its_reason(tmp_path: Path) -> None:
    joined = load(builders.bare_version(tmp_path, "joined", 1, builders.scaled()))
    mixing = load(builders.bare_version(tmp_path, "mixing", 1, builders.mean_over_batch()))
    fixed = load(builders.bare_version(tmp_path, "fixed", 1, builders.fixed_shape()))

    assert (joined.config.max_batch_size, joined.signature.has_batch_axis) == (256, True)
    assert joined.joining == "joinable"
    assert "joinable = true  # rows are proved independent, and were tried beside hostile ones" in joined.effective_toml
    assert (mixing.config.max_batch_size, mixing.signature.has_batch_axis) == (0, False)
    assert mixing.joining == "not joinable: node 'mean' (ReduceMean over axis 0)"
    assert "joinable = false  # node 'mean' (ReduceMean over axis 0)" in mixing.effective_toml
    assert (fixed.config.max_batch_size, fixed.signature.has_batch_axis) == (0, False)
    assert fixed.joining == "not joinable: input 'x' (2, 3): its first axis is fixed"


def test_what_model_toml_says_is_shown_as_such_and_can_be_read_back(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    served = load(path, max_batch_size=8, batch_size_buckets=(2, 8), intra_op_num_threads=2, device="cpu")

    expected = {"max_batch_size": 8, "batch_size_buckets": (2, 8), "intra_op_num_threads": 2, "parallel_runs": 1}
    assert served.config == ModelConfig(**expected, device="cpu", variant="fp32")
    for key in ("max_batch_size = 8", "batch_size_buckets = [2, 8]", 'device = "cpu"'):
        assert f"{key}  # model.toml\n" in served.effective_toml
    document = tomllib.loads(served.effective_toml)
    again = load(path, **{key: tuple(v) if isinstance(v, list) else v for key, v in document.items()})
    assert again.config == served.config


def test_a_hostile_tensor_name_stays_inside_its_comment(tmp_path: Path) -> None:
    hostile = 'y"\nmax_queued_examples = 1 #\x85\u2028'
    model = builders.model(
        [helper.make_node("CumSum", ["x", "axis"], [hostile])],
        [builders.value("x")],
        [builders.value(hostile)],
        {"axis": np.array(0)},
    )
    document = tomllib.loads(load(builders.bare_version(tmp_path, "m", 1, model)).effective_toml)

    assert (document["max_batch_size"], document["max_queued_examples"]) == (0, 1 << 20)


@pytest.mark.parametrize(
    ("model", "overrides", "text"),
    [
        (
            builders.fixed_shape(),
            {"max_batch_size": 8},
            "model.toml: max_batch_size: expected 0, got 8: input 'x' (2, 3) has no free first axis",
        ),
        (
            builders.identity(shape=()),
            {"max_batch_size": 8},
            "model.toml: max_batch_size: expected 0, got 8: input 'x' () has no free first axis",
        ),
        (
            builders.scaled(),
            {"max_batch_size": 4, "batch_size_buckets": (2, 8)},
            "model.toml: batch_size_buckets: expected sizes of at most max_batch_size, 4, got [2, 8]",
        ),
        (
            builders.mean_over_batch(),
            {"batch_size_buckets": (2,)},
            "model.toml: batch_size_buckets: expected none for a model that is not joinable: ",
        ),
    ],
)
def test_claims_that_the_model_cannot_keep_are_refused_at_load(
    tmp_path: Path, model: bytes, overrides: dict[str, object], text: str
) -> None:
    assert refusal(builders.bare_version(tmp_path, "m", 1, model), **overrides).startswith(text)


def test_a_model_that_mixes_rows_is_joined_where_model_toml_forces_it_alone(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.mean_over_batch())
    forced, bounded = load(path, joinable=True), load(path, max_batch_size=8)

    assert (forced.signature.has_batch_axis, forced.joining) == (True, "joinable")
    assert "joinable = true  # model.toml says so; not proved: node '" in forced.effective_toml
    assert (bounded.signature.has_batch_axis, bounded.signature.row_limit) == (False, 8)
    assert bounded.joining.startswith("not joinable: node '")


def test_requests_are_limited_where_model_toml_says_so_alone(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    assert load(path).signature.row_limit == 0
    assert load(path, max_batch_size=8).signature.row_limit == 8


def test_every_bucket_is_run_before_ready(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    served = load(path, batch_size_buckets=(3, 64, 200))

    assert set(served.costs._run_s[2]) == {3, 64, 200}


def test_a_model_that_refuses_made_up_values_is_served(tmp_path: Path) -> None:
    served = load(builders.bare_version(tmp_path, "m", 1, builders.gather(classes=1)))

    assert served.costs.expected_s(1, 1) == float("inf")
    assert "did not run on made-up inputs" in served.effective_toml


class Uncapturable:
    """Opens sessions, but for those whose runs are to be captured."""

    def open_session(self, model: bytes, facts: OnnxFacts, options: SessionOptions, external: Any) -> Session:
        if options.has_graphs:
            raise GraphError("runs cannot be captured as CUDA graphs: If has no kernel")
        return Session(model, facts, options, external)


def test_a_model_that_cannot_be_captured_as_a_graph_is_served_without_one_and_says_why(tmp_path: Path) -> None:
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    loader = Loader("cpu", weights=Uncapturable())  # type: ignore[arg-type]
    served = loader.load(path, Overrides({"batch_size_buckets": (1, 2)}))

    assert not served.config.cuda_graphs
    assert "cuda_graphs = false  # runs cannot be captured as CUDA graphs: If has no kernel" in served.effective_toml
    assert tomllib.loads(served.effective_toml)["cuda_graphs"] is False
    assert load(path).config.cuda_graphs


class Narrow(Session):
    """A session on a GPU that has memory for so many rows at once."""

    most = 4

    def keep(self, inputs: Mapping[str, Tensor]) -> None:
        if any(len(tensor.array) > self.most for tensor in inputs.values()):
            raise DeviceMemoryError("the GPU has no memory left for this run")


class OpensNarrow:
    def open_session(self, model: bytes, facts: OnnxFacts, options: SessionOptions, external: Any) -> Session:
        return Narrow(model, facts, options, external)


def test_buckets_that_do_not_fit_into_the_gpus_memory_are_refused_by_size_and_other_sizes_are_not(
    tmp_path: Path,
) -> None:
    path = builders.publish_version(tmp_path, "m", builders.scaled())
    loader = Loader("cpu", weights=OpensNarrow())  # type: ignore[arg-type]
    with pytest.raises(LoadError, match=r"^batch size 8: the GPU has no memory left"):
        loader.load(path, Overrides({"max_batch_size": 16, "batch_size_buckets": (2, 8, 16)}))
    served = loader.load(path, Overrides({}))
    assert served.costs.expected_s(4, 2) < float("inf")


def test_a_device_that_is_not_there_is_refused_whoever_names_it(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())

    assert re.match("device 'cuda:99': |onnxruntime refused", refusal(path, device="cuda:99"))
    with pytest.raises(LoadError, match=r"device 'cuda:99': |onnxruntime refused"):
        Loader("cuda:99").load(path, Overrides({}))
    assert Loader("cuda:99").load(path, Overrides({"device": "cpu"})).provider == "CPUExecutionProvider"


@pytest.mark.slow
def test_a_model_whose_runs_are_long_has_a_queue_that_is_short_in_time(tmp_path: Path) -> None:
    slow = builders.bare_version(tmp_path, "slow", 1, builders.slow())
    quick = builders.bare_version(tmp_path, "quick", 1, builders.scaled())

    derived = load(slow)
    assert derived.config.max_queue_ms == 10_000.0
    assert derived.config.least_queued_requests == 64
    assert "  # 10 s of work; a run takes" in derived.effective_toml
    assert load(quick).config.max_queue_ms == 0.0
    assert load(slow, max_queue_ms=7.0).config.max_queue_ms == 7.0
    assert load(slow, max_queue_ms=0).config.max_queue_ms == 0.0
    assert load(quick, p99_target_ms=30.0).config.max_queue_ms == 15.0
    told = Loader("cpu", max_queue_ms=9.0).load(slow, Overrides({}))
    assert (told.config.max_queue_ms, told.config.least_queued_requests) == (9.0, 1)
    assert "max_queue_ms = 9.0  # --max-queue-ms" in told.effective_toml
