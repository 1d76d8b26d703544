"""The drill of data larger than memory, run small: what it makes, what limits it, what it says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fitserve_benchmarks.large_data.drill import DrillPlan, drill, table_text
from fitserve_benchmarks.large_data.limited import run_limited
from fitserve_benchmarks.large_data.made_data import make_pictures, make_table

TAKER = "import sys; x = bytearray(int(sys.argv[1])); print('took', len(x), flush=True); x[::4096] = x[::4096]"


def test_made_data_is_that_of_its_seed(tmp_path: Path) -> None:
    for place, seed in enumerate((0, 0, 1)):
        assert make_pictures(tmp_path / f"p{place}", 4, 16, seed) > 0
        assert make_table(tmp_path / f"{place}.csv", 1000, seed) == 100_000
    for name in ("dark/0.jpg", "light/3.jpg"):
        first, same, other = ((tmp_path / f"p{place}" / name).read_bytes() for place in range(3))
        assert first == same != other
    tables = [(tmp_path / f"{place}.csv").read_bytes() for place in range(3)]
    assert tables[0] == tables[1] != tables[2]


def test_a_command_is_watched_and_limited() -> None:
    free = run_limited([sys.executable, "-c", TAKER, str(200_000_000)], {}, None)
    assert (free.exit_code, free.limit, free.group_bytes) == (0, "none", None)
    assert free.seconds_to("took") > 0
    with pytest.raises(RuntimeError, match="expected a line 'device'"):
        free.seconds_to("device")
    held = run_limited([sys.executable, "-c", TAKER, str(200_000_000)], {}, 100_000_000)
    assert held.exit_code != 0, held.limit


def test_the_environment_reaches_the_command() -> None:
    code = "import os; print(os.environ['FITSERVE_DATA_STORE'], 'HOME' in os.environ)"
    found = run_limited([sys.executable, "-c", code], {"FITSERVE_DATA_STORE": "disk"}, None)
    assert [line for _, line in found.lines] == [f"disk {'HOME' in os.environ}"]


@pytest.mark.slow
def test_a_small_drill_of_pictures(tmp_path: Path) -> None:
    said: list[str] = []
    rows = drill(DrillPlan(40, 16, 0, 4_000_000_000, 0.5, "softmax"), tmp_path, said.append)
    assert [row.run for row in rows] == [
        "pictures, new",
        "pictures, again",
        "pictures, part, disk",
        "pictures, part, memory",
    ]
    assert rows[0].test_loss == rows[1].test_loss
    assert all(row.anonymous_gb > 0 for row in rows)
    assert table_text(rows).count("\n") == 4
