"""CUDA's libraries and NVIDIA's driver: what is missing is named, with what brings it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fitserve_service import cuda_libraries
from fitserve_service.cuda_libraries import (
    Driver,
    Library,
    ask_driver,
    driver_problem,
    driver_version,
    libraries,
    libraries_problem,
    load_failure,
    missing_file,
)

DRIVER = """
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuInit(unsigned flags) {{ return {code}; }}
int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}
"""


def driver_library(folder: Path, *, version: int = 13010, code: int = 0, count: int = 2) -> str:
    """Builds a library with the driver's functions: the loader and the calls are real, the answers are given."""
    source, library = folder / "driver.c", folder / f"libcuda{version}_{code}_{count}.so"
    source.write_text(DRIVER.format(version=version, code=code, count=count))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


@pytest.mark.needs_program("cc")
def test_a_driver_tells_what_it_knows_and_how_many_gpus_it_has(tmp_path: Path) -> None:
    driver = ask_driver(driver_library(tmp_path))

    assert driver == Driver("", (13, 1), 2)
    assert driver_problem(driver, "13.0") == ""
    assert driver_problem(driver, "13.0", 1) == ""
    assert driver_problem(driver, "13.0", 2) == "GPU 2: expected 0..1, the driver has 2"


@pytest.mark.needs_program("cc")
@pytest.mark.parametrize(
    ("code", "text"),
    [(100, "it sees no GPU"), (803, "of different versions"), (34, "it is the stub"), (999, "gave code 999")],
)
def test_a_driver_that_cannot_be_used_is_told_with_what_to_do(tmp_path: Path, code: int, text: str) -> None:
    driver = ask_driver(driver_library(tmp_path, code=code))

    assert text in driver.problem
    assert driver_problem(driver, "13.0") == driver.problem


@pytest.mark.needs_program("cc")
def test_a_driver_without_gpus_and_one_that_is_too_old_are_told_apart(tmp_path: Path) -> None:
    assert "it sees no GPU" in ask_driver(driver_library(tmp_path, count=0)).problem
    old = ask_driver(driver_library(tmp_path, version=12040))
    assert driver_problem(old, "13.0") == (
        "NVIDIA driver: expected one that knows CUDA 13, got one that knows CUDA 12.4: update it"
    )
    assert driver_problem(old, "12.8") == ""


def test_no_driver_is_told() -> None:
    problem = ask_driver("libfitserve-no-such-driver.so.1").problem
    assert problem.startswith("libfitserve-no-such-driver.so.1 is missing: no NVIDIA driver is installed")


@pytest.mark.needs_program("cc")
def test_a_library_that_lacks_another_names_the_other(tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int needed(void) { return 1; }")
    inner, outer = tmp_path / "libinner_of_fitserve.so", tmp_path / "libouter_of_fitserve.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(inner), str(source)], check=True)
    source.write_text("int needed(void); int outer(void) { return needed(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(outer), str(source), str(inner)], check=True, cwd=tmp_path)
    inner.unlink()

    assert missing_file(str(outer)) == "libinner_of_fitserve.so"
    assert missing_file("libc.so.6") == ""


def test_a_library_that_does_not_load_for_another_reason_says_which(tmp_path: Path) -> None:
    library = tmp_path / "libtext.so"
    library.write_text("no library")

    assert re.match(r"libtext\.so does not load: \S", load_failure(str(library)))
    assert load_failure("libc.so.6") == ""


def test_the_first_required_library_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Library("cuDNN", "libfitserve-no-such.so.9", "nvidia-cudnn-cu13", True)
    optional = Library("cuFFT", "libfitserve-nor-this.so.12", "nvidia-cufft", False)
    monkeypatch.setattr(cuda_libraries, "libraries", lambda _: (optional, gone))
    assert libraries_problem("13.0") == (
        "libfitserve-no-such.so.9 is missing (cuDNN): "
        "pip install 'fitserve[cuda]' brings it (package nvidia-cudnn-cu13)"
    )
    monkeypatch.setattr(cuda_libraries, "libraries", lambda _: (optional,))
    assert libraries_problem("13.0") == ""


def test_files_and_packages_follow_the_cuda_that_was_built_in() -> None:
    newer = {library.name: (library.file, library.package) for library in libraries("13.0")}
    older = {library.name: (library.file, library.package) for library in libraries("12.8")}

    assert newer["cuBLAS"] == ("libcublas.so.13", "nvidia-cublas")
    assert older["cuBLAS"] == ("libcublas.so.12", "nvidia-cublas-cu12")
    assert newer["cuDNN"] == ("libcudnn.so.9", "nvidia-cudnn-cu13")
    assert libraries("") == libraries("13.0")
    assert next(each for each in libraries("12.8") if each.name == "cuDNN").remedy == "pip install nvidia-cudnn-cu12"


def test_the_extra_brings_every_package_that_is_named() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    extra = project.split("\ncuda = [", 1)[1].split("]", 1)[0]
    assert set(re.findall(r'"(nvidia-[a-z0-9-]+)>', extra)) == {each.package for each in libraries("13.0")}


def test_the_kernels_module_is_read_from_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(cuda_libraries, "DRIVER_VERSION_FILE", file)
    assert driver_version() == ""
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12\n"
    )
    assert driver_version() == "580.65.06"
