"""Versions, their states, and the leases that keep them loaded."""

from __future__ import annotations

import threading
from pathlib import Path

import builders
import pytest

from fitserve_service.errors import Reason, ServiceError
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.version_policy import State


def loaded(root: Path, version: int, model: str = "m") -> ServedVersion:
    return Loader("cpu").load(builders.bare_version(root, model, version, builders.scaled()), Overrides({}))


def refusal(registry: Registry, model: str, version: int | None = None, label: str | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        registry.lease(model, version=version, label=label)
    return caught.value


def test_without_version_or_label_the_highest_ready_version_answers(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("m", [2, 10, 11], {})
    registry.set_ready(loaded(tmp_path, 2))
    registry.set_ready(loaded(tmp_path, 10))

    assert registry.lease("m").served.version == 10
    assert registry.lease("m", version=2).served.version == 2
    assert registry.is_ready("m")
    assert registry.is_ready("m", 2)
    assert not registry.is_ready("m", 11)
    assert not registry.is_ready("m", 99)
    assert not registry.is_ready("other")


def test_the_label_stable_decides_where_the_model_has_it(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("m", [1, 2, 3], {"stable": 1, "canary": 2, "gone": 9})
    registry.set_ready(loaded(tmp_path, 1))
    registry.set_ready(loaded(tmp_path, 2))

    assert registry.lease("m").served.version == 1
    assert registry.lease("m", label="canary").served.version == 2
    assert refusal(registry, "m", label="gone").reason is Reason.VERSION_NOT_FOUND
    registry.set_present("m", [1, 2, 3], {})
    assert registry.lease("m").served.version == 2


def test_a_stable_version_that_is_not_ready_is_not_silently_replaced(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("m", [1, 2], {"stable": 2})
    registry.set_ready(loaded(tmp_path, 1))

    assert refusal(registry, "m").reason is Reason.NOT_READY
    assert not registry.is_ready("m")


def test_each_refusal_has_its_reason_and_names_what_it_is_about(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("m", [1, 2, 3], {"canary": 1})
    registry.set_ready(loaded(tmp_path, 1))
    registry.set_state("m", 2, State.LOADING)
    registry.set_state("m", 3, State.FAILED, reason="file 'model.onnx': cut off")
    registry.set_present("broken", [4, 5], {})
    registry.set_state("broken", 4, State.FAILED, reason="older")
    registry.set_state("broken", 5, State.FAILED, reason="newer")
    registry.set_present("waiting", [1], {})

    cases = [
        (
            refusal(registry, "n" * 500),
            Reason.MODEL_NOT_FOUND,
            f"model '{'n' * 128}': not in the repository; list its models with: fitserve-client models",
        ),
        (
            refusal(registry, "m", version=9),
            Reason.VERSION_NOT_FOUND,
            "model 'm' has no version 9; list its versions with: fitserve-client models",
        ),
        (
            refusal(registry, "m", version=2),
            Reason.NOT_READY,
            "model 'm' version 2 is LOADING, not READY; wait for it with: fitserve-client wait m --model-version 2",
        ),
        (
            refusal(registry, "m", version=3),
            Reason.MODEL_FAILED,
            "model 'm' version 3 failed to load: file 'model.onnx': cut off; "
            "correct its files, or try again with: fitserve-client load m",
        ),
        (
            refusal(registry, "m", label="blue"),
            Reason.LABEL_NOT_FOUND,
            "model 'm': expected one of its labels (canary), got 'blue'; "
            "set one with: fitserve-client label m LABEL VERSION",
        ),
        (
            refusal(registry, "m", label=""),
            Reason.LABEL_NOT_FOUND,
            "model 'm': expected one of its labels (canary), got ''; "
            "set one with: fitserve-client label m LABEL VERSION",
        ),
        (
            refusal(registry, "broken"),
            Reason.MODEL_FAILED,
            "model 'broken' version 5 failed to load: newer; "
            "correct its files, or try again with: fitserve-client load broken",
        ),
        (
            refusal(registry, "waiting"),
            Reason.NOT_READY,
            "model 'waiting': no version is ready (version 1 is PENDING); "
            "wait for it with: fitserve-client wait waiting --model-version 1",
        ),
    ]
    for error, reason, text in cases:
        assert (error.reason, error.message) == (reason, text)


def test_a_retired_version_takes_no_new_lease_and_goes_when_its_last_one_is_released(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_ready(loaded(tmp_path, 1))
    freed: list[str] = []
    first, second = registry.lease("m"), registry.lease("m")
    registry.retire("m", 1, lambda: freed.append("freed"))

    assert refusal(registry, "m").reason is Reason.NOT_READY
    assert registry.model("m").versions[0].state is State.UNLOADING
    assert registry.model("m").versions[0].served is first.served
    first.release()
    first.release()
    assert freed == []
    second.release()
    assert freed == ["freed"]
    assert registry.model("m").versions[0].state is State.UNLOADED
    assert registry.model("m").versions[0].served is None


def test_a_version_that_nobody_uses_goes_at_once(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_ready(loaded(tmp_path, 1))
    registry.lease("m").release()
    freed: list[str] = []
    registry.retire("m", 1, lambda: freed.append("freed"))

    assert freed == ["freed"]


def test_a_version_that_is_renewed_answers_all_the_while_and_the_old_one_goes_with_its_leases(tmp_path: Path) -> None:
    registry, told = Registry(), []
    old, new, other = (loaded(tmp_path / name, 1) for name in ("old", "new", "other"))
    registry.set_ready(old)
    registry.subscribe(lambda model: told.append((model, registry.is_ready(model, 1))))
    lease = registry.lease("m")
    assert not registry.renew(other, new)
    assert registry.renew(old, new)
    assert registry.lease("m", version=1).served is new
    assert not registry.renew(old, other)
    assert lease.served is old
    lease.release()
    lease.release()
    assert registry.served("m") == {1: new}
    assert told
    assert all(is_ready for _, is_ready in told)
    registry.retire("m", 1, lambda: None)
    assert not registry.renew(new, other)


def test_leases_taken_and_released_on_many_threads_free_a_version_exactly_once(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_ready(loaded(tmp_path, 1))
    freed: list[str] = []
    begin = threading.Barrier(9)

    def use() -> None:
        begin.wait()
        while True:
            try:
                registry.lease("m").release()
            except ServiceError:
                return

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    begin.wait()
    registry.retire("m", 1, lambda: freed.append("freed"))
    for thread in threads:
        thread.join()
    assert freed == ["freed"]


def test_what_the_repository_no_longer_has_is_forgotten_once_it_serves_nothing(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("m", [1, 2, 3], {})
    registry.set_ready(loaded(tmp_path, 1))
    registry.set_state("m", 2, State.FAILED, reason="why")
    registry.set_state("m", 3, State.LOADING)
    registry.set_present("m", [], {})

    assert registry.states("m") == {1: State.READY, 3: State.LOADING}
    registry.retire("m", 1, lambda: None)
    registry.set_state("m", 3, State.FAILED, reason="gone")
    registry.set_present("m", [], {})
    assert registry.states("m") == {}
    assert registry.snapshot() == ()


def test_a_snapshot_shows_everything_by_name(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("z", [3], {})
    registry.set_present("a", [1, 2], {"stable": 1, "best": 1})
    served = loaded(tmp_path, 1, "a")
    registry.set_ready(served)
    registry.set_state("a", 2, State.FAILED, reason="why")
    snapshot = registry.snapshot()

    assert [entry.name for entry in snapshot] == ["a", "z"]
    first, second = snapshot[0].versions
    assert (first.version, first.state, first.labels, first.served) == (1, State.READY, ("best", "stable"), served)
    assert first.load_ms == served.load_ms > 0
    assert (second.version, second.state, second.reason, second.served) == (2, State.FAILED, "why", None)
    assert dict(snapshot[0].labels) == {"stable": 1, "best": 1}
    with pytest.raises(ServiceError, match="model 'q': not in the repository"):
        registry.model("q")


def test_subscribers_hear_of_every_change_and_of_nothing_else(tmp_path: Path) -> None:
    registry = Registry()
    heard: list[tuple[str, dict[int, State]]] = []
    unsubscribe = registry.subscribe(lambda model: heard.append((model, registry.states(model))))
    registry.set_present("m", [1], {})
    registry.set_present("m", [1], {})
    registry.set_present("m", [1], {"stable": 1})
    registry.set_state("m", 1, State.LOADING)
    registry.set_ready(loaded(tmp_path, 1))
    lease = registry.lease("m")
    registry.retire("m", 1, lambda: None)
    lease.release()
    unsubscribe()
    registry.set_present("m", [], {})

    states = [state[1] for _, state in heard]
    assert states == [
        State.PENDING,
        State.PENDING,
        State.LOADING,
        State.READY,
        State.UNLOADING,
        State.UNLOADED,
    ]


def test_a_subscriber_that_fails_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    heard: list[str] = []
    registry.subscribe(lambda _: 1 // 0)  # type: ignore[arg-type, return-value]
    registry.subscribe(heard.append)
    registry.set_present("m", [1], {})

    assert heard == ["m"]
    assert "a subscriber failed on a change of model 'm'" in caplog.text


def test_a_label_stays_at_what_answers_until_its_new_version_does(tmp_path: Path) -> None:
    registry = Registry()
    registry.set_present("m", [1, 2], {"stable": 1})
    registry.set_ready(loaded(tmp_path, 1))
    registry.set_present("m", [1, 2], {"stable": 2})
    assert registry.lease("m").served.version == registry.lease("m", label="stable").served.version == 1
    assert dict(registry.model("m").labels) == {"stable": 1}
    registry.set_state("m", 2, State.FAILED, reason="broken")
    assert registry.lease("m", label="stable").served.version == 1
    registry.set_ready(loaded(tmp_path, 2))
    assert registry.lease("m").served.version == registry.lease("m", label="stable").served.version == 2
    assert dict(registry.model("m").labels) == {"stable": 2}
