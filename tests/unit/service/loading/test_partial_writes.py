"""Whatever a copy of a version looks like while it is written, nothing but what it came to in the end is served.

The files, their stamps, the watcher and the reading are real; the clock, which is the file system's too, is simulated.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import builders
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fitserve_contract.repository import ChecksumError, VersionPath, checksum_text, version_path
from fitserve_service.errors import ServiceError
from fitserve_service.loading.load_errors import IncompleteError
from fitserve_service.loading.resting_files import RestingFiles
from fitserve_service.loading.version_files import MAX_ENTRIES, Marks, SeenFile, SeenFiles, see_files
from fitserve_service.loading.version_reader import VersionReader
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.reconciler import Reconciler
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import Session
from fitserve_service.signature import Signature
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import State

Files = dict[str, bytes]
Step = Callable[[], None]

LOOK_S = 1.0
_MOST_LOOKS = 6
"""What is whole is loaded by then."""


def nothing() -> None:
    """Leaves the disk as it is."""


class Immediate(Executor):
    """Does what it is handed at once."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class Disk:
    """A folder whose files are stamped by a clock of the test's."""

    folder: Path
    now_s: float = 1e6

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stamp(self, name: str) -> None:
        self.now_s += 1e-3
        at_ns = int(self.now_s * 1e9)
        for path in (self.folder / name, (self.folder / name).parent):
            if path.exists():
                os.utime(path, ns=(at_ns, at_ns))

    def write(self, name: str, at: int, part: bytes) -> None:
        path = self.path(name)
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.seek(at)
            file.write(part)
        self.stamp(name)

    def reserve(self, name: str, size: int) -> None:
        with open(self.path(name), "wb") as file:
            file.truncate(size)
        self.stamp(name)

    def cut(self, name: str, size: int) -> None:
        os.truncate(self.path(name), size)
        self.stamp(name)

    def rename(self, old: str, new: str) -> None:
        os.replace(self.path(old), self.path(new))
        self.stamp(new)

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self.stamp(name)


@dataclass
class Reader:
    """A loader that reads every file as the real one does, and serves what it read."""

    names: tuple[str, ...]
    between: Step = nothing
    """Done after the first file was read: what a writer does meanwhile."""
    contents: dict[ServedVersion, Files] = field(default_factory=dict)

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:  # noqa: ARG002
        content: Files = {}
        with path.view() as folder:
            try:
                reader = VersionReader(folder)
                for name in self.names:
                    content[name] = reader.read(name, 1 << 20)
                    between, self.between = self.between, nothing
                    between()
            except (FileNotFoundError, ChecksumError) as error:
                raise IncompleteError(str(error)) from None
        session = cast(Session, SimpleNamespace(provider="none"))
        served = ServedVersion(
            path.model, path.version, session, Signature((), (), False), ModelConfig(), {}, None, b"", False
        )
        served.file_sums = reader.sums
        served.content_digest = sha256(repr(content).encode()).hexdigest()
        self.contents[served] = content
        return served


class World:
    """A watcher that looks when the test says so, at a disk that changes when the test says so."""

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.disk = Disk(root / "m" / "1")
        self.loader = Reader(names)
        self.registry = Registry()
        self.served: list[Files] = []
        self.outcomes: list[ServiceError | None] = []
        self.reconciler = Reconciler(
            RepositorySource(root), self.loader, self.registry, loaders=Immediate(), clock=lambda: self.disk.now_s
        )
        self.registry.subscribe(self._note)

    def look(self) -> None:
        self.disk.now_s += LOOK_S
        self.reconciler.reconcile_once()

    def look_until(self, wanted: Files) -> None:
        for _ in range(_MOST_LOOKS):
            if self.served[-1:] == [wanted] and self.registry.states("m") == {1: State.READY}:
                return
            self.look()
        raise AssertionError(f"not served: {self.registry.snapshot()}")

    def _note(self, model: str) -> None:
        for served in self.registry.served(model).values():
            content = self.loader.contents[served]
            if self.served[-1:] != [content]:
                self.served.append(content)


@contextmanager
def world(names: tuple[str, ...]) -> Iterator[World]:
    root = Path(tempfile.mkdtemp())
    try:
        yield World(root, names)
    finally:
        shutil.rmtree(root)


CONTENTS = st.dictionaries(
    st.sampled_from(["w.bin", "sub/w2.bin", "tokenizer.json"]), st.binary(min_size=1, max_size=9), max_size=3
)


@st.composite
def versions(draw: st.DrawFn) -> Files:
    files = {"model.onnx": draw(st.binary(min_size=1, max_size=9)), **draw(CONTENTS)}
    if draw(st.booleans()):
        sums = {name: sha256(content).hexdigest() for name, content in files.items()}
        files["SHA256SUMS"] = checksum_text(sums).encode()
    return files


def steps_of(data: st.DataObject, disk: Disk, name: str, content: bytes) -> list[Step]:
    """How one file is written: grown, reserved and filled, over the old one, or aside and renamed over it."""
    aside = f"{name}.tmp1"
    half = len(content) // 2
    way = data.draw(st.sampled_from(["grow", "reserve", "in place", "rename"]))
    if way == "rename":
        return [
            lambda: disk.write(aside, 0, content[:half]),
            lambda: disk.write(aside, half, content[half:]),
            lambda: disk.rename(aside, name),
        ]
    begin: list[Step] = [] if way == "in place" else [lambda: disk.reserve(name, len(content) * (way == "reserve"))]
    return [
        *begin,
        lambda: disk.write(name, 0, content[:half]),
        lambda: disk.write(name, half, content[half:]),
        lambda: disk.cut(name, len(content)),
    ]


def schedule(data: st.DataObject, disk: Disk, old: Files, new: Files) -> list[Step]:
    """All steps from one content to another: each file's in order, the files' among each other by chance."""
    lines = [steps_of(data, disk, name, content) for name, content in sorted(new.items())]
    lines += [[lambda name=name: disk.remove(name)] for name in sorted(old.keys() - new.keys())]  # type: ignore[misc]
    steps: list[Step] = []
    while any(lines):
        steps.append(data.draw(st.sampled_from([line for line in lines if line])).pop(0))
    return steps


def carry_out(data: st.DataObject, it: World, steps: list[Step]) -> None:
    """Makes the steps; looks come between some of them, and calls that load."""
    while steps:
        steps.pop(0)()
        is_looked_at: bool = data.draw(st.booleans())
        if steps and is_looked_at:
            it.look()
            if steps:
                # A writer that rests as long as a look takes cannot be told from one that has ended.
                steps.pop(0)()
        if steps and data.draw(st.integers(0, 3)) == 0:
            it.reconciler.load("m", it.outcomes.append)


# Without shrinking: a watcher that is wrong is found so in one example of a few, and shrinking those takes minutes.
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data(), versions(), versions())
def test_only_finished_content_is_ever_served(data: st.DataObject, first: Files, second: Files) -> None:
    for files in (first, second):
        # Both are read by the same names: those that one has not are empty there.
        for name in (first.keys() | second.keys()) - files.keys() - {"SHA256SUMS"}:
            files.setdefault(name, b"")
        if "SHA256SUMS" in files:
            sums = {name: sha256(content).hexdigest() for name, content in files.items() if name != "SHA256SUMS"}
            files["SHA256SUMS"] = checksum_text(sums).encode()
    names = tuple(sorted((first.keys() | second.keys()) - {"SHA256SUMS"}))
    wanted = [{name: files[name] for name in names} for files in (first, second)]
    with world(names) as it:
        carry_out(data, it, schedule(data, it.disk, {}, first))
        steps = schedule(data, it.disk, first, second)
        if data.draw(st.booleans()):
            # The next writer begins in the middle of the load, if it is still to come.
            it.loader.between = steps.pop(0)
            for _ in range(_MOST_LOOKS):
                if it.served or it.loader.between is nothing:
                    break
                it.look()
            else:
                raise AssertionError(f"not loaded: {it.registry.snapshot()}")
            begin, it.loader.between = it.loader.between, nothing
            begin()
        else:
            it.look_until(wanted[0])
        carry_out(data, it, steps)
        it.reconciler.load("m", it.outcomes.append)
        it.look_until(wanted[1])
        for _ in range(2):
            it.look()
        assert it.outcomes[-1] is None
        assert [content for content in it.served if content not in wanted] == []


@pytest.mark.parametrize("name", ["w.bin", "sub/w2.bin"])
@pytest.mark.parametrize("is_serving", [False, True])
def test_what_is_written_in_the_middle_of_a_load_is_not_served_with_what_was_read_before(
    tmp_path: Path, name: str, is_serving: bool
) -> None:
    it = World(tmp_path, ("model.onnx", name))
    old, new = ({"model.onnx": content, name: content} for content in (b"old", b"new"))
    if is_serving:
        for each in old:
            it.disk.write(each, 0, b"was")
        it.look_until({"model.onnx": b"was", name: b"was"})
    for each, content in old.items():
        it.disk.write(each, 0, content)
    it.loader.between = lambda: it.disk.write(name, 0, b"new")
    for _ in range(_MOST_LOOKS):
        if it.loader.between is nothing:
            break
        it.look()
    it.disk.write("model.onnx", 0, b"new")
    it.look_until(new)
    assert it.served[is_serving:] == [new]


@pytest.mark.parametrize("name", ["w.bin", "sub/w2.bin"])
def test_files_beside_the_model_are_watched_while_they_come_and_while_they_serve(tmp_path: Path, name: str) -> None:
    it = World(tmp_path, ("model.onnx", name))
    it.disk.write("model.onnx", 0, b"m")
    it.disk.write(name, 0, b"hal")
    it.look()
    for content in (b"halb", b"half"):
        it.disk.write(name, 0, content)
        it.look()
    it.look_until({"model.onnx": b"m", name: b"half"})
    it.disk.write(name, 0, b"full")
    it.look_until({"model.onnx": b"m", name: b"full"})
    assert [content[name] for content in it.served] == [b"half", b"full"]


def test_a_file_that_rests_with_a_hole_waits_longer(tmp_path: Path) -> None:
    """The disk's stamps are real here: what rests is compared by the real time of its last change."""
    it = World(tmp_path, ("model.onnx", "w.bin"))
    content = bytes(range(256)) * 256
    it.disk.write("model.onnx", 0, b"model")
    it.disk.reserve("w.bin", len(content))
    if os.stat(it.disk.path("w.bin")).st_blocks:
        pytest.skip("this file system keeps no holes")
    for _ in range(5):
        it.look()
    assert it.registry.states("m") == {1: State.PENDING}
    assert "file 'w.bin' has holes" in it.registry.model("m").versions[0].reason
    it.disk.write("w.bin", 0, content)
    it.look_until({"model.onnx": b"model", "w.bin": content})
    assert len(it.served) == 1


def test_a_call_waits_for_files_that_still_change_and_then_says_so(tmp_path: Path) -> None:
    it = World(tmp_path, ("model.onnx",))
    it.disk.write("model.onnx", 0, b"one")
    it.look_until({"model.onnx": b"one"})
    it.disk.write("model.onnx", 0, b"half")
    it.look()
    it.reconciler.load("m", it.outcomes.append)
    for size in range(28):
        it.disk.write("model.onnx", 0, b"x" * (size + 5))
        it.look()
    assert it.outcomes == []
    for size in range(5):
        it.disk.write("model.onnx", 0, b"x" * (size + 40))
        it.look()
    (error,) = it.outcomes
    assert error is not None
    assert "version 1: its files still change" in error.message
    assert "version 1, as loaded before, goes on answering" in error.message
    it.reconciler.load("m", it.outcomes.append)
    it.look_until({"model.onnx": b"x" * 44})
    it.look()
    assert it.outcomes[1:] == [None]


def test_of_many_models_each_has_its_turn_and_those_that_move_have_every(tmp_path: Path) -> None:
    it = World(tmp_path, ("model.onnx",))
    loads = it.reconciler._loads
    few = [f"m{number}" for number in range(256)]
    assert loads.in_turn(few) == sorted(few)
    many = [f"m{number}" for number in range(600)]
    loads._asked.add(("m7", 1))
    turns = [loads.in_turn(many) for _ in range(3)]
    assert set().union(*turns) == set(many)
    assert all("m7" in turn and len(turn) == len(set(turn)) <= 257 for turn in turns)


def test_while_a_version_is_copied_a_server_that_starts_serves_the_one_below(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    it = World(tmp_path, ("model.onnx",))
    below, above = it.disk, Disk(tmp_path / "m" / "2")
    below.write("model.onnx", 0, b"one")
    for size in range(6):
        above.write("model.onnx", size, b"x")
        it.look()
        is_settled = it.reconciler.wait_until_settled(0.0)
        assert is_settled == (it.registry.states("m").get(1) is State.READY)
    assert it.registry.states("m") == {1: State.READY, 2: State.PENDING}
    assert caplog.messages.count("waiting: m version 2: its files still change") == 1
    it.look()
    it.look()
    it.look()
    assert it.registry.states("m") == {1: State.UNLOADED, 2: State.READY}


def test_a_version_that_rests_is_the_only_one_loaded_at_the_start(tmp_path: Path) -> None:
    it = World(tmp_path, ("model.onnx",))
    it.disk.write("model.onnx", 0, b"one")
    Disk(tmp_path / "m" / "2").write("model.onnx", 0, b"two")
    for _ in range(4):
        it.look()
    assert it.served == [{"model.onnx": b"two"}]


@pytest.mark.parametrize(("tick_ns", "rests_s"), [(1, 1.0), (1_000_000_000, 3.0)])
def test_files_stamped_with_whole_seconds_rest_for_longer(tmp_path: Path, tick_ns: int, rests_s: float) -> None:
    """What is written twice within one tick of a file system's clock has one stamp."""
    at_ns = (10**18 + 1) // tick_ns * tick_ns
    files = SeenFiles(Marks(1, 2, 3, at_ns, at_ns), (SeenFile("model.onnx", Marks(1, 3, 5, at_ns, at_ns)),))
    now_s = [0.0]
    resting = RestingFiles(lambda *_: files, lambda *name: version_path(tmp_path, *name), clock=lambda: now_s[0])
    assert not resting.look(("m", 1)).is_at_rest
    while not resting.look(("m", 1)).is_at_rest:
        now_s[0] += 1.0
        assert now_s[0] < 9.0
    assert now_s[0] == rests_s


def test_coarse_stamps_tell_nothing_of_files_that_hold_their_checksums_either(tmp_path: Path) -> None:
    path = builders.publish_version(tmp_path, "m", builders.identity())
    now_s = [0.0]

    def see(*name: Any) -> SeenFiles:
        """Sees the files as a file system does that counts whole seconds."""
        found = see_files(version_path(tmp_path, *name))
        entries = [SeenFile(each.name, each.marks._replace(changed_ns=10**18)) for each in found.entries]
        return SeenFiles(found.folder, tuple(entries))

    resting = RestingFiles(see, lambda *_: path, clock=lambda: now_s[0])
    assert resting.look(("m", 1)).awaited
    now_s[0] = 3.0
    assert resting.look(("m", 1)).is_at_rest
    assert (
        not RestingFiles(lambda *name: see_files(version_path(tmp_path, *name)), lambda *_: path).look(("m", 1)).awaited
    )


def test_what_is_no_version_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    it = World(tmp_path, ("model.onnx",))
    it.disk.write("model.onnx", 0, b"one")
    for number in range(MAX_ENTRIES):
        it.disk.path(f"many/{number}").touch()
    it.look()
    assert it.registry.states("m") == {1: State.FAILED}
    assert "at most 4096 files" in it.registry.model("m").versions[0].reason
    shutil.rmtree(it.disk.path("many"))
    it.look_until({"model.onnx": b"one"})
