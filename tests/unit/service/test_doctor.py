"""The doctor: what is there, what is missing, and the exit code."""

from __future__ import annotations

import json

import pytest

from fitserve_service import doctor
from fitserve_service.cli import main
from fitserve_service.cuda_libraries import Driver, libraries, missing_file
from fitserve_service.session import cuda_problem, cuda_version, runtime_version


def test_the_cpu_can_serve_and_everything_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    built_for = f"built for CUDA {cuda_version()}" if cuda_version() else "built without CUDA"
    assert f"ok  ONNX Runtime            {runtime_version()}, {built_for}" in lines
    assert lines[-1].startswith("can serve on")
    names = (
        "Python",
        "CPU",
        "providers compiled in",
        "kernel's NVIDIA module",
        "driver and GPUs",
        "CUDA of the driver",
    )
    for name in (*names, "cuDNN", "cuBLAS", "cuBLASLt", "NVRTC", "CUDA sessions"):
        assert any(line[4:].startswith(f"{name} ") for line in lines)


def test_each_library_is_there_or_is_named_with_its_package() -> None:
    findings = {one.name: one for one in doctor.examine("cuda")}
    for library in libraries(cuda_version()):
        finding = findings[library.name]
        assert finding.is_needed == library.is_required
        assert finding.is_there == (missing_file(library.file) == "")
        assert (" loads (" in finding.found) if finding.is_there else (library.remedy in finding.found)
    assert not any(findings[library.name].is_needed for library in libraries("") if library.name == "cuFFT")


def test_a_driver_that_knows_an_older_cuda_is_told() -> None:
    finding = doctor._cuda(Driver("", (11, 8), 1), is_needed=True)
    assert finding.is_there == (not cuda_version())
    assert not cuda_version() or finding.found.endswith("got one that knows CUDA 11.8: update it")
    assert doctor._cuda(Driver("", (99, 1), 2), is_needed=True).found == "99.1, 2 GPU(s)"


def test_cuda_that_is_asked_for_and_missing_is_exit_code_1_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "libcudnn.so.9 is missing: pip install 'fitserve[cuda]'"
    monkeypatch.setattr(doctor, "cuda_problem", lambda: problem)
    assert doctor.run(["--device", "cuda"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"cannot serve as asked: {problem}"
    assert doctor.run(["--device", "auto"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"can serve on the CPU; not on CUDA: {problem}"


def test_a_driver_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/bin/false")
    (driver,) = [one for one in doctor.examine("auto") if one.name == "driver and GPUs"]
    assert not driver.is_there
    assert driver.found == "nvidia-smi: no GPU"


def test_it_is_a_command_of_the_server_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json", "--device", "cpu"])
    assert ended.value.code == 0
    findings = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert findings["CUDA sessions"]["is_there"] == (cuda_problem() is None)
    assert findings["ONNX Runtime"]["is_needed"]
