"""What a version's outputs mean: by its manifest, else by `model.toml`. Checked before the version serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fitserve_contract.manifest import Manifest, ManifestError, TensorSpec
from fitserve_contract.scoring import output_fault
from fitserve_contract.tasks import Task, TaskKind
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.model_config import ModelConfig, ModelConfigError


def settle_task(
    config: ModelConfig, manifest: Manifest | None, outputs: Sequence[TensorSpec]
) -> tuple[ModelConfig, str]:
    """Checks a version's task; that of its manifest holds, as its certificate was made for it.

    Returns:
        The configuration, without a task where the manifest has one, and why.

    Raises:
        ManifestError: the manifest's task names an output that is not there.
        LoadError: the task of `model.toml` names one, or does not fit it.
    """
    if manifest is None or manifest.task is None:
        _check_own_task(config, outputs)
        return config, ""
    names = [spec.name for spec in outputs]
    if manifest.task.output not in names:
        raise ManifestError(f"manifest.task.output: expected one of {', '.join(names)}, got '{manifest.task.output}'")
    if not config.task:
        return config, ""
    plain = replace(config, task="", task_output="", task_scores="", class_names=())
    return plain, f"the manifest's task holds, {manifest.task.kind}: model.toml names one for versions without"


def _check_own_task(config: ModelConfig, outputs: Sequence[TensorSpec]) -> None:
    try:
        task = config.task_of([spec.name for spec in outputs])
    except ModelConfigError as error:
        raise LoadError(str(error)) from None
    if task is not None:
        _check_fit(task, next(spec for spec in outputs if spec.name == task.output))


def _check_fit(task: Task, spec: TensorSpec) -> None:
    """Holds a task against its output, as far as the file declares it."""
    if task.kind is not TaskKind.REGRESSION and spec.datatype not in ("FP16", "FP32", "FP64", "BF16"):
        raise LoadError(
            f"model.toml: task_output: expected an output of real scores, got '{spec.name}' of {spec.datatype}"
        )
    if spec.shape is not None and (fault := output_fault(task, spec.shape)):
        raise LoadError(f"model.toml: {fault}")
