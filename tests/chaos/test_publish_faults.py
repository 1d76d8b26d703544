"""A publish that is killed, starved or raced leaves old or new, never torn; and what is torn would be seen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fitserve_benchmarks import chaos_publish
from fitserve_benchmarks.chaos_publish import (
    PublishError,
    kill_at_every_call,
    publish_on_full_disk,
    publish_without_room,
    race,
)


@pytest.mark.needs_program("strace")
def test_a_publisher_killed_at_its_system_calls_leaves_old_or_new(tmp_path: Path) -> None:
    kills = kill_at_every_call(tmp_path, lambda _: None, every=9)

    assert kills.call_count > 10
    assert kills.old_count + kills.new_count == kills.call_count
    assert kills.leftover_count > 5


@pytest.mark.needs_program("strace")
def test_a_publisher_that_leaves_torn_versions_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = tmp_path / "torn.py"
    torn.write_text(
        "import sys\nfrom fitserve_benchmarks import chaos_publisher as it\n"
        "def in_place(root, model, aside):\n"
        "    target = root / model / str(max(it.versions(root, model), default=0) + 1)\n"
        "    it.shutil.copytree(aside, target)\n"
        "    (target / 'SHA256SUMS').write_text(checksum_text(checksums(target)))\n"
        "    return it.version_path(root, model, int(target.name))\n"
        "from fitserve_contract.repository import checksum_text, checksums\n"
        "it.publish = in_place\nit.once(*sys.argv[2:])\n"
    )
    monkeypatch.setattr(chaos_publish, "_PUBLISHER", (*chaos_publish._PUBLISHER[:3], str(torn)))
    with pytest.raises(PublishError, match=r"killed at .*: version \d+ is torn: "):
        kill_at_every_call(tmp_path, lambda _: None, every=5)


def test_a_disk_without_room_fails_the_publish_and_leaves_nothing(tmp_path: Path) -> None:
    assert publish_without_room(tmp_path) > 3


@pytest.mark.needs_program("unshare")
def test_a_disk_that_is_really_full_fails_the_publish_and_leaves_nothing(tmp_path: Path) -> None:
    failed = publish_on_full_disk(tmp_path)

    may_mount = (
        subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False
        ).returncode
        == 0
    )
    assert (failed is not None) == may_mount
    assert failed is None or failed > 8


def test_publishers_that_race_get_numbers_of_their_own(tmp_path: Path) -> None:
    assert race(tmp_path, 8, 20) == 160
