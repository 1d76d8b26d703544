"""The doctor: what is there, what is missing, and the exit code."""

from __future__ import annotations

import json

import pytest

from fitserve_service import doctor
from fitserve_service.cli import main
from fitserve_service.session import cuda_problem, runtime_version


def test_the_cpu_can_serve_and_everything_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"ok  ONNX Runtime           {runtime_version()}" in lines
    assert lines[-1].startswith("can serve on")
    for name in ("Python", "CPU", "providers compiled in", "driver and GPUs", "cuDNN", "cuBLAS", "CUDA sessions"):
        assert any(line[4:].startswith(name) for line in lines)


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
