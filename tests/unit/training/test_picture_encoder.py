"""picture-encoder: a checkpoint's preprocessing in the graph, frozen or not, sizes, resume, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.checkpoints import PREPROCESSING, coloured_pictures, edit_json, picture_checkpoint, save, text_checkpoint
from torch import Tensor

from fitserve_contract.checkpoints import Checkpoint, open_checkpoint
from fitserve_training import rundir
from fitserve_training.catalogue import recipe_for_data
from fitserve_training.cli import main
from fitserve_training.data.own.picture_files import decode_picture
from fitserve_training.encoders.networks import PICTURES, find_heads
from fitserve_training.encoders.picture_classifier import PictureClassifier
from fitserve_training.encoders.picture_preparation import Preparation, read_preparation
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.optim import by_rate
from fitserve_training.recipes import picture_encoder
from fitserve_training.recording import Recorder
from fitserve_training.runs import TrainedRun, open_run


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_checkpoint(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_pictures(tmp_path_factory.mktemp("pictures"), 8, 120)


def run_of(weights: Path, pictures: Path, run_dir: Path, **changes: Any) -> Path:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    values = {"data.name": str(pictures), "model.weights": str(weights), "threads": 1, "batch_size": 4, "epochs": 2}
    request = Request("picture-encoder", run_dir, changes={**values, "lr": 1e-3, **dotted})
    return train(request, lambda _line: None)


def trained(weights: Path, pictures: Path, run_dir: Path, **changes: Any) -> TrainedRun:
    return open_run(run_of(weights, pictures, run_dir, **changes))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    st.sampled_from([0, 2, 3]),
    st.sampled_from(["ViTImageProcessorPil", "EfficientNetImageProcessorPil", "MobileViTImageProcessorPil"]),
    st.booleans(),
)
def test_the_preparation_is_that_of_transformers(
    means: list[float], sds: list[float], resample: int, processor: str, is_normalized: bool
) -> None:
    import tempfile

    import transformers

    options: dict[str, Any] = {"size": {"height": 16, "width": 16}, "resample": resample, "do_center_crop": False}
    if not processor.startswith("MobileViT"):  # which turns channels around and never normalises
        options |= {"image_mean": means, "image_std": sds, "do_normalize": is_normalized}
    if processor.startswith("Efficient"):
        options |= {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": is_normalized}
    made = getattr(transformers, processor)(**options)
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        Image.fromarray(pixels).save(Path(folder) / "x.png")
        checkpoint = Checkpoint(Path(folder), Path(folder), {"model_type": "vit"})
        preparation = read_preparation("here", checkpoint, 3, 16)
        read = decode_picture(Path(folder) / "x.png", 16, preparation.resample)
    expected = made(Image.fromarray(pixels), return_tensors="np")["pixel_values"]

    values = torch.from_numpy(read.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    scale, shift = (torch.tensor(part).reshape(-1, 1, 1) for part in (preparation.scale, preparation.shift))
    found = values * scale + shift
    found = found.flip(1) if preparation.is_bgr else found
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_served_module_is_the_checkpoint_behind_its_preprocessing(
    vit: Path, pictures: Path, tmp_path: Path
) -> None:
    import transformers

    run = trained(vit, pictures, tmp_path / "run", model__frozen=True)
    image = torch.rand(3, 3, 16, 16)

    network = transformers.ViTModel.from_pretrained(vit, add_pooling_layer=False)
    mean, sd = (torch.tensor(PREPROCESSING[key]).reshape(-1, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        states = network((image - mean) / sd).last_hidden_state[:, 0]
    weights = run.module.state_dict()
    expected = states @ weights["network.classifier.weight"].T + weights["network.classifier.bias"]

    assert run.inputs[0].shape == ("batch", 3, 16, 16)
    torch.testing.assert_close(run.module(image), expected, rtol=1e-4, atol=1e-5)
    facts = json.loads(run.extra_files["preprocessor_config.json"])
    assert (facts["resample"], facts["do_normalize"], facts["size"]) == (2, False, {"height": 16, "width": 16})
    callers = transformers.ViTImageProcessorPil(**facts)
    image_file = next((pictures / "red").iterdir())
    prepared = callers(Image.open(image_file), return_tensors="pt")["pixel_values"]
    read = decode_picture(image_file, 16, 2)
    np.testing.assert_allclose(prepared[0].numpy(), read.transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_run_needs_its_checkpoint_no_more_once_it_is_there(pictures: Path, tmp_path: Path) -> None:
    weights = picture_checkpoint(tmp_path / "vit")
    run_dir = run_of(weights, pictures, tmp_path / "run")
    shutil.rmtree(weights)

    run = open_run(run_dir)

    held_out = run.held_out()
    assert held_out.inputs["image"].shape == (4, 3, 16, 16)
    found = run.module(torch.from_numpy(held_out.inputs["image"])).argmax(dim=1).numpy()
    assert (found == held_out.labels).all()
    assert str(tmp_path / "vit") not in run.extra_files["encoder.json"].decode()


def test_frozen_trains_the_head_alone_and_keeps_the_statistics_of_batch_norms(pictures: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = picture_checkpoint(tmp_path / "resnet", "resnet")
    start = load_file(weights / "model.safetensors")

    def encoder_of(run: TrainedRun) -> dict[str, Tensor]:
        state = {name.removeprefix("network."): value for name, value in run.module.state_dict().items()}
        return {name: value for name, value in state.items() if name in start and "classifier" not in name}

    frozen = trained(weights, pictures, tmp_path / "frozen", model__frozen=True, weight_decay=0.1)
    tuned = trained(weights, pictures, tmp_path / "tuned", model__frozen=False)

    assert any("running_mean" in name for name in start)
    assert all(torch.equal(value, start[name]) for name, value in encoder_of(frozen).items())
    moved = [name for name, value in encoder_of(tuned).items() if not torch.equal(value, start[name])]
    assert any("running_mean" in name for name in moved)
    assert any(name.endswith("weight") for name in moved)
    heads = [run.module.state_dict()["network.classifier.1.weight"] for run in (frozen, tuned)]
    assert heads[0].shape == (2, 16)
    assert not torch.equal(*heads)


def test_the_head_learns_with_its_own_rate(vit: Path) -> None:
    encoder = picture_encoder.open_encoder(str(vit), 0)
    model = encoder.build(2, False)
    groups = by_rate(model, {f"network.{head}.": 10.0 for head in encoder.heads})
    assert [tuple(parameter.shape) for parameter in groups[10.0]] == [(2, 16), (2,)]
    assert len(groups[1.0]) == len(list(model.parameters())) - 2


def test_an_interrupted_run_resumes_to_the_same_bits(
    vit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    options = {"clip_norm": 1.0, "precision": "bfloat16", "micro_batch_size": 2, "checkpoint_every_s": 0.0}
    straight = run_of(vit, pictures, tmp_path / "straight", **options)

    original = Recorder.on_epoch

    def on_epoch(self: Recorder, report: Any) -> None:
        original(self, report)
        raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "on_epoch", on_epoch)
    with pytest.raises(KeyboardInterrupt):
        run_of(vit, pictures, tmp_path / "killed", **options)
    monkeypatch.undo()
    resumed = train(Request("picture-encoder", tmp_path / "killed", is_resumed=True), lambda _line: None)

    expected, found = (load_file(run / rundir.WEIGHTS) for run in (straight, resumed))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_another_size_is_interpolated_and_grey_stands_for_three_channels(vit: Path, tmp_path: Path, mode: str) -> None:
    for shade, name in ((40, "dark"), (200, "light")):
        (tmp_path / "p" / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.full((20, 20), shade + index, np.uint8)
            Image.fromarray(pixels).convert(mode).save(tmp_path / "p" / name / f"{index}.png")
    run = trained(vit, tmp_path / "p", tmp_path / "run", data__image_size=24, epochs=1)
    channels = {"L": 1, "RGB": 3}[mode]
    assert run.inputs[0].shape == ("batch", channels, 24, 24)
    grey = torch.rand(2, 1, 24, 24)
    module = run.module
    assert isinstance(module, PictureClassifier)
    torch.testing.assert_close(module(grey), module(grey.repeat(1, 3, 1, 1)))
    assert json.loads(run.extra_files["preprocessor_config.json"])["do_convert_rgb"] is (mode == "RGB")


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def half(folder: Path) -> None:
    """Leaves the head and no encoder."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def of_texts(folder: Path) -> None:
    shutil.rmtree(folder)
    text_checkpoint(folder, "BertModel")


def with_json(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / name, **values)


FACTS = "preprocessor_config.json"
SLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, "expected model.safetensors, got pytorch_model.bin, which may run code"),
    "code": (with_json("config.json", auto_map={"AutoModel": "x.Net"}), "got code of its own (auto_map)"),
    "no preprocessing": (without(FACTS), f"expected {FACTS} with the preprocessing of images, found none"),
    "no weights": (without("model.safetensors"), "expected model.safetensors or model.safetensors.index.json"),
    "no encoder": (half, "expected every weight of its encoder, vit.embeddings.cls_token is not there"),
    "texts": (of_texts, "expected a checkpoint of an encoder of pictures that transformers can make classify, got"),
    "unknown": (with_json("config.json", model_type="mine"), "got model_type 'mine'"),
    "means": (with_json(FACTS, image_mean=[0.5]), "image_mean: expected 3 numbers, one for each channel, got [0.5]"),
    "deviations": (with_json(FACTS, image_std=[0.5, 0, 1]), "image_std: expected 3 numbers"),
    "filter": (with_json(FACTS, resample=9), "resample: expected one of 0, 1, 2, 3, 4, 5, got 9"),
    "oblong": (
        lambda folder: (
            edit_json(folder / FACTS, size={"height": 16, "width": 20}),
            edit_json(folder / "config.json", image_size=None),
        ),
        "expected square pictures, got 16 x 20",
    ),
    "other shapes": (with_json("config.json", hidden_size=32), "expected every weight of its encoder"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_what_cannot_be_used_is_refused_with_a_sentence(
    vit: Path, pictures: Path, tmp_path: Path, slip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = SLIPS[slip]
    folder = tmp_path / "checkpoint"
    shutil.copytree(vit, folder)
    change(folder)
    arguments = ["--data", str(pictures), "--set", f"model.weights={folder}", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.startswith(f"fitserve-train: model.weights {folder}: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.unfinished").exists()


def test_sizes_that_the_encoder_does_not_take_are_refused(pictures: Path, tmp_path: Path) -> None:
    clip = picture_checkpoint(tmp_path / "clip", "clip")
    with pytest.raises(UsageError, match=r"takes no pictures of 24 x 24 \(its own is 16\): Input image size"):
        trained(clip, pictures, tmp_path / "run", data__image_size=24)
    assert trained(clip, pictures, tmp_path / "run", epochs=1).inputs[0].shape == ("batch", 3, 16, 16)
    with pytest.raises(UsageError, match=r"data\.image_size': expected at least 1, or 0 for the checkpoint's own"):
        trained(clip, pictures, tmp_path / "run", data__image_size=-1)
    with pytest.raises(UsageError, match=r"expected --set model\.weights=DIR_OR_ID"):
        train(Request("picture-encoder", tmp_path / "run", changes={"data.name": str(pictures)}), lambda _line: None)
    with pytest.raises(UsageError, match="head_lr_factor': expected a number above 0, got 0"):
        trained(clip, pictures, tmp_path / "run", model__head_lr_factor=0)


def test_shards_are_read(pictures: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    folder = save(transformers.ViTModel(config), tmp_path / "shards", max_shard_size="4KB")
    (folder / FACTS).write_text(json.dumps(PREPROCESSING))
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert trained(folder, pictures, tmp_path / "run", epochs=1).inputs[0].shape == ("batch", 3, 16, 16)


def test_heads_are_what_is_above_the_encoder() -> None:
    expected = {"vit": "classifier", "dinov2": "classifier", "swiftformer": "head dist_head", "hgnet_v2": "fc"}
    for kind, heads in expected.items():
        assert find_heads("here", {"model_type": kind}, PICTURES) == tuple(heads.split())
    poolformer = find_heads("here", {"model_type": "poolformer"}, PICTURES)
    assert poolformer == ("norm", "classifier"), "a norm that a bare encoder lacks is trained too"
    with pytest.raises(UsageError, match="expected an encoder with a head above it"):
        find_heads("here", {"model_type": "perceiver", "architectures": []}, PICTURES)


def test_frozen_has_settings_of_its_own() -> None:
    recipe = picture_encoder.RECIPE
    assert (
        recipe.preset_for("p", {"model.frozen": "true"}) == recipe.preset_for("p", {"model.frozen": True}) == "frozen"
    )
    assert recipe.preset_for("p", {"model.frozen": False}) == recipe.preset_for("p", {}) == "p"
    assert float(recipe.presets["frozen"]["lr"]) > float(recipe.defaults["lr"])


def test_weights_choose_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.npz").touch()
    assert recipe_for_data(str(tmp_path), is_pretrained=True) == "picture-encoder"
    assert recipe_for_data(str(tmp_path / "x.jsonl"), is_pretrained=True) == "bert-multilabel"
    assert recipe_for_data(str(tmp_path / "x.csv"), is_text=True, is_pretrained=True) == "bert-multilabel"
    with pytest.raises(UsageError, match=r"got table; name the column of texts \(--set data.text=COLUMN\)"):
        recipe_for_data(str(tmp_path / "x.csv"), is_pretrained=True)
    with pytest.raises(UsageError, match="expected a folder of pictures or texts, got arrays"):
        recipe_for_data(str(tmp_path / "x.npz"), is_pretrained=True)


def test_a_grey_encoder_takes_grey_pictures_alone(pictures: Path, tmp_path: Path) -> None:
    import transformers

    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_channels=1, **layers)
    folder = save(transformers.ViTModel(config), tmp_path / "grey")
    (folder / FACTS).write_text(json.dumps(PREPROCESSING | {"image_mean": 0.5, "image_std": [0.5]}))
    with pytest.raises(UsageError, match="expected grey pictures, for its network has 1 channel, got colour"):
        trained(folder, pictures, tmp_path / "run")


def test_preparations_survive_their_file(vit: Path) -> None:
    preparation = read_preparation("here", open_checkpoint(vit), 3, 0)
    assert Preparation.from_json(json.loads(json.dumps(preparation.to_json()))) == preparation
    assert (preparation.size, preparation.filter_name) == (16, "bilinear")
    assert preparation.scale == pytest.approx((2, 1 / 0.6, 1 / 0.7))
    assert preparation.shift == pytest.approx((-1, -0.4 / 0.6, -0.3 / 0.7))
