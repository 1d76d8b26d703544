"""Thread settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fitserve_benchmarks.threads import ThreadSetting, available_processors, thread_settings


def test_a_setting_takes_as_many_processors_as_threads() -> None:
    assert thread_settings("1,all", (2, 3, 5)) == (ThreadSetting(1, (2,)), ThreadSetting(3, (2, 3, 5)))


def test_settings_that_mean_the_same_are_measured_once() -> None:
    assert thread_settings("1, all", (4,)) == (ThreadSetting(1, (4,)),)


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1,,2", "١"])
def test_what_is_no_thread_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a positive number or 'all'"):
        thread_settings(text, (0, 1))


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 2, one per processor here, got 3"):
        thread_settings("3", (0, 1))


def test_a_pinned_process_runs_on_the_settings_processors_alone() -> None:
    first = available_processors()[0]
    script = (
        "import os; from fitserve_benchmarks.threads import ThreadSetting;"
        f"ThreadSetting(1, ({first},)).pin(); print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    )
    environment = {**os.environ, **ThreadSetting(1, (first,)).environment()}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split("]") == [f"[{first}", " 1\n"]
