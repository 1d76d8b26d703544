"""What a model does to the process that tries it out, it does to nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import onnxruntime
import psutil
import pytest
from onnx import helper
from tests.wire.serving import serving

from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import VersionPath
from fitserve_service import canary_trials
from fitserve_service.canary_trials import Canaries, Terms
from fitserve_service.loading.load_errors import LoadEndedError, LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.version_policy import State

NO_OVERRIDES = Overrides({})


@contextmanager
def canaries(
    root: Path, limit_s: float | None = 30.0, terms: Terms | None = None, memory_bytes: int = 0
) -> Iterator[Canaries]:
    made = Canaries(root, limit_s=limit_s, is_final=True, memory_bytes=memory_bytes, terms=terms)
    try:
        yield made
    finally:
        made.close()


def memory_bomb() -> bytes:
    """x -> y = x + the sum of a terabyte that the graph makes."""
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["bomb"]),
        helper.make_node("ReduceSum", ["bomb"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    size = {"size": np.array([2**18, 2**19, 2, 1], np.int64)}
    return builders.model(nodes, [builders.value("x", (1, 1, 1, 1))], [builders.value("y", (1, 1, 1, 1))], size)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if is_canary(child)}


def is_canary(process: psutil.Process) -> bool:
    """Whether a child tries models out; one that has died meanwhile does not."""
    try:
        return "fitserve_service.canary" in process.cmdline()
    except psutil.Error:
        return False


def version_with_a_variant(root: Path, name: str, variant: bytes) -> VersionPath:
    """A proved version that doubles, with `model.int8.onnx` beside it, said to be twice as fast."""
    path = builders.certified_version(root, name, builders.scaled(), {"x": np.ones((1, 2), np.float32)})
    manifest = read_manifest(path.folder)
    assert manifest is not None
    record = {"tolerance": {"per_output": {"y": 0.5}}}
    entry = {"variant": "int8", "device": "cpu", "speed": [{"ratio": 2.0}], "verification": record}
    (path.folder / "model.int8.onnx").write_bytes(variant)
    described = replace(manifest, files={**manifest.files, "model.int8.onnx": entry})
    builders.rewrite(path, "manifest.json", described.to_bytes())
    return path


def kill_canaries_of(trial: threading.Thread, count: int) -> None:
    """Kills the first processes that try something out, each once."""
    seen: set[int] = set()
    while trial.is_alive() and len(seen) < count:
        for pid in children() - seen:
            seen.add(pid)
            os.kill(pid, signal.SIGSEGV)


def test_good_models_pass_one_process(tmp_path: Path) -> None:
    paths = [builders.bare_version(tmp_path, f"m{index}", 1, builders.scaled(index)) for index in range(5)]
    with canaries(tmp_path) as made:
        made.try_out(paths[0], NO_OVERRIDES)
        first = children()
        for path in paths[1:]:
            made.try_out(path, Overrides({"max_batch_size": 4, "device": "cuda", "batch_size_buckets": (1, 4)}))
        assert children() == first
        assert len(first) == 1
    assert not children()


def test_a_refusal_is_in_the_loaders_words(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, b"garbage")
    with canaries(tmp_path) as made, pytest.raises(LoadError, match=r"model\.onnx"):
        made.try_out(path, NO_OVERRIDES)


def test_a_trial_that_the_server_ends_says_nothing_of_the_model(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "endless", 1, builders.endless())
    errors: list[BaseException] = []

    def try_out() -> None:
        try:
            made.try_out(path, NO_OVERRIDES)
        except BaseException as error:
            errors.append(error)

    with canaries(tmp_path) as made:
        trial = threading.Thread(target=try_out)
        trial.start()
        while trial.is_alive() and not any(psutil.Process(pid).cpu_times().user > 0.5 for pid in children()):
            pass
        made.close()
        trial.join()
        try_out()
    assert [type(error) for error in errors] == [LoadEndedError, LoadEndedError]


def test_what_asks_all_processes_of_a_server_to_end_leaves_trials_to_the_server(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    with canaries(tmp_path) as made:
        made.try_out(path, NO_OVERRIDES)
        (pid,) = children()
        for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, asked)
        made.try_out(path, NO_OVERRIDES)
        assert children() == {pid}


def test_an_endless_model_is_ended_and_the_next_one_passes(tmp_path: Path) -> None:
    endless = builders.bare_version(tmp_path, "endless", 1, builders.endless())
    good = builders.bare_version(tmp_path, "good", 1, builders.scaled())
    with canaries(tmp_path, limit_s=3.0) as made:
        with pytest.raises(LoadError, match=r"within 3 s each, and had to end it: .*--canary-limit-s 12$"):
            made.try_out(endless, NO_OVERRIDES)
        assert not children()
        made.try_out(good, NO_OVERRIDES)


@pytest.mark.slow
def test_a_slow_model_has_its_time_for_each_run_not_for_all(tmp_path: Path) -> None:
    """Runs of one row fit into the limit; the probe's eight rows at once do not, and have eight times as long."""
    limit_s = 2.0
    probe = {"x": np.ones((8, 2), np.float32)}
    path = builders.certified_version(tmp_path, "m", builders.scaled(), probe)
    builders.rewrite(path, "model.onnx", builders.slow_rows(trips_in(limit_s / 4)))
    begin_s = time.monotonic()
    with canaries(tmp_path, limit_s=limit_s) as made:
        made.try_out(path, NO_OVERRIDES)
    assert time.monotonic() - begin_s > limit_s


def trips_in(run_s: float) -> int:
    """Counts the rounds of `builders.slow_rows` in a time, on one thread as a trial runs at first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(builders.slow_rows(1000), options)
    begin_s = time.monotonic()
    session.run(None, {"x": np.ones((1, 2), np.float32)})
    return int(1000 * run_s / (time.monotonic() - begin_s))


def test_a_memory_bomb_is_refused_with_the_bound_and_its_setting(tmp_path: Path) -> None:
    bomb = builders.bare_version(tmp_path, "bomb", 1, memory_bomb())
    expected = r"three quarters of what is free \(.* GiB\), and it needs more: .*Expand.*--canary-memory-bytes \d+$"
    with canaries(tmp_path) as made, pytest.raises(LoadError, match=expected):
        made.try_out(bomb, NO_OVERRIDES)


def wide() -> bytes:
    """x FP32 (1, 4) -> y: the sum of 300 MB that the graph makes, twice."""
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["wide"]),
        helper.make_node("Mul", ["wide", "wide"], ["squares"]),
        helper.make_node("ReduceSum", ["squares"], ["y"], keepdims=0),
    ]
    size = {"size": np.array([18_750_000, 4], np.int64)}
    return builders.model(nodes, [builders.value("x", (1, 4))], [builders.value("y", ())], size)


def test_a_model_that_needs_more_than_usual_is_tried_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary_trials, "_MEMORY_BYTES", 256 << 20)
    path = builders.bare_version(tmp_path, "wide", 1, wide())
    with canaries(tmp_path) as made:
        made.try_out(path, NO_OVERRIDES)


def test_the_setting_bounds_the_memory_of_a_trial(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "wide", 1, wide())
    expected = r"in 0\.2 GiB of memory, as --canary-memory-bytes says, .*--canary-memory-bytes 536870912$"
    with canaries(tmp_path, memory_bytes=256 << 20) as made:
        with pytest.raises(LoadError, match=expected):
            made.try_out(path, NO_OVERRIDES)
        made.try_out(builders.bare_version(tmp_path, "good", 1, builders.scaled()), NO_OVERRIDES)


def test_without_a_limit_the_machine_sets_it(tmp_path: Path) -> None:
    with canaries(tmp_path, limit_s=None) as made:
        made.try_out(builders.bare_version(tmp_path, "m", 1, builders.scaled()), NO_OVERRIDES)


def test_a_model_that_kills_its_process_is_told_apart_from_its_neighbours(tmp_path: Path) -> None:
    good = builders.bare_version(tmp_path, "good", 1, builders.scaled())
    deadly = builders.bare_version(tmp_path, "deadly", 1, builders.endless())
    outcome: list[BaseException] = []

    def try_deadly(made: Canaries) -> None:
        try:
            made.try_out(deadly, NO_OVERRIDES)
        except LoadError as error:
            outcome.append(error)

    with canaries(tmp_path) as made:
        made.try_out(good, NO_OVERRIDES)
        trial = threading.Thread(target=try_deadly, args=(made,))
        trial.start()
        # The first that it kills had tried another before; only the second death is its own.
        kill_canaries_of(trial, 2)
        trial.join()
        made.try_out(good, NO_OVERRIDES)
    assert "SIGSEGV" in str(outcome[0])


def test_what_is_tried_out_in_a_process_that_died_of_others_is_tried_again(tmp_path: Path) -> None:
    good = builders.bare_version(tmp_path, "good", 1, builders.scaled())
    with canaries(tmp_path) as made:
        made.try_out(good, NO_OVERRIDES)
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        made.try_out(good, NO_OVERRIDES)
        assert children() != {pid}


def test_what_is_tried_out_is_what_the_server_would_serve(tmp_path: Path) -> None:
    path = version_with_a_variant(tmp_path, "m", builders.endless())
    with canaries(tmp_path, limit_s=4.0, terms=Terms(variant="fp32")) as made:
        made.try_out(path, NO_OVERRIDES)
    with canaries(tmp_path, limit_s=4.0) as made, pytest.raises(LoadError, match="had to end it"):
        made.try_out(path, NO_OVERRIDES)


def test_proof_that_is_demanded_is_demanded_of_the_trial_too(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    with canaries(tmp_path, terms=Terms(is_proof_required=True)) as made, pytest.raises(LoadError, match="--require-p"):
        made.try_out(path, NO_OVERRIDES)


def test_a_variant_that_is_deadly_leaves_the_fp32_model_serving_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version_with_a_variant(tmp_path, "m", builders.endless())
    with serving(tmp_path, canary="auto", canary_limit_s=4.0) as server:
        served = server.registry.lease("m").served
        assert server.registry.states("m") == {1: State.READY}
    assert served.config.variant == "fp32"
    assert (
        "with a variant: canary: expected the model to load, and then to run a row, within 4 s each"
        in served.effective_toml
    )
    assert "fp32 serves in its place" in caplog.text


def test_a_server_goes_on_while_models_fail(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "good", 1, builders.scaled())
    builders.bare_version(tmp_path, "endless", 1, builders.endless())
    with serving(tmp_path, canary="auto", canary_limit_s=3.0) as server:
        states = {name: server.registry.states(name)[1] for name in ("good", "endless")}
        assert states == {"good": State.READY, "endless": State.FAILED}
    assert not children()


def test_what_tries_models_out_can_neither_read_nor_write_nor_call(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    for folder in (inside, tmp_path):
        (folder / "outside").write_bytes(b"secret")
    program = f"""
import socket
from fitserve_service import canary_limits as limits
in_force = [limits.leave_network(), limits.read_only([{str(inside)!r}])]
limits.bound_resources()
def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__
print(in_force, tried(lambda: open({str(inside / "outside")!r}).read()), tried(lambda: open({str(outside)!r}).read()),
      tried(lambda: open({str(inside / "new")!r}, "w")), tried(lambda: socket.create_connection(("127.0.0.1", 1))))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    if said.startswith("[True, True]"):
        assert said.split("]")[1].split() == ["done", "PermissionError", "PermissionError", "PermissionError"]
    else:
        assert "done" in said


def test_a_version_that_lies_about_its_size_gets_no_more_than_the_machine_has(tmp_path: Path) -> None:
    path: VersionPath = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    with (path.folder / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    with canaries(tmp_path) as made:
        made.try_out(path, NO_OVERRIDES)


def test_a_model_that_crashes_the_runtime_as_it_loads_is_refused_by_the_signal(tmp_path: Path) -> None:
    deadly = builders.bare_version(tmp_path, "deadly", 1, builders.deadly())
    good = builders.bare_version(tmp_path, "good", 1, builders.scaled())
    with canaries(tmp_path) as made:
        made.try_out(good, NO_OVERRIDES)
        with pytest.raises(LoadError, match="SIGFPE"):
            made.try_out(deadly, NO_OVERRIDES)
        made.try_out(good, NO_OVERRIDES)
