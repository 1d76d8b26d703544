"""Which file of a version serves, and that fp32 goes on where a variant does not."""

from __future__ import annotations

import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import VersionPath
from fitserve_service.loader import Loader
from fitserve_service.loading.load_errors import IncompleteError
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.variants import choices

X = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)


def facts(name: str, ratio: float, device: str = "cpu", bound: float = 0.5) -> dict[str, Any]:
    record = {"tolerance": {"per_output": {"y": bound}}}
    speed = [{"batch_size": 1, "ratio": ratio}, {"batch_size": 32, "ratio": ratio + 1}]
    return {"variant": name, "device": device, "speed": speed, "verification": record}


def version_with(root: Path, **variants: tuple[bytes, dict[str, Any]]) -> VersionPath:
    """A version that doubles, its probe with torch's answers, and variants beside it."""
    path = builders.certified_version(root, "m", builders.scaled(2.0), {"x": X})
    manifest = read_manifest(path.folder)
    assert manifest is not None
    files = {f"model.{name}.onnx": entry for name, (_, entry) in variants.items()}
    for name, (content, _) in variants.items():
        (path.folder / f"model.{name}.onnx").write_bytes(content)
    builders.rewrite(path, "manifest.json", replace(manifest, files={**manifest.files, **files}).to_bytes())
    return path


def load(path: VersionPath, variant: str = "auto", **overrides: object) -> ServedVersion:
    return Loader("cpu", variant=variant).load(path, Overrides(overrides))


def answer(served: ServedVersion) -> float:
    outputs = served.session.run({"x": Tensor("FP32", X)}, ["y"])
    return float(outputs["y"].array[0, 0])


def names(manifest_files: dict[str, Any], wanted: str, device: str = "cpu") -> list[str]:
    described = replace(builders.manifest("m"), files=manifest_files)
    return [choice.name for choice in choices(described, wanted, device)]


@pytest.mark.parametrize(("ratio", "served"), [(1.29, ["fp32"]), (1.3, ["int8", "fp32"])])
def test_auto_asks_more_of_int8_than_to_be_faster(ratio: float, served: list[str]) -> None:
    assert names({"model.int8.onnx": facts("int8", ratio)}, "auto") == served
    assert names({"model.int8.onnx": facts("int8", ratio)}, "int8") == ["int8", "fp32"]
    assert names({"model.fused.onnx": facts("fused", 1.01)}, "auto") == ["fused", "fp32"]


def test_auto_takes_the_fastest_of_the_device_and_ends_with_fp32() -> None:
    files = {
        "model.int8.onnx": facts("int8", 2.4),
        "model.fused.onnx": facts("fused", 1.2),
        "model.slow.onnx": facts("slow", 0.9),
        "model.fp16.onnx": facts("fp16", 3.0, "cuda"),
    }
    assert names(files, "auto") == ["int8", "fused", "fp32"]
    assert names(files, "auto", "cuda") == ["fp16", "fp32"]
    assert names(files, "fused") == ["fused", "fp32"]
    assert names(files, "slow") == ["slow", "fp32"]
    assert names(files, "fp32") == ["fp32"]
    assert names(files, "bf16") == ["fp32"]
    assert [choice.reason for choice in choices(None, "bf16", "cpu")] == ["the version has no variant 'bf16'"]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"variant": "int8"},
        facts("other", 2.0),
        facts("int8", 2.0, "tpu"),
        facts("int8", 2.0) | {"verification": 3},
        facts("int8", 2.0) | {"speed": [{"ratio": "fast"}]},
        facts("int8", 2.0) | {"speed": None},
    ],
)
def test_what_a_manifest_says_wrongly_is_no_variant(entry: Any) -> None:
    assert names({"model.int8.onnx": entry}, "auto") == ["fp32"]


def test_the_variant_serves_and_says_so(tmp_path: Path) -> None:
    path = version_with(tmp_path, int8=(builders.scaled(2.01), facts("int8", 2.4)))
    served = load(path)

    assert answer(served) == pytest.approx(2.01)
    assert served.config.variant == "int8"
    assert served.is_verified
    assert tomllib.loads(served.effective_toml)["variant"] == "int8"
    assert "2.40 times as fast as fp32 where it was exported" in served.effective_toml
    assert answer(load(path, "fp32")) == 2.0
    assert answer(Loader("cpu").load(path, Overrides({"variant": "fp32"}))) == 2.0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (builders.scaled(4.0), "replay of the probe on CPUExecutionProvider: output 'y' at batch size 1"),
        (b"no model", "variant int8 does not serve here"),
        (builders.scaled(2.0, width=3), "replay of the probe"),
    ],
)
def test_one_that_does_not_hold_is_named_and_fp32_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    path = version_with(tmp_path, int8=(content, facts("int8", 2.4)))
    with caplog.at_level(logging.WARNING):
        served = load(path)

    assert answer(served) == 2.0
    assert served.config.variant == "fp32"
    assert served.is_verified
    assert "variant int8 does not serve here" in served.effective_toml
    assert reason in caplog.text
    assert "fp32 serves in its place" in caplog.text


def test_rows_of_a_variant_that_depend_on_each_other_do_not_join_whatever_it_was_proved_to_err(tmp_path: Path) -> None:
    # As those of dynamic quantization do, here by half of a sum of 0..1.
    content = builders.softmax_over_batch()
    mixed = builders.certified_version(tmp_path, "plain", content, {"x": X[:1]})
    assert load(mixed).config.max_batch_size == 0
    manifest = read_manifest(mixed.folder)
    assert manifest is not None
    (mixed.folder / "model.int8.onnx").write_bytes(content)
    files = {**manifest.files, "model.int8.onnx": facts("int8", 2.0, bound=1.0)}
    builders.rewrite(mixed, "manifest.json", replace(manifest, files=files).to_bytes())
    served = load(mixed)
    assert served.config.variant == "int8"
    assert served.config.max_batch_size == 0


def test_without_checksums_no_variant_is_believed(tmp_path: Path) -> None:
    path = version_with(tmp_path, int8=(builders.scaled(2.01), facts("int8", 2.4)))
    (path.folder / "SHA256SUMS").unlink()
    assert load(path).config.variant == "fp32"


def test_a_version_is_one_content_to_the_workers_whichever_of_its_files_serves(tmp_path: Path) -> None:
    # As where one worker ran out of time with the variant: they still answer with the same version.
    path = version_with(tmp_path, int8=(builders.scaled(2.01), facts("int8", 2.4)))
    variant, plain = load(path), load(path, "fp32")
    assert (variant.config.variant, plain.config.variant) == ("int8", "fp32")
    assert variant.instance == plain.instance != ""
    assert variant.content_digest != plain.content_digest

    (path.folder / "model.int8.onnx").write_bytes(builders.scaled(2.02))
    builders.rewrite(path, "manifest.json", (path.folder / "manifest.json").read_bytes())
    assert load(path).instance != variant.instance


def test_a_variant_that_is_not_what_its_checksum_says_is_no_reason_for_fp32(tmp_path: Path) -> None:
    path = version_with(tmp_path, int8=(builders.scaled(2.01), facts("int8", 2.4)))
    (path.folder / "model.int8.onnx").write_bytes(builders.scaled(2.02))
    with pytest.raises(IncompleteError, match=r"model\.int8\.onnx"):
        load(path)
