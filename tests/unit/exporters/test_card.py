"""The model card: self-contained, escaped whatever the manifest says, and complete."""

import dataclasses
import json
import re
import shlex
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract.manifest import Manifest, TensorSpec
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.card import model_card
from fitserve_exporters.card_calls import client_code, grpcurl_code, triton_code
from fitserve_exporters.card_curves import MAX_POINTS, curves_of, draw, read_curves, ticks

VOID = {"meta"}
EVIL = "<script>alert(1)</script>\"'&$(touch /tmp/x)`\\\x00\u202e"


class Reader(HTMLParser):
    """Reads a page strictly: each element is closed by its own end tag."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def figures(error: float, beyond_count: int = 0) -> dict[str, Any]:
    output = {
        "max_abs_diff": 1.9e-6, "mean_abs_diff": 4e-7, "max_ulps": 92, "ort_max_error": error,
        "torch_max_error": 1.1e-6, "worst_error": error, "worst_tolerance": 9.4e-5, "beyond_count": beyond_count,
        "sentinel_mismatch_count": 0,
    }  # fmt: skip
    metrics = {
        "accuracy": 0.9805, "accuracy_interval_95": [0.9603, 0.9905], "correct_count": 352, "example_count": 359,
        "mean_loss": 0.068,
    }  # fmt: skip
    return {
        "batches": [{"batch_size": 7, "example_count": 112, "outputs": {"logits": output}}],
        "agreement": {"example_count": 359, "same_count": 358, "tie_count": 1},
        "metrics": metrics,
    }


def manifest(**changes: Any) -> Manifest:
    whole = Manifest(
        model="lenet",
        created_at="2026-01-01T00:00:00Z",
        inputs=(TensorSpec("image", "FP32", ("batch", 1, 28, 28)),),
        outputs=(TensorSpec("logits", "FP32", ("batch", 10)),),
        task=Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, tuple(f"class {index}" for index in range(10))),
        training={
            "recipe": "lenet",
            "seed": 7,
            "config": {"lr": 0.003},
            "curves": {"loss": {"train": [[1, 2.3], [2, 0.01]], "test": [[1, 2.2], [2, 0.5]]}},
        },
        verification={
            "providers": {"CPUExecutionProvider": figures(2e-6)},
            "torch": {"metrics": figures(0)["metrics"]},
            "data": {"source": "digits", "example_count": 359},
            "tolerance": {"factor": 2.0, "atol": 1e-5, "rtol": 1e-5, "reason": "as reasons go"},
            "latency": {"CPUExecutionProvider": [{"batch_size": 1, "run_count": 200, "p50_ms": 0.061, "p99_ms": None}]},
        },
        environment={"cpu": "a CPU", "cpu_count": 2, "packages": {"fitserve": "0.1.0", "torch": "2.13"}},
        onnx={"bytes": 249321, "opset": {"ai.onnx": 18}, "ir_version": 10, "operators": {"Conv": 2}},
        files={"probe.safetensors": {"bytes": 5, "sha256": "ab" * 32, "example_count": 32, "sampled_from": 359}},
    )
    return dataclasses.replace(whole, **changes)


def read(card: bytes) -> Reader:
    return Reader(card.decode())


def test_card_says_what_the_manifest_says() -> None:
    page = read(model_card(manifest()))
    for part in [
        "lenet", "classification · 10 classes", "(batch, 1, 28, 28)", "98.05 %", "352 of 359", "96.03 % to 99.05 %",
        "1.90e-06", "9.40e-05", "within", "358 of 359", "as reasons go", "digits, 359 examples",
        "61 µs", "200", "loss", "0.003",
        "2× Conv", "ai.onnx 18", "ab" * 32, "a CPU", "grpcurl", "tritonclient", "fitserve_client", "class 9",
    ]:  # fmt: skip
        assert part in page.text, part
    assert "beyond" not in page.text


def test_figures_beyond_the_tolerance_are_called_that() -> None:
    verification = {"providers": {"CPUExecutionProvider": figures(1e-3, 1)}}
    assert "beyond" in read(model_card(manifest(verification=verification))).text


def test_same_manifest_gives_the_same_bytes() -> None:
    assert model_card(manifest()) == model_card(Manifest.from_bytes(manifest().to_bytes()))


def test_card_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    card = model_card(manifest()).decode()
    page = read(card.encode())
    fetching = {"src", "href", "srcset", "action", "data", "poster", "background"}
    assert not [attributes for _, attributes in page.seen if fetching & attributes.keys()]
    assert not {tag for tag, _ in page.seen} & {"script", "link", "iframe", "img", "object", "base", "form"}
    style = re.findall(r"(?s)<style>(.*?)</style>", card)
    assert len(style) == 1
    assert not re.search(r"url\(|@import", style[0])


def test_evil_strings_stay_strings() -> None:
    spec = TensorSpec(EVIL, "FP32", (EVIL, 2))
    evil = manifest(
        created_at=EVIL,
        inputs=(spec,),
        outputs=(spec,),
        task=Task(TaskKind.CLASSIFICATION, EVIL, Scores.LOGITS, (EVIL, "<script>")),
        training={EVIL: EVIL, "recipe": EVIL, "config": {EVIL: EVIL}, "curves": {EVIL: {EVIL: [[1, 1], [2, 2]]}}},
        verification={"providers": {EVIL: figures(0)}, "tolerance": {"reason": EVIL}},
        environment={"cpu": EVIL, "packages": {EVIL: EVIL}},
        onnx={"opset": {EVIL: EVIL}, "operators": {EVIL: 1}},
        files={EVIL: {"sha256": EVIL}},
    )
    page = read(model_card(evil))
    assert {tag for tag, _ in page.seen}.isdisjoint({"script", "touch"})
    assert not [name for _, attributes in page.seen for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in page.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *("recipe", "compile", "curves", "data", "config", "metrics", "loss", "train", "providers", "torch", "latency"),
        *("tolerance", "batches", "outputs", "agreement", "metrics", "accuracy", "accuracy_interval_95", "packages"),
        *("git", "opset", "operators", "parameters", "r_squared", "ort_max_error", "seed", "p50_ms"),
    ]
)
SECTION = st.dictionaries(
    KEYS, JSON | st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=3), max_size=5
)


@settings(max_examples=50)
@given(training=SECTION, verification=SECTION, environment=SECTION, onnx=SECTION, files=SECTION)
def test_any_manifest_has_a_card(**sections: dict[str, Any]) -> None:
    page = read(model_card(manifest(**sections)))
    assert page.seen[0][0] == "html"
    assert "script" not in {tag for tag, _ in page.seen}


def test_many_classes_are_counted_not_all_listed() -> None:
    task = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, tuple(map(str, range(21_000))))
    card = model_card(manifest(task=task))
    assert "20,800 more" in read(card).text
    assert len(card) < 100_000


@given(st.text(alphabet=st.characters(), min_size=1, max_size=30))
def test_names_are_literals_in_python(name: str) -> None:
    named = manifest(inputs=(TensorSpec(name, "INT64", ("batch", "sequence")),), outputs=())
    for code in (client_code(named), triton_code(named)):
        compile(code, "card", "exec")
    namespace: dict[str, Any] = {"np": np}
    exec(client_code(named).partition("with Client")[0].partition("Client\n")[2], namespace)
    assert list(namespace["inputs"]) == [name]
    assert namespace["inputs"][name].shape == (1, 8)
    assert namespace["inputs"][name].dtype == np.int64


@pytest.mark.parametrize(
    "name", [EVIL, "$(touch owned)", "`touch owned`", "'; touch owned; '", "EOF\n", "smile \U0001f600"]
)
def test_names_are_literals_in_the_shell(tmp_path: Path, name: str) -> None:
    named = manifest(inputs=(TensorSpec(name, "FP32", (None, 3)),), outputs=())
    command, _, body = grpcurl_code(named).partition("<<")
    script = f"set -- {command}\nprintf '%s\\n' \"$*\"\ncat <<{body}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    arguments, _, document = done.stdout.partition("\n")
    assert shlex.split(arguments)[-1] == "fitserve.inference.v1.InferenceService/Predict"
    request = json.loads(document)
    assert request["model"] == {"name": "lenet"}
    assert request["inputs"] == [{"name": name, "datatype": "FP32", "shape": [1, 3], "content": "A" * 16}]
    assert list(tmp_path.iterdir()) == []


def test_curves_of_a_run_are_thinned_to_their_ends(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "test_loss": 2 / epoch} for epoch in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = [{"epoch": epoch / 5, "train_loss": 5 / epoch} for epoch in range(1, 11)]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
    curves = read_curves(tmp_path)
    assert list(curves) == ["loss"]
    assert curves["loss"]["train"] == [[epoch / 5, 5 / epoch] for epoch in range(1, 11)]
    test = curves["loss"]["test"]
    assert len(test) == MAX_POINTS
    assert (test[0], test[-1]) == ([1, 2.0], [1000, 2 / 1000])
    assert curves_of({"curves": json.loads(json.dumps(curves))})["loss"]["test"][-1] == (1000.0, 0.002)


NUMBERS = st.floats(-1e12, 1e12) | st.floats(1e-12, 1.0)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=30))
def test_every_curve_stays_in_its_frame(points: list[tuple[float, float]]) -> None:
    picture = draw("loss", {"test": sorted(points)})
    found = re.search(r'points="([^"]*)"', picture)
    assert found is not None
    drawn = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    assert len(drawn) == len(points)
    assert all(52 <= x <= 508 and 10 <= y <= 230 for x, y in drawn)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_inside(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    assert 1 <= len(found) <= 2 * count + 1
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)
