"""Held-out evaluation and comparison with both clients against a running server that proved its versions."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import builders

from fitserve_client import AsyncClient, Client, FailedPreconditionError, InvalidArgumentError, NotFoundError
from fitserve_client.comparison import Comparison
from fitserve_client.evaluation import Evaluation
from fitserve_contract.certificate import HeldOutExamples
from fitserve_contract.pairing import pair
from fitserve_contract.scoring import score
from fitserve_service.server import Server, running_server
from fitserve_service.settings import ServerSettings

COUNT = 600
TASK = builders.classes_task(count=3)
ROWS = np.random.default_rng(0).standard_normal((COUNT, 2)).astype(np.float32)
TRUTH = np.random.default_rng(1).integers(0, 3, COUNT)

Ask = Callable[[Any], Any]


def publish(root: Path, seed: int) -> None:
    held_out = HeldOutExamples({"x": ROWS}, TRUTH, np.arange(COUNT))
    content = builders.linear(2, 3, seed)
    builders.certified_version(root, "m", content, {"x": ROWS[:8]}, task=TASK, held_out=held_out)


def two_versions(root: Path) -> ServerSettings:
    publish(root, 0)
    publish(root, 1)
    (root / "m" / "model.toml").write_text("versions = [1, 2]\n")
    (root / "m" / "labels.json").write_text('{"stable": 1, "canary": 2}')
    return ServerSettings(root, port=0, metrics_port=None, device="cpu", poll_interval_s=0.05)


def asked(server: Server, ask: Ask) -> Any:
    with Client(f"127.0.0.1:{server.port}") as client:
        return ask(client)


def asked_async(server: Server, ask: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            return await ask(client)

    return asyncio.run(run())


def scores_of(seed: int) -> np.ndarray:
    weights = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
    return ROWS @ weights


both_clients = pytest.mark.parametrize("drive", [asked, asked_async])


@both_clients
def test_held_out_examples_and_the_same_examples_sent_have_the_same_sums(tmp_path: Path, drive: Any) -> None:
    with running_server(two_versions(tmp_path)) as server:
        on_server: Evaluation = drive(server, lambda client: client.evaluate_held_out("m", version=2))
        sent: Evaluation = drive(server, lambda client: client.evaluate("m", ROWS, TRUTH, version=2, batch_size=7))
    assert on_server.sums == sent.sums
    assert (on_server.version, on_server.batch_count, sent.batch_count) == (2, 1, 86)
    assert on_server["accuracy"] == on_server.sums.correct_count / COUNT
    assert len(on_server.classes) == 3
    assert 0 <= on_server["calibration_error"] <= 1


@both_clients
def test_versions_are_compared_by_number_and_by_label_whatever_the_partition(tmp_path: Path, drive: Any) -> None:
    expected = pair(TASK, scores_of(0), scores_of(1), TRUTH, np.arange(COUNT))
    with running_server(two_versions(tmp_path)) as server:
        found: list[Comparison] = [
            drive(server, lambda client: client.compare("m", (1, 2))),
            drive(server, lambda client: client.compare("m", ("stable", "canary"), ROWS, TRUTH, batch_size=7)),
            drive(server, lambda client: client.compare("m", (1, "canary"), {"x": ROWS}, TRUTH)),
        ]
    for comparison in found:
        assert comparison.paired == expected
        assert (comparison.first.version, comparison.second.version) == (1, 2)
        assert comparison.first.sums == score(TASK, scores_of(0), TRUTH)
        assert comparison.mcnemar == found[0].mcnemar
    assert [comparison.first.batch_count for comparison in found] == [1, 86, 3]


@both_clients
def test_what_cannot_be_compared_is_a_clear_error(tmp_path: Path, drive: Any) -> None:
    settings = two_versions(tmp_path)
    builders.publish_version(tmp_path, "other", builders.linear(2, 3), task=builders.classes_task(count=2))
    with running_server(settings) as server:
        with pytest.raises(NotFoundError, match="no version 9"):
            drive(server, lambda client: client.compare("m", (1, 9)))
        with pytest.raises(InvalidArgumentError, match="labels: expected them with inputs, got none"):
            drive(server, lambda client: client.compare("m", (1, 2), ROWS))
        with pytest.raises(InvalidArgumentError, match="inputs: expected them with labels, got none"):
            drive(server, lambda client: client.compare("m", (1, 2), labels=TRUTH))
        with pytest.raises(FailedPreconditionError, match="expected held-out examples"):
            drive(server, lambda client: client.evaluate_held_out("other"))


def test_predictions_are_answered_while_a_version_is_evaluated_and_unloaded(tmp_path: Path) -> None:
    """A series keeps its version, and a request that predicts comes in between its batches."""
    with running_server(two_versions(tmp_path)) as server, Client(f"127.0.0.1:{server.port}") as client:
        is_over = threading.Event()
        found: list[Evaluation] = []

        def evaluate() -> None:
            found.extend(client.evaluate_held_out("m", version=1) for _ in range(10))
            is_over.set()

        thread = threading.Thread(target=evaluate)
        thread.start()
        predicted = 0
        while not is_over.is_set() or not predicted:
            assert client.predict("m", ROWS[:2], version=2).array.shape == (2, 3)
            predicted += 1
        thread.join()
        assert {each.sums.correct_count for each in found} == {found[0].sums.correct_count}
        client.unload("m")
        assert not client.model("m").is_ready


@both_clients
def test_a_bare_file_is_scored_by_the_task_of_model_toml(tmp_path: Path, drive: Any) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.linear(2, 3, 0))
    (tmp_path / "m" / "model.toml").write_text(
        'task = "classification"\ntask_scores = "logits"\nclass_names = ["a", "b", "c"]\n'
    )
    settings = ServerSettings(tmp_path, port=0, metrics_port=None, device="cpu", poll_interval_s=0.05)
    with running_server(settings) as server:
        found: Evaluation = drive(server, lambda client: client.evaluate("m", ROWS, TRUTH))
    assert found.sums == score(TASK, scores_of(0), TRUTH)
    assert len(found.classes) == 3
