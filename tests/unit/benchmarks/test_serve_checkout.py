"""A checkout's server: where its entry and sources are read from, and that nothing of another one is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_benchmarks.processes import child_process, run_child
from fitserve_benchmarks.serve_checkout import (
    Checkout,
    CheckoutError,
    check_descendants,
    checkout_launch,
    open_checkout,
    own_checkout,
    serving_entry,
)
from fitserve_benchmarks.serve_servers import Served

_PROJECT = '[project.scripts]\nfitserve = "fitserve_app:main"\n[tool.hatch.build]\ndev-mode-dirs = ["app"]\n'
_ALL_OPTIONS = "--device --variant --transport --max-queue-ms"


def _checkout(folder: Path, code: str) -> Checkout:
    (folder / "app").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT)
    (folder / "app" / "fitserve_app.py").write_text(code)
    return open_checkout(folder)


def _served(folder: Path) -> Served:
    return Served(folder / "models", [], 1, folder)


@pytest.mark.parametrize(
    ("scripts", "entry"),
    [
        ({"fitserve-serve": "a.cli:main", "fitserve": "b:run"}, ("a.cli", "main", ())),
        ({"fitserve": "b.cli:run", "fitserve-bench": "c:main"}, ("b.cli", "run", ("serve",))),
    ],
)
def test_the_entry_is_the_command_that_serves(scripts: dict[str, str], entry: tuple[str, str, tuple[str, ...]]) -> None:
    assert serving_entry(scripts) == entry


@pytest.mark.parametrize("scripts", [{}, {"fitserve-bench": "c:main"}, {"fitserve": "b"}, {"fitserve-serve": ":main"}])
def test_a_project_without_such_a_command_is_refused(scripts: dict[str, str]) -> None:
    with pytest.raises(CheckoutError, match="expected 'fitserve-serve' or 'fitserve' as MODULE:FUNCTION, found"):
        serving_entry(scripts)


@pytest.mark.parametrize(
    ("project", "sentence"),
    [
        (None, "expected a checkout of fitserve with a pyproject.toml"),
        ("[project", "expected a checkout of fitserve with a pyproject.toml"),
        ('[project.scripts]\nfitserve-serve = "a:b"\n', "expected source roots .* found none"),
        ('[tool.hatch.build]\ndev-mode-dirs = ["gone"]\n', "expected source roots .* found no '.*gone'"),
    ],
)
def test_what_is_no_checkout_is_refused(project: str | None, sentence: str, tmp_path: Path) -> None:
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    with pytest.raises(CheckoutError, match=sentence):
        open_checkout(tmp_path)


def test_a_server_runs_the_sources_of_its_checkout_with_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _checkout(tmp_path / "inherited", "raise AssertionError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "inherited" / "app"))
    code = "import sys\nfrom pathlib import Path\ndef main():\n    print(Path(__file__).parent, sys.argv[1:])\n"
    for name in ("one", "two"):
        checkout = _checkout(tmp_path / name, code)
        command = checkout.command("--port", "1")
        exit_code, output = run_child(command, environment=checkout.environment, stdout=subprocess.PIPE)
        assert (exit_code, output.decode()) == (0, f"{tmp_path / name / 'app'} ['serve', '--port', '1']\n")


def test_our_own_checkout_is_the_one_of_this_package() -> None:
    checkout = own_checkout()
    assert checkout.folder == Path(__file__).parents[3]
    assert checkout.folder / "service" in checkout.roots


def test_a_server_with_modules_of_another_checkout_is_refused(tmp_path: Path) -> None:
    checkout = _checkout(tmp_path / "mixed", "import fitserve_contract\ndef main(): pass\n")
    with pytest.raises(CheckoutError, match=r"module 'fitserve_contract[^']*': expected it from '.*mixed', found '"):
        checkout_launch("mixed", checkout, "fast", _served(tmp_path))


@pytest.mark.parametrize(
    ("options", "queue"), [(_ALL_OPTIONS, ["--max-queue-ms", "0"]), ("--device --variant --transport", [])]
)
def test_a_server_that_never_refuses_needs_no_bound_of_its_queue(
    options: str, queue: list[str], tmp_path: Path
) -> None:
    checkout = _checkout(tmp_path / "one", f"def main(): print('{options}')\n")
    launch = checkout_launch("one", checkout, "stock", _served(tmp_path))
    assert launch.command[-len(queue) - 6 :] == ["--device", "cpu", "--variant", "fp32", "--transport", "stock", *queue]
    assert launch.environment["PYTHONPATH"].split(":")[0] == str(tmp_path / "one" / "app")


def test_a_server_without_an_option_that_both_need_is_refused(tmp_path: Path) -> None:
    checkout = _checkout(tmp_path / "one", "def main(): print('--device --variant')\n")
    with pytest.raises(CheckoutError, match="expected an option --transport, its help names none"):
        checkout_launch("one", checkout, "fast", _served(tmp_path))


_PARENT = """
import os, subprocess, sys
flags, path = sys.argv[1].split(), sys.argv[2]
words = [sys.executable, *flags, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
environment = {**os.environ, **({"PYTHONPATH": path} if path else {})}
child = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.stdout.readline(), flush=True)
child.wait()
"""


@pytest.mark.parametrize(
    ("flags", "path", "is_right"), [("-P", "", True), ("-P -I", "", False), ("-E", "", False), ("-P", "/", False)]
)
def test_a_process_of_a_server_that_would_take_other_modules_is_refused(
    flags: str, path: str, is_right: bool, tmp_path: Path
) -> None:
    checkout = _checkout(tmp_path / "one", "")
    command = [sys.executable, "-c", _PARENT, flags, path]
    with child_process(command, environment=checkout.environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout as output:
            output.readline()
        if is_right:
            check_descendants(process.pid, checkout)
        else:
            with pytest.raises(CheckoutError, match=r"expected PYTHONPATH '.*app.*' to hold in it, found"):
                check_descendants(process.pid, checkout)
