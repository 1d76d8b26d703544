"""What a model.toml may say."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.model_config import ModelConfig, ModelConfigError, read_overrides, settle_queue


def written(root: Path, text: str | bytes) -> Path:
    folder = root / "lenet"
    folder.mkdir()
    (folder / "model.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def test_no_file_overrides_nothing(tmp_path: Path) -> None:
    (tmp_path / "lenet").mkdir()
    assert read_overrides(tmp_path, "lenet").apply(ModelConfig()) == ModelConfig()
    assert read_overrides(tmp_path, "absent").values == {}


def test_every_key_is_taken(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        "max_batch_size = 8\nmax_queue_delay_ms = 1.5\nmax_queued_examples = 9\nbatch_size_buckets = [2, 8]\n"
        'intra_op_num_threads = 2\ndevice = "cuda:1"\nkeep_versions = 2\nversions = [1, 3]\n'
        'p99_target_ms = 20.0\nvariant = "int8"\nmax_queued_bytes = 1000\nmax_queue_ms = 60\n'
        "least_queued_requests = 3\n",
    )

    assert read_overrides(root, "lenet").apply(ModelConfig()) == ModelConfig(
        max_batch_size=8,
        max_queue_delay_ms=1.5,
        max_queued_examples=9,
        max_queued_bytes=1000,
        max_queue_ms=60,
        least_queued_requests=3,
        batch_size_buckets=(2, 8),
        intra_op_num_threads=2,
        device="cuda:1",
        keep_versions=2,
        versions=(1, 3),
        p99_target_ms=20.0,
        variant="int8",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_bach_size = 1",
            r"lenet/model.toml: expected one of max_batch_size, .*, got an unknown key 'max_bach_size'",
        ),
        (
            "max_batch_size = -1",
            r"max_batch_size: expected an integer, 0\.\.2\^31 - 1 \(0: never join requests\), got -1",
        ),
        ("max_batch_size = true", "max_batch_size: .* got True"),
        ("max_batch_size = 1.0", "max_batch_size: .* got 1.0"),
        ("max_queue_delay_ms = nan", "max_queue_delay_ms: expected milliseconds, 0..60000, got nan"),
        ("max_queue_delay_ms = 60001", "got 60001"),
        ('variant = "../int8"', "variant: expected auto, fp32 or a variant's name, got '../int8'"),
        ("max_queued_examples = 0", r"max_queued_examples: expected an integer, 1..2\^31 - 1, got 0"),
        ("max_queued_bytes = 0", r"max_queued_bytes: expected an integer, 1..2\^62, got 0"),
        ("max_queue_ms = -1", r"max_queue_ms: expected milliseconds, 0..60000 \(0: no bound in time\), got -1"),
        ("batch_size_buckets = [4, 2]", r"batch_size_buckets: expected ascending integers, 1..2\^31 - 1, got \[4, 2\]"),
        ("batch_size_buckets = [2, 2]", "ascending"),
        ('batch_size_buckets = ["2"]', "ascending"),
        ("batch_size_buckets = 2", "ascending"),
        ('device = "gpu"', "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ('device = "cuda:x"', "device"),
        ("keep_versions = 0", r"keep_versions: expected an integer, 1..2\^31 - 1, got 0"),
        ("versions = [0]", "versions"),
        ("versions 3", "lenet/model.toml: expected TOML, got"),
        (b"\xff", "lenet/model.toml: expected TOML, got"),
        ("a = " + "[" * 5000, "lenet/model.toml: expected TOML, got"),
        ("a = " + "9" * 5000, "lenet/model.toml: expected TOML, got"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message) as caught:
        read_overrides(written(tmp_path, text), "lenet")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task = "ranking"', "task: expected one of classification, multi_label, .*regression, got 'ranking'"),
        ('task = "token_classification"\nclass_names = ["O"]', "task_scores: expected 'logits' or .*got ''"),
        ("task = 1", "task: expected one of classification"),
        ('class_names = ["a"]', "task: expected one of 'classification', .* beside class_names, found none"),
        ('task_scores = "logits"', "task: expected one of .* beside task_scores, found none"),
        (
            'task = "classification"\nclass_names = ["a", "b"]',
            "task_scores: expected 'logits' or .*got ''",
        ),
        ('task = "classification"\ntask_scores = "logits"', "class_names: expected one per column .*, got 0"),
        ('task = "regression"\nclass_names = ["a"]', "class_names: expected none for task 'regression', got 1"),
        ('task = "regression"\ntask_scores = "logits"', "task_scores: expected 'values' for task 'regression'"),
        ('task = "multi_label"\ntask_scores = "logits"\nclass_names = ["a"]', "task_scores: expected 'probabilities'"),
        ('task = "multi_label"\nclass_names = ["a", "a"]', "class_names: expected a list of texts, each once"),
        ('task = "multi_label"\nclass_names = [1]', r"class_names: expected a list of texts, .*got \[1\]"),
        ('task = "multi_label"\nclass_names = "a"', "class_names: expected a list of texts, .*got 'a'"),
        ("task_output = 3", "task_output: expected the name of an output, got 3"),
    ],
)
def test_a_task_that_does_not_fit_itself_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read_overrides(written(tmp_path, text), "lenet")


def test_a_task_is_read_and_shown_as_toml(tmp_path: Path) -> None:
    text = 'task = "classification"\ntask_scores = "logits"\nclass_names = ["a\\"b", "größe", "\U0001f600"]\n'
    config = read_overrides(written(tmp_path, text), "lenet").apply(ModelConfig())

    names = ('a"b', "größe", "\U0001f600")
    assert config.task_of(["y"]) == Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, names)
    with pytest.raises(ModelConfigError, match="task_output: expected one of the outputs y, z, got ''"):
        config.task_of(["y", "z"])
    assert tomllib.loads(config.to_toml())["class_names"] == list(names)
    assert ModelConfig().task_of(["y"]) is None
    assert ModelConfig(task="regression", task_output="y").task_of(["y", "z"]) == Task(
        TaskKind.REGRESSION, "y", Scores.VALUES
    )


def test_a_link_is_read_within_the_repository_and_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    (root / "lenet" / "..2026").mkdir(parents=True)
    (root / "lenet" / "..2026" / "model.toml").write_text("max_batch_size = 1")
    (root / "lenet" / "model.toml").symlink_to("..2026/model.toml")
    assert read_overrides(root, "lenet").values == {"max_batch_size": 1}

    (root / "lenet" / "..2026" / "model.toml").rename(tmp_path / "model.toml")
    (root / "lenet" / "..2026" / "model.toml").symlink_to(tmp_path / "model.toml")
    with pytest.raises(ValueError, match="outside of the repository"):
        read_overrides(root, "lenet")


sizes = st.lists(st.integers(1, 1000), max_size=4).map(lambda found: tuple(sorted(set(found))))


@settings(deadline=None)
@given(
    st.builds(
        ModelConfig,
        st.integers(0, 1000),
        st.floats(0, 60_000),
        st.integers(1, 10**6),
        sizes,
        st.integers(0, 64),
        st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
        st.integers(1, 9),
        sizes,
    ),
    st.text(),
)
def test_what_is_shown_is_toml_that_says_the_same(config: ModelConfig, comment: str) -> None:
    document = tomllib.loads(config.to_toml({"max_batch_size": comment}))
    document = {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}

    assert document == asdict(config)


def test_a_comment_says_where_a_value_comes_from() -> None:
    assert "max_batch_size = 4  # model.toml\n" in ModelConfig(4).to_toml({"max_batch_size": "model.toml"})


@pytest.mark.parametrize(
    ("target_ms", "run_ms", "queue_ms", "requests"),
    [
        (0.0, 0.0, 0.0, 1),
        (0.0, 0.9, 0.0, 1),
        (0.0, 2.0, 10_000.0, 64),
        (0.0, 5_000.0, 10_000.0, 64),
        (30.0, 0.1, 15.0, 1),
        (30.0, 100.0, 15.0, 1),
    ],
)
def test_how_much_work_may_wait_follows_from_the_target_or_from_a_run(
    target_ms: float, run_ms: float, queue_ms: float, requests: int
) -> None:
    found, comment = settle_queue(ModelConfig(p99_target_ms=target_ms), run_ms)

    assert (found.max_queue_ms, found.least_queued_requests) == (queue_ms, requests)
    assert bool(comment) is (queue_ms > 0)
