"""What happens where torch.compile cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fitserve_training.compiling import CompileRecord, choose_compile, why_not_compile
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import Batch
from fitserve_training.objectives import Regression
from fitserve_training.optim import make_optimizer
from fitserve_training.stepping import Stepper

CPU = torch.device("cpu")


def test_without_a_compiler_training_is_eager_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    record = choose_compile("module", CPU, tmp_path)

    assert (record.requested, record.used) == ("module", "off")
    assert "no C++ compiler found" in record.reason


@pytest.mark.parametrize("has_lengths", [False, True])
def test_auto_records_its_reason(has_lengths: bool, tmp_path: Path) -> None:
    record = choose_compile("auto", CPU, tmp_path, has_lengths)

    assert (record.used, record.reason != "") == ("off", True)
    assert ("length" in record.reason) is has_lengths


def test_without_python_headers_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})

    assert "no Python headers found" in why_not_compile(CPU)


def test_auto_on_the_cpu_is_eager_without_a_complaint(tmp_path: Path) -> None:
    record = choose_compile("auto", CPU, tmp_path)
    assert (record.used, record.reason.startswith("auto: ")) == ("off", True)


@pytest.mark.parametrize("mode", ["module", "step"])
def test_a_backend_that_fails_leaves_the_eager_result(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        raise RuntimeError("compiler went away")

    compile_with_inductor = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: compile_with_inductor(f, dynamic=dynamic, backend=broken))
    batch = Batch((torch.ones(4, 2),), torch.zeros(4, 1))

    def trained(record: CompileRecord, said: list[str]) -> torch.Tensor:
        torch.manual_seed(0)
        model, sums = nn.Linear(2, 1), torch.zeros(Regression.sum_count, dtype=torch.float64)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
        optimizer = make_optimizer(model.parameters(), RunConfig(lr=0.1))
        stepper = Stepper(model, Regression(), optimizer, record, autocast, said.append)
        for _ in range(3):
            stepper(batch, sums)
        return torch.cat((sums, model.weight.detach().flatten()))

    said: list[str] = []
    record = CompileRecord(mode, mode)

    assert torch.equal(trained(record, said), trained(CompileRecord("off", "off"), []))
    assert record.used == "off"
    assert "compiler went away" in record.reason
    assert len(said) == 1
