"""One trial serves all who share a folder, and a refusal is not for those who ask later."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import builders
import pytest

from fitserve_contract.repository import VersionPath
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.shared_trials import SharedTrials

WAIT_S = 30.0


class Counted:
    """Trials that are counted; they wait for the gate, and refuse where there is a reason."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.count = 0
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def try_out(self, _: VersionPath, __: Overrides) -> None:
        self.count += 1
        self.begun.set()
        assert self.gate.wait(WAIT_S)
        if self.refusal:
            raise LoadError(self.refusal)


def version(root: Path) -> VersionPath:
    return builders.bare_version(root / "repository", "m", 1, builders.scaled())


def shared(counted: Counted, root: Path) -> SharedTrials:
    folder = root / "shared"
    folder.mkdir(exist_ok=True)
    return SharedTrials(counted, folder)


def test_a_pass_serves_all_until_the_files_or_the_settings_change(tmp_path: Path) -> None:
    counted, path = Counted(), version(tmp_path)
    for _ in range(3):
        shared(counted, tmp_path).try_out(path, Overrides({}))
    assert counted.count == 1

    shared(counted, tmp_path).try_out(path, Overrides({"max_batch_size": 4}))
    assert counted.count == 2
    (path.folder / "model.onnx").write_bytes(builders.scaled(3.0))
    shared(counted, tmp_path).try_out(path, Overrides({}))
    assert counted.count == 3


def test_a_pass_is_not_for_files_that_only_look_like_those_that_were_tried(tmp_path: Path) -> None:
    counted, path = Counted(), version(tmp_path)
    weights = path.folder / "weights" / "w.bin"
    weights.parent.mkdir()
    for turn, content in enumerate((b"1234", b"5678"), 1):
        weights.write_bytes(content)
        os.utime(weights, ns=(0, 0))
        shared(counted, tmp_path).try_out(path, Overrides({}))
        assert counted.count == turn
    old = path.folder.stat()
    path.folder.rename(tmp_path / "away")
    version(tmp_path)
    os.utime(path.folder, ns=(old.st_atime_ns, old.st_mtime_ns))
    shared(counted, tmp_path).try_out(path, Overrides({}))
    assert counted.count == 3


def test_who_waits_takes_the_refusal_and_who_asks_later_has_it_tried_again(tmp_path: Path) -> None:
    counted, path = Counted("too large"), version(tmp_path)
    counted.gate.clear()
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(LoadError, match="too large") as refused:
            shared(counted, tmp_path).try_out(path, Overrides({}))
        said.append(str(refused.value))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert counted.begun.wait(WAIT_S)
    # The second waits for the lock that the first one holds: one file of the folder is open twice.
    while len([1 for fd in os.listdir("/proc/self/fd") if is_trial(fd)]) < 2:
        threading.Event().wait(0.001)
    counted.gate.set()
    for thread in threads:
        thread.join()
    assert (said, counted.count) == (["too large"] * 2, 1)

    ask()
    assert counted.count == 2


def is_trial(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".trial")
    except OSError:
        return False


def test_a_trial_that_died_leaves_no_verdict(tmp_path: Path) -> None:
    counted, path = Counted(), version(tmp_path)
    trials = shared(counted, tmp_path)
    trials.try_out(path, Overrides({}))
    (verdict,) = (tmp_path / "shared").iterdir()
    for torn in (b"", b'{"refusal": ""', b"[]", b'{"refusal": "", "ended_s": null}'):
        verdict.write_bytes(torn)
        before = counted.count
        trials.try_out(path, Overrides({}))
        assert counted.count == before + 1


def test_without_the_folder_everybody_tries_for_himself(tmp_path: Path) -> None:
    counted, path = Counted(), version(tmp_path)
    trials = SharedTrials(counted, tmp_path / "gone")
    for _ in range(2):
        trials.try_out(path, Overrides({}))
    assert counted.count == 2
