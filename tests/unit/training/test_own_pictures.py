"""The user's pictures: layouts, splits, clutter, orientation, modes, and files that are no pictures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitserve_client.pictures import read_picture
from fitserve_contract.manifest import TensorSpec
from fitserve_training.catalogue import TAKE_PICTURES, load_recipe, names
from fitserve_training.cli import main
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.own.picture_files import BadPictureError, check_pictures, decode_picture
from fitserve_training.data.own.picture_layout import find_pictures
from fitserve_training.data.own.pictures import load_pictures
from fitserve_training.errors import UsageError

SIZE = 8


def picture(path: Path, shade: int, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((9, 12, 3), shade % 256, np.uint8)
    pixels[0, 0, 0] ^= 128
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def pictures(root: Path, *folders: str, count: int = 3) -> Path:
    for place, folder in enumerate(folders):
        for index in range(count):
            picture(root / folder / f"{index}.png", 20 * place + index)
    return root


def loaded(root: Path, is_bad_skipped: bool = False) -> DataSet:
    return load_pictures(root, SIZE, 0.2, 0, is_bad_skipped)


def said(root: Path) -> str:
    with pytest.raises(UsageError) as caught:
        loaded(root)
    return str(caught.value)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("other", ["val", "Validation", "VALID", "test"])
def test_split_folders_are_splits_and_never_classes(tmp_path: Path, train: str, other: str) -> None:
    root = pictures(tmp_path, f"{train}/cat", f"{train}/dog", f"{other}/cat")
    pictures(tmp_path, f"{other}/dog", count=1)
    data = loaded(root)
    assert data.class_names == ("cat", "dog")
    assert (data.train.targets.tolist(), data.held_out.targets.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1])


def test_splits_inside_of_classes_flat_splits_and_a_train_folder_alone(tmp_path: Path) -> None:
    inside = loaded(pictures(tmp_path / "a", "cat/train", "dog/train", "cat/TEST", "dog/TEST"))
    for index in range(3):
        for word in ("cat", "dog"):
            picture(tmp_path / "b/train" / f"{word}.{index}.png", index)
            picture(tmp_path / "b/test" / f"{word}.{index}.png", 100 + index)
    alone = loaded(pictures(tmp_path / "c", "train/cat", "train/dog"))
    for data in (inside, loaded(tmp_path / "b")):
        assert data.class_names == ("cat", "dog")
        assert (len(data.train), len(data.held_out)) == (6, 6)
    assert (len(alone.train), len(alone.held_out), alone.class_names) == (4, 2, ("cat", "dog"))


@pytest.mark.parametrize("form", ["{}_set", "{}-images", "seg_{}", "{}2017", "{}ing_set", "{} data", "{}set"])
def test_split_folders_of_other_spellings_are_splits(tmp_path: Path, form: str) -> None:
    names = (form.format("train"), form.format("test"))
    data = loaded(pictures(tmp_path, *(f"{split}/{name}" for split in names for name in "ab")))
    assert (data.class_names, len(data.train), len(data.held_out)) == (("a", "b"), 6, 6)


@pytest.mark.parametrize("other", ["dev", "Eval", "holdout"])
def test_other_names_are_splits_beside_train_and_classes_elsewhere(tmp_path: Path, other: str) -> None:
    beside = loaded(pictures(tmp_path / "x", "train/a", "train/b", f"{other}/a", f"{other}/b"))
    assert (beside.class_names, len(beside.held_out)) == (("a", "b"), 6)
    assert loaded(pictures(tmp_path / "y", other, "ops")).class_names == tuple(sorted((other, "ops")))


@pytest.mark.parametrize("wrap", ["dataset", "dataset/dataset", "a b/ü"])
def test_splits_inside_of_the_only_folder_are_found(tmp_path: Path, wrap: str) -> None:
    root = pictures(tmp_path, *(f"{wrap}/{split}/{name}" for split in ("train", "test") for name in "ab"))
    (root / "README.md").write_text("notes")
    (root / "__MACOSX").mkdir()
    data = loaded(root)
    assert (data.class_names, len(data.train), len(data.held_out)) == (("a", "b"), 6, 6)
    assert f"read from {wrap}/, which holds the splits" in data.note


def test_labels_in_a_table_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "images")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,cat\n")
    message = said(tmp_path)
    assert "got only 'images'. Labels in a table (labels.csv) are not read; move each picture into a folder" in message
    shutil.move(tmp_path / "images/0.png", tmp_path / "party.png")
    shutil.rmtree(tmp_path / "images")
    assert "party.png says no class. Labels in a table (labels.csv) are not read" in said(tmp_path)


def test_animations_give_their_first_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((9, 9, 3), shade, np.uint8)) for shade in (200, 20)]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], duration=50)
    for path in tmp_path.iterdir():
        found = decode_picture(path, SIZE)
        assert np.abs(found.astype(int) - 200).max() < 3


def test_test_is_held_out_and_val_set_aside_where_there_are_both(tmp_path: Path) -> None:
    data = loaded(pictures(tmp_path, *(f"{split}/{name}" for split in ("train", "val", "test") for name in "ab")))
    assert (len(data.train), len(data.held_out)) == (6, 6)
    assert data.validation is not None
    assert (len(data.validation), data.ignored) == (6, ("data.hold_out",))


@given(st.sampled_from(["{}.{}", "{}{}", "{}_{:04}", "{} ({})", "{}-{}"]), st.integers(2, 400))
def test_flat_files_are_named_by_class_and_number(form: str, number: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("great_pyrenees", "model3_b"):
            for index in (number, number + 1):
                (Path(folder) / (form.format(name, index) + ".JPG")).touch()
        found = find_pictures(Path(folder))
    assert found.class_names == ("great_pyrenees", "model3_b")
    assert len(found.files) == 4
    assert found.notes == ("classes from the names of the files: great_pyrenees, model3_b",)


@pytest.mark.parametrize(
    "names", [("1.png", "2.png"), ("IMG_1.png", "DSC_2.png"), ("cat.1.png", "party.png"), ("Screenshot 1.png",), ()]
)
def test_flat_files_without_classes_are_refused_with_the_layouts(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        picture(tmp_path / name, 1)
    message = said(tmp_path)
    assert f"{tmp_path.name}/cat/1.png" in message
    assert f"{tmp_path.name}/train/cat/1.png" in message
    assert f"{tmp_path.name}/cat.1.png" in message


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train/a", "train/b", "cat"), "expected folders of splits or of classes, got both: train and cat"),
        (("train/a", "train/b", "test/a", "test/c"), "class 'c' of test/: expected it in train/ too"),
        (("test/a", "test/b"), "expected pictures in train/ beside test/, found none"),
        (("train/train/a", "train/train/b"), "got the split train/train/; move what is in it up"),
        (("a/train", "b", "a/test"), "expected every picture in a split, as some are, got b/0.png in none"),
        (("only",), "expected at least two classes, got only 'only'"),
        (("pets/cat", "pets/dog"), "for its folders (cat, dog) as classes pass --data"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, folders: tuple[str, ...], expected: str) -> None:
    assert expected in said(pictures(tmp_path, *folders))


def test_clutter_is_passed_over_and_loose_pictures_are_named(tmp_path: Path) -> None:
    root = pictures(tmp_path, "cat", "dog")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "cat/Thumbs.db", "cat/.DS_Store", "dog/._0.png"):
        (root / name).write_bytes(b"no picture")
    for name in ("__MACOSX/cat", ".cache", "cat/__MACOSX", "dog/.ipynb_checkpoints"):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(b"no picture")
    picture(root / "stray.PNG", 1)
    data = loaded(root)
    assert (data.class_names, len(data.train) + len(data.held_out)) == (("cat", "dog"), 6)
    assert "1 pictures of" in data.note
    assert "(stray.PNG)" in data.note


def test_nested_folders_and_links_are_followed_once(tmp_path: Path) -> None:
    root = pictures(tmp_path / "root", "cat/2024/may", "cat/2025")
    pictures(tmp_path / "elsewhere", "dog")
    (root / "dog").symlink_to(tmp_path / "elsewhere/dog")
    (root / "cat/again").symlink_to(root / "cat")
    (root / "cat/one.png").symlink_to(root / "dog/1.png")
    data = loaded(root)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) + len(data.held_out) == 10


def test_an_empty_class_is_refused_and_may_miss_in_the_test_folder(tmp_path: Path) -> None:
    root = pictures(tmp_path, "train/a", "train/b", "test/a")
    (root / "test/b").mkdir()
    assert loaded(root).class_names == ("a", "b")
    (root / "train/c").mkdir()
    assert "class 'c': expected at least one example, got 0; add some or remove it" in said(root)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_the_camera_was_held(tmp_path: Path, orientation: int, suffix: str) -> None:
    scene = np.zeros((16, 16), np.uint8)
    scene[:8, :8], scene[:8, 8:] = 255, 120  # what a person sees: white top left, grey top right
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.T,
        6: np.rot90(scene, 1),
        7: scene[::-1, ::-1].T,
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"phone.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)

    found = decode_picture(path, 2)

    grey = found if found.ndim == 2 else found[..., 0]
    assert np.abs(grey.astype(int) - [[255, 120], [0, 0]]).max() < 40


@pytest.mark.parametrize(
    ("name", "mode", "options", "channels"),
    [
        ("a.JPG", "RGB", {}, 3),
        ("a.jpeg", "CMYK", {}, 3),
        ("a.WEBP", "RGB", {"lossless": True}, 3),
        ("a.gif", "P", {}, 3),
        ("a.BMP", "L", {}, 1),
        ("a.png", "LA", {}, 1),
        ("a.png", "RGBA", {}, 3),
        ("a.png", "1", {}, 1),
        ("a.png", "P", {}, 3),
    ],
)
def test_every_mode_becomes_grey_or_colour(
    tmp_path: Path, name: str, mode: str, options: dict[str, Any], channels: int
) -> None:
    path = picture(tmp_path / name, 255, mode, **options)
    check_pictures_of(path)
    found = decode_picture(path, SIZE)
    assert found.shape == ((SIZE, SIZE) if channels == 1 else (SIZE, SIZE, 3))
    assert found[-1, -1].min() >= 250, "white stays white"


def check_pictures_of(path: Path) -> None:
    """Checks a folder that holds a picture twice in two classes."""
    for name in ("a", "b"):
        (path.parent / "folder" / name).mkdir(parents=True)
        shutil.copy(path, path.parent / "folder" / name)
    check_pictures(path.parent / "folder")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_the_client_reads_a_png_as_training_does(tmp_path: Path, mode: str, orientation: int) -> None:
    random = np.random.default_rng(orientation)
    pixels = random.integers(0, 256, (9, 12, 4)).astype(np.uint8)
    pixels[..., 3] |= 127
    image = Image.fromarray(pixels, "RGBA")
    exif = Image.Exif()
    exif[274] = orientation
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 1 << 16, (9, 12)).astype(np.uint16))
    elif mode != "RGBA":
        image = (image if mode == "LA" else image.convert("RGB")).convert(mode)
    image.save(tmp_path / "x.png", exif=exif)

    trained = decode_picture(tmp_path / "x.png", SIZE)

    planes = trained[None] if trained.ndim == 2 else trained.transpose(2, 0, 1)
    spec = TensorSpec("image", "FP32", ("B", len(planes), SIZE, SIZE))
    asked, _notes = read_picture(tmp_path / "x.png", spec, is_inverted=False)
    assert np.array_equal(np.round(asked[0] * 255), planes)


def test_sixteen_bits_keep_their_brightness_and_floats_are_refused(tmp_path: Path) -> None:
    deep = np.full((9, 9), 32768, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((9, 9), 1 << 20, np.int32)).save(tmp_path / "wide.tiff")
    assert (decode_picture(tmp_path / "deep.png", SIZE) == 128).all()
    for name, reason in (
        ("float.tiff", "pixels of floating point, not of 8 or 16 bits"),
        ("wide.tiff", "pixels from 1048576 to 1048576, not of 8 or 16 bits"),
    ):
        with pytest.raises(BadPictureError, match=reason):
            decode_picture(tmp_path / name, SIZE)


def test_grey_among_colour_has_three_equal_channels(tmp_path: Path) -> None:
    root = pictures(tmp_path, "a")
    for index in range(3):
        picture(root / "b" / f"{index}.png", 90, "L")
    data = loaded(root)
    grey = data.train.whole().inputs[0][data.train.targets == 1][0]
    assert tuple(grey.shape) == (3, SIZE, SIZE)
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()


def spoilt(root: Path) -> dict[str, str]:
    """Puts unreadable files of every kind into two classes; gives what should be said of each."""
    pictures(root, "cat", "dog")
    big = picture(root / "cat/cut.jpg", 3, quality=95).read_bytes()
    (root / "cat/cut.jpg").write_bytes(big[: len(big) - 40])
    whole = (root / "dog/0.png").read_bytes()
    (root / "dog/cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat/empty.png").touch()
    (root / "cat/notes.txt").write_text("notes")
    (root / "dog/gone.png").symlink_to(root / "nowhere")
    header = b"BM" + (54).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    wide = (20_000).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little") + (24).to_bytes(2, "little")
    (root / "dog/bomb.bmp").write_bytes(header + wide + bytes(24))
    return {
        "cat/cut.jpg": "truncated",
        "cat/empty.png": "an empty file",
        "cat/notes.txt": "no picture",
        "dog/bomb.bmp": "too large, make it smaller",
        "dog/cut.png": "truncated",
        "dog/gone.png": "a link to nothing",
    }


def test_unreadable_files_are_all_named_before_torch_is_imported(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    expected = spoilt(root)
    code = (
        "import sys; from fitserve_training.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    arguments = ["--data", str(root), "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "6 files are unreadable" in ended.stderr
    assert "--skip-bad" in ended.stderr
    for name, reason in expected.items():
        assert reason in ended.stderr.partition(f"{name} (")[2].partition(")")[0].lower()


def test_skip_bad_goes_on_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "pets"
    expected = spoilt(root)
    arguments = ["--data", str(root), "--run-dir", str(tmp_path / "run"), "--set", "epochs=1", "--compile", "off"]
    assert main([*arguments, "--skip-bad", "--set", "data.image_size=8"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "6 colour pictures of 2 classes" in line
    assert "left out 6 unreadable files" in line
    assert all(name in line for name in expected)
    assert "skip_bad = true" in (tmp_path / "run/config.toml").read_text()


def test_skip_bad_is_for_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    assert main(["--data", str(tmp_path / "t.csv"), "--skip-bad"]) == 2
    assert "--skip-bad: expected --data with a folder of pictures" in capsys.readouterr().err


def test_too_few_readable_pictures_of_a_class_are_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path, "a", "b")
    for path in (root / "b").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UsageError, match="class 'b': expected at least two examples, got 0"):
        loaded(root, is_bad_skipped=True)


def test_the_same_picture_on_both_sides_is_warned_of(tmp_path: Path) -> None:
    root = pictures(tmp_path, "train/a", "train/b", "test/a", "test/b")
    assert "warning" not in loaded(root).note
    shutil.copy(root / "train/a/0.png", root / "test/a/0.png")
    Image.open(root / "train/b/1.png").save(root / "test/b/renamed.bmp")
    assert "warning: 2 of 7 held-out pictures are trained on too" in loaded(root).note


def test_the_recipes_that_take_pictures_are_those_the_command_checks() -> None:
    assert {name for name in names() if "images" in load_recipe(name).own_data} == set(TAKE_PICTURES)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"ca\nt", b"c\x1b[2Jat", "\u202etac".encode()])
@pytest.mark.parametrize("place", [b"", b"dog/"])
def test_names_that_cannot_be_shown_are_refused(tmp_path: Path, name: bytes, place: bytes) -> None:
    root = pictures(tmp_path / "p", "cat", "dog")
    shutil.copytree(root / "cat", os.fsdecode(os.fsencode(root) + b"/" + place + name))
    text = said(root)
    assert "expected names in UTF-8 without control characters, got b'" in text
    assert text.endswith("; rename it")
    assert text.isprintable()
