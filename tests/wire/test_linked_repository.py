"""Repositories of links, as git-sync, Kubernetes, DVC and Hugging Face keep them, are served while links flip."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests import builders
from tests.wire.serving import serving, url
from tests.wire.test_workers import wait_until

from fitserve_client import Client
from fitserve_client.control import set_label
from fitserve_client.errors import FitserveError

Change = Callable[[float], None]


def written(path: Path, factor: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(builders.scaled(factor))
    return path


def pointed(link: Path, target: str | Path) -> None:
    """Makes a link, or flips it, in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_name(f".{link.name}-next")
    aside.symlink_to(target)
    aside.rename(link)


def flipped_root(base: Path) -> Change:
    def change(factor: float) -> None:
        written(base / f"rev-{factor:g}" / "models" / "m" / "1" / "model.onnx", factor)
        pointed(base / "current", f"rev-{factor:g}")

    (base / "repository").symlink_to("current/models")
    return change


def replaced_root(base: Path) -> Change:
    def change(factor: float) -> None:
        written(base / "new" / "m" / "1" / "model.onnx", factor)
        if (base / "repository").exists():
            (base / "repository").rename(base / "old")
        (base / "new").rename(base / "repository")

    return change


def config_map(base: Path) -> Change:
    version, used = base / "repository" / "m" / "1", list[float]()

    def change(factor: float) -> None:
        written(version / f"..{factor:g}" / "model.onnx", factor)
        pointed(version / "..data", f"..{factor:g}")
        if used:
            shutil.rmtree(version / f"..{used[-1]:g}")
        used.append(factor)

    pointed(version / "model.onnx", "..data/model.onnx")
    return change


def hub_cache(base: Path) -> Change:
    hub = base / "repository" / "hub"

    def change(factor: float) -> None:
        written(hub / "blobs" / f"{factor:g}", factor)
        pointed(hub / "snapshots" / f"{factor:g}" / "model.onnx", f"../../blobs/{factor:g}")
        pointed(base / "repository" / "m" / "1", f"../hub/snapshots/{factor:g}")

    return change


def absolute_blobs(base: Path) -> Change:
    def change(factor: float) -> None:
        blob = written(base / "repository" / ".dvc" / "cache" / f"{factor:g}", factor)
        pointed(base / "repository" / "m" / "1" / "model.onnx", blob)

    return change


def linked_model(base: Path) -> Change:
    def change(factor: float) -> None:
        written(base / "repository" / ".store" / f"{factor:g}" / "1" / "model.onnx", factor)
        pointed(base / "repository" / "m", f".store/{factor:g}")

    return change


LAYOUTS = [flipped_root, replaced_root, config_map, hub_cache, absolute_blobs, linked_model]


def answer(client: Client, model: str = "m") -> float:
    return float(client.predict(model, np.ones((1, 2), np.float32)).array[0, 0])


def reasons(client: Client) -> dict[tuple[str, int], str]:
    return {(model.name, version.version): version.reason for model in client.models() for version in model.versions}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_links_are_served_and_followed_while_they_are_flipped(tmp_path: Path, layout: Callable[[Path], Change]) -> None:
    change = layout(tmp_path)
    change(2.0)
    with serving(tmp_path / "repository") as server, Client(url(server)) as client:
        assert answer(client) == 2.0
        change(3.0)
        wait_until(lambda: answer(client) == 3.0)


@pytest.mark.parametrize("layout", [flipped_root, replaced_root], ids=lambda layout: layout.__name__)
def test_trials_see_what_took_the_place_of_the_repository(tmp_path: Path, layout: Callable[[Path], Change]) -> None:
    """A process that gave up every other folder when it started may read nothing of the new one."""
    change = layout(tmp_path)
    change(2.0)
    with serving(tmp_path / "repository", canary="auto") as server, Client(url(server)) as client:
        change(3.0)
        wait_until(lambda: answer(client) == 3.0)


def test_links_that_cannot_be_followed_are_told_and_the_version_before_answers(tmp_path: Path) -> None:
    root, outside = tmp_path / "repository", tmp_path / "outside"
    written(root / "m" / "1" / "model.onnx", 2.0)
    written(outside / "model.onnx", 3.0)
    pointed(root / "m" / "2", outside)
    pointed(root / "m" / "3", "gone")
    pointed(root / "m" / "4", "4")
    pointed(root / "m" / "5", "1/model.onnx")
    with serving(root) as server, Client(url(server)) as client:
        expected = {
            2: f"link 'm/2' leads to '{outside}', outside of the repository ({outside}/",
            3: "link 'm/3' leads to 'gone', which is not there",
            4: "link 'm/4' leads to '4', in a circle",
            5: "link 'm/5' leads to '1/model.onnx', which is no folder",
        }
        wait_until(lambda: all(text in reasons(client).get(("m", number), "") for number, text in expected.items()))
        assert reasons(client)["m", 2].endswith(f"--follow-links {outside}")
        assert answer(client) == 2.0
        pointed(root / "m" / "3", "1")
        wait_until(lambda: not reasons(client)["m", 3])


@pytest.mark.parametrize("canary", ["auto", "off"])
def test_one_place_outside_may_be_allowed(tmp_path: Path, canary: str) -> None:
    pointed(tmp_path / "repository" / "m" / "1", written(tmp_path / "store" / "a" / "model.onnx", 2.0).parent)
    with (
        serving(tmp_path / "repository", follow_links=tmp_path / "store", canary=canary) as server,
        Client(url(server)) as client,
    ):
        assert answer(client) == 2.0


def test_labels_behind_links_are_read_and_not_moved(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    for version in (1, 2):
        written(root / ".store" / "m" / f"{version}" / "model.onnx", float(version))
    (root / ".store" / "m" / "labels.json").write_text('{"stable": 1}')
    pointed(root / "m", ".store/m")
    with serving(root) as server, Client(url(server)) as client:
        wait_until(lambda: answer(client) == 1.0)
        with pytest.raises(FitserveError, match="symbolic link"):
            client.run(set_label("m", "stable", 2, expected=1))
    assert sorted(path.name for path in (root / ".store" / "m").iterdir()) == ["1", "2", "labels.json"]
