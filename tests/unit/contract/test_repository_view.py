"""Links of a repository are followed within it, as `os.path.realpath` says, and nowhere else, whoever swaps them."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract import folder_view
from fitserve_contract.files import UnsafeFileError
from fitserve_contract.folder_view import FolderView
from fitserve_contract.repository import (
    MODEL_FILE,
    ChecksumError,
    checksum_text,
    checksums,
    models,
    publishing,
    remove_leftovers,
    verify_checksums,
    version_path,
    versions,
)
from fitserve_contract.repository_view import (
    LinkError,
    OutsideLinkError,
    RepositoryChangedError,
    RepositoryRoot,
    RepositoryView,
    read_settled,
    root_of,
)

NAMES = ("a", "b", "..d")
PLACES = ("", "a", "a/a", "b")
CONTENT_BYTES = 200
MOST_CHECKS = 100_000


def read(root: Path | RepositoryRoot, relative: str) -> bytes:
    return read_settled(root, lambda view: view.read(relative, max_bytes=CONTENT_BYTES))


def refusal(root: Path | RepositoryRoot, relative: str) -> str:
    with pytest.raises(LinkError) as caught:
        read(root, relative)
    return str(caught.value)


def file(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode() if content is None else content)
    return path


def link(path: Path, target: str | Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


texts = st.builds(
    lambda start, parts: start + "/".join(parts),
    st.sampled_from(["", "", "", "{root}/", "{outside}/", "/", "./", "../"]),
    st.lists(st.sampled_from([*NAMES, "..", "..", ".", "f", "root", "outside", "alias"]), min_size=1, max_size=4),
)
trees = st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from([*NAMES, "f"]), texts), max_size=7)


def grown(base: Path, links: list[tuple[str, str, str]]) -> Path:
    """Makes a repository with files and links, folders outside of it, and a link that is another name of it."""
    root = base / "root"
    for place in PLACES:
        file(root / place / "f")
    file(base / "outside" / "a" / "f")
    file(base / "outside" / "f")
    link(base / "outside" / "b", "../root/a")
    link(base / "alias", "root")
    for place, name, text in links:
        path = root / place / name
        if not os.path.lexists(path) and path.parent.is_dir():
            link(path, text.format(root=root, outside=base / "outside"))
    return root


@settings(deadline=None, max_examples=70)
@given(trees, st.booleans())
def test_what_is_read_is_what_realpath_says_where_it_stays_within(
    links: list[tuple[str, str, str]], is_outside_allowed: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(os.path.realpath(folder))
        root = grown(base, links)
        places = [root, base / "outside"] if is_outside_allowed else [root]
        repository = RepositoryRoot(base / "alias", base / "outside" if is_outside_allowed else None)
        for parts in [*product([*NAMES, "f"], repeat=1), *product(NAMES, [*NAMES, "f"]), *product(NAMES, NAMES, "f")]:
            relative = "/".join(parts)
            expected = None
            with contextlib.suppress(OSError):
                real = Path(os.path.realpath(root / relative, strict=True))
                if any(real.is_relative_to(place) for place in places) and real.is_file():
                    expected = real.read_bytes()
            found = None
            with contextlib.suppress(OSError, UnsafeFileError):
                found = read(repository, relative)
            assert found == expected, relative


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "git-sync": lambda root: (file(root / "store" / "rev-a" / "f"), link(root / "m", "store/rev-a")),
    "kubernetes": lambda root: (
        file(root / "m" / "..2026" / "f"),
        link(root / "m" / "..data", "..2026"),
        link(root / "m" / "f", "..data/f"),
    ),
    "hugging face": lambda root: (file(root / "hub" / "blobs" / "0a"), link(root / "m" / "f", "../hub/blobs/0a")),
    "dvc, absolute": lambda root: (file(root / ".dvc" / "0a"), link(root / "m" / "f", root / ".dvc" / "0a")),
    "by its other name": lambda root: (
        file(root / "x"),
        link(root.parent / "other", root.name),
        link(root / "m" / "f", root.parent / "other" / "x"),
    ),
    "out and in again": lambda root: (file(root / "x"), link(root / "m" / "f", f"../../{root.name}/x")),
    "chain": lambda root: (
        file(root / "x"),
        [link(root / f"l{number}", f"l{number + 1}") for number in range(30)],
        link(root / "l30", "x"),
        link(root / "m" / "f", "../l0"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_that_stay_within_are_followed(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "repository"
    LAYOUTS[layout](root)

    assert read(root, "m/f") == (root / "m" / "f").read_bytes()


def test_a_link_that_leaves_is_refused_by_name_with_the_cure_and_the_cure_helps(tmp_path: Path) -> None:
    root, outside = tmp_path / "repository", tmp_path / "outside"
    file(outside / "blob", b"x")
    link(root / "m" / "2", outside)
    link(root / "m" / "3" / "f", "../../next")
    link(root / "next", "../outside/blob")

    expected = rf"link 'm/2' leads to '{outside}', outside of the repository \({outside}/blob\); move it inside, or .*"
    assert re.fullmatch(expected, refusal(root, "m/2/blob"))
    said = refusal(root, "m/3/f")
    assert said.startswith(f"link 'next' leads to '../outside/blob', outside of the repository ({outside}/blob); ")
    cure = re.search(r"--follow-links (\S+)$", said)
    assert cure is not None
    assert read(RepositoryRoot(root, Path(cure[1])), "m/3/f") == b"x"
    assert read(RepositoryRoot(root, Path(cure[1])), "m/2/blob") == b"x"
    # That folder alone: not the one that holds it.
    file(tmp_path / "outside2" / "f")
    link(root / "m" / "4", "../../outside2")
    with pytest.raises(OutsideLinkError):
        read(RepositoryRoot(root, Path(cure[1])), "m/4/f")


def test_what_is_said_of_links_is_one_line_that_can_be_sent(tmp_path: Path) -> None:
    """Names are any bytes: what is no text, moves the cursor or breaks the line is escaped, and the cure is quoted."""
    root, outside = tmp_path / "repository", os.fsencode(tmp_path) + b"/out side\xff\n\x1b[2J"
    os.makedirs(outside)
    root.mkdir()
    os.symlink(outside, os.fsencode(root) + b"/m")
    os.symlink(b"gone\xfe\n", os.fsencode(root) + b"/n")

    for name in ("m", "n"):
        assert refusal(root, f"{name}/f").isprintable()
    assert refusal(root, "m").endswith(r"--follow-links '" + f"{tmp_path}" + r"/out side\udcff\n\x1b[2J'")


def test_loops_and_links_to_nothing_are_refused_by_name(tmp_path: Path) -> None:
    link(tmp_path / "a", "b")
    link(tmp_path / "b", "a")
    link(tmp_path / "m" / "f", "../a/x")
    link(tmp_path / "m" / "g", "gone/f")
    file(tmp_path / "file")
    link(tmp_path / "m" / "1", "../file")

    assert re.fullmatch(
        r"link '[ab]' leads to '[ab]', in a circle or through more than 40 links", refusal(tmp_path, "m/f")
    )
    assert (
        refusal(tmp_path, "m/g") == "link 'm/g' leads to 'gone/f', which is not there; put it there, or remove the link"
    )
    assert refusal(tmp_path, "m/1/f") == "link 'm/1' leads to '../file', which is no folder; expected a folder"
    for absent in ("m/absent", "absent/f"):
        with pytest.raises(FileNotFoundError):
            read(tmp_path, absent)


def test_only_regular_files_with_one_name_are_read(tmp_path: Path) -> None:
    file(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.link(file(tmp_path / "twice"), tmp_path / "hard")
    for name in ("folder", "pipe", "twice", "hard"):
        link(tmp_path / f"to-{name}", name)
        for path in (name, f"to-{name}"):
            with pytest.raises(UnsafeFileError, match=f"file '{path}': expected (a regular file|1 hard link), got"):
                read(tmp_path, path)


def test_the_root_may_be_a_link_that_is_flipped_and_a_folder_that_is_replaced(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        file(tmp_path / name / "f", name.encode())
    current = link(tmp_path / "current", "a")
    with root_of(current).view() as view:
        link(tmp_path / "next", "b").rename(current)
        # One look is of one repository.
        assert view.read("f", max_bytes=1) == b"a"
        with pytest.raises(RepositoryChangedError):
            view.read("absent", max_bytes=1)
    assert read(current, "f") == b"b"
    (tmp_path / "b").rename(tmp_path / "old")
    (tmp_path / "c").rename(tmp_path / "b")
    assert read(current, "f") == b"c"


def swapped(swap: Callable[[], object], check: Callable[[], object], is_enough: Callable[[], bool]) -> None:
    """Checks until enough was seen, while another thread swaps without a pause."""
    is_done = threading.Event()

    def work() -> None:
        while not is_done.is_set():
            swap()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(MOST_CHECKS):
            check()
            if is_enough():
                return
        raise AssertionError
    finally:
        is_done.set()
        thread.join()


@pytest.mark.parametrize("name", ["m", "m/1", "m/1/f", "linked", "store", "store/f"])
@pytest.mark.parametrize("target", ["{outside}", "{other}"])
def test_a_link_put_in_the_place_of_what_was_none_is_not_followed(tmp_path: Path, name: str, target: str) -> None:
    root = tmp_path / "root"
    file(root / "m" / "1" / "f", b"inside")
    file(root / "store" / "f", b"stored")
    link(root / "linked", "store")
    for place in (tmp_path / "outside", root / "other"):
        for path in ("f", "1/f"):
            file(place / path, b"secret")
    relative = "linked/f" if name in ("linked", "store", "store/f") else "m/1/f"
    with root_of(root).view() as view:
        before = view.real_path(relative)
        (root / name).rename(tmp_path / "held")
        text = target.format(outside=tmp_path / "outside", other=root / "other")
        link(root / name, f"{text}/f" if name.endswith("f") else text)
        if name == "linked":
            # Its text was read already: one look is of one state.
            assert view.read(relative, max_bytes=9) == b"stored"
            assert view.real_path(relative) == before
        else:
            with pytest.raises(RepositoryChangedError):
                view.read(relative, max_bytes=9)


def test_whoever_swaps_files_folders_and_links_gets_nothing_read_from_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    file(root / "m" / "1" / "f", b"inside")
    for path in ("f", "1/f"):
        file(outside / path, b"secret")
    seen: Counter[bytes | None] = Counter()
    turns = iter(range(10**9))

    def swap() -> None:
        """Puts a link in the place of a name, or takes it away: as long the one as the other."""
        turn = next(turns)
        name = ("m", "m/1", "m/1/f")[turn // 2 % 3]
        if turn % 2:
            (root / name).unlink()
            (tmp_path / "held").rename(root / name)
        else:
            (root / name).rename(tmp_path / "held")
            link(root / name, outside / "f" if name.endswith("f") else outside)

    def check() -> None:
        try:
            seen[read(root, "m/1/f")] += 1
        except (OSError, UnsafeFileError):
            seen[None] += 1

    swapped(swap, check, lambda: min(seen[b"inside"], seen[None]) >= 50)
    assert set(seen) == {b"inside", None}


@pytest.mark.parametrize("is_removed", [False, True])
def test_files_behind_a_link_that_is_flipped_are_of_one_state(tmp_path: Path, is_removed: bool) -> None:
    """Kubernetes flips `..data` and then removes the old folder; two files are never of two of them."""
    version, numbers = tmp_path / "m" / "1", iter(range(10**9))
    pairs: list[tuple[bytes, bytes]] = []

    def swap() -> None:
        number = next(numbers)
        for name in ("f", "g"):
            file(version / f"..{number}" / name, b"%d" % number)
        link(version / "..new", f"..{number}").rename(version / "..data")
        if is_removed and number:
            shutil.rmtree(version / f"..{number - 1}")

    def both(view: RepositoryView) -> tuple[bytes, bytes]:
        folder = FolderView(view, "m/1")
        return folder.read("f", max_bytes=9), folder.read("g", max_bytes=9)

    def check() -> None:
        with contextlib.suppress(RepositoryChangedError):
            pairs.append(read_settled(tmp_path, both))

    swap()
    for name in ("f", "g"):
        link(version / name, f"..data/{name}")
    swapped(swap, check, lambda: len(set(pairs)) >= 50)
    assert all(one == other for one, other in pairs)


def published(root: Path, version: str, folder: Path, content: bytes) -> None:
    file(folder / MODEL_FILE, content)
    file(folder / "SHA256SUMS", checksum_text(checksums(folder)).encode())
    link(root / "m" / version, folder)


def test_versions_and_models_may_be_links_and_wrong_ones_are_named(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    published(root, "2", root / "store" / "abc", b"two")
    published(root, "3", tmp_path / "outside", b"three")
    link(root / "m" / "4", "gone")
    link(root / "m" / "latest", "2")
    (root / "m" / "1").mkdir()
    link(root / "n", "m")
    link(root / "far", tmp_path / "outside")
    link(root / "gone", "nowhere")
    file(root / "notes")
    link(root / "README", "notes")
    link(root / "LICENSE", file(tmp_path / "license"))
    link(root / ".hidden", "m")

    assert models(root) == ["far", "gone", "m", "n", "store"]
    assert versions(root, "m") == versions(root, "n") == [1, 2, 3, 4]
    for model, text in (("far", "outside of the repository"), ("gone", "'nowhere', which is not there")):
        with pytest.raises(LinkError, match=f"link '{model}' leads to .*{text}"):
            versions(root, model)
    for model in ("m", "n"):
        with version_path(root, model, 2).view() as folder:
            verify_checksums(folder)
            assert folder.read(MODEL_FILE, max_bytes=9) == b"two"
    with version_path(RepositoryRoot(root, tmp_path / "outside"), "m", 3).view() as folder:
        verify_checksums(folder)


def test_checksums_are_of_the_files_behind_links_and_pass_over_kubernetes_own_names(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    for name in (MODEL_FILE, "weights/w"):
        file(version / "..2026" / name, b"x")
    link(version / "..data", "..2026")
    link(version / MODEL_FILE, f"..data/{MODEL_FILE}")
    link(version / "weights", "..data/weights")
    link(version / "itself", ".")
    with version_path(tmp_path, "m", 1).view() as folder:
        assert sorted(checksums(folder)) == [MODEL_FILE, "weights/w"]
    file(version / "SHA256SUMS", checksum_text(dict.fromkeys((MODEL_FILE, "weights/w"), "0" * 64)).encode())
    with version_path(tmp_path, "m", 1).view() as folder, pytest.raises(ChecksumError, match=f"file '{MODEL_FILE}'"):
        verify_checksums(folder)


def test_links_that_multiply_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_view, "MAX_FILES", 300)
    for number in range(4):
        for name in range(10):
            link(tmp_path / "m" / "1" / f"d{number}" / f"{name}", f"../d{number + 1}")
    (tmp_path / "m" / "1" / "d4").mkdir()
    with version_path(tmp_path, "m", 1).view() as folder, pytest.raises(UnsafeFileError, match="at most 300 files"):
        folder.file_names()


@pytest.fixture
def linked_model(tmp_path: Path) -> Iterator[Path]:
    """Gives a repository with model `m`, a link to a folder that others keep; nothing may change in it."""
    kept = tmp_path / "kept"
    file(kept / "1" / MODEL_FILE, b"x")
    (kept / ".staging-old").mkdir()
    before = sorted(os.listdir(kept))
    (tmp_path / "repository").mkdir()
    link(tmp_path / "repository" / "m", kept)
    yield tmp_path / "repository"
    assert sorted(os.listdir(kept)) == before


def test_nothing_is_published_or_removed_through_a_link(linked_model: Path) -> None:
    assert remove_leftovers(linked_model, older_than_s=0, now_s=2**40) == []
    with (
        pytest.raises(LinkError, match=r"link 'm' leads to '.*kept', and nothing is written through links; publish"),
        publishing(linked_model, "m"),
    ):
        raise AssertionError


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    file(tmp_path / "m" / "f")
    link(tmp_path / "l", "m/f")
    link(tmp_path / "out", "/etc")
    before = len(os.listdir("/proc/self/fd"))
    for relative in ("m/f", "l", "out/hostname", "m", "absent", "m/f/x"):
        with contextlib.suppress(OSError, UnsafeFileError):
            read(RepositoryRoot(tmp_path, tmp_path), relative)
    assert len(os.listdir("/proc/self/fd")) <= before
