"""A training run from request to finished run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from fitserve_training import rundir
from fitserve_training.catalogue import load_recipe
from fitserve_training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from fitserve_training.compiling import CompileRecord, choose_compile
from fitserve_training.config import RunConfig, Values
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.device import cpu_threads, device_title, resolve_device
from fitserve_training.environment import describe
from fitserve_training.errors import UsageError
from fitserve_training.fit import EpochReport, Job, fit
from fitserve_training.form import Form
from fitserve_training.optim import check_optimizer, make_optimizer
from fitserve_training.outcome import check_required, closing_lines, summarise
from fitserve_training.plots import draw_curves
from fitserve_training.progress import Display, open_display
from fitserve_training.recipe import Finish, Recipe
from fitserve_training.rundir import RunWriter
from fitserve_training.seeding import make_deterministic, seed_global
from fitserve_training.settings import config_text, read_config, resolve_config
from fitserve_training.stepping import Stepper


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    Args:
        recipe: A name of the catalogue.
        run_dir: Where the finished run goes.
        config_file: Settings in TOML.
        changes: Settings by dotted key, over those of the file.
        data_dir: Where data files are; the environment's DATA_DIR where it is None.
        is_resumed: Go on with the unfinished run of `run_dir`.
    """

    recipe: str
    run_dir: Path
    config_file: Path | None = None
    changes: Values = field(default_factory=dict)
    data_dir: Path | None = None
    is_resumed: bool = False


@dataclass(frozen=True)
class Built:
    """The parts of a run, on its device."""

    recipe: Recipe
    config: RunConfig
    data: DataSet
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    compile_record: CompileRecord


def train(request: Request, say: Callable[[str], None]) -> Path:
    """Trains what is asked for and gives the directory of the finished run.

    Raises:
        UsageError: the request cannot be carried out; nothing was written.
        RunStoppedError: the loss is not finite, or the recipe's required figures were missed.
    """
    recipe = load_recipe(request.recipe)
    places = Places.default(request.data_dir)
    if request.is_resumed and rundir.is_finished(request.run_dir) and not _has_unfinished(request.run_dir):
        say(f"run {request.run_dir} is finished already; nothing to resume")
        return request.run_dir
    config = _resumed_config(request, recipe, places) if request.is_resumed else _fresh_config(request, recipe, places)
    config = replace(config, threads=config.threads or torch.get_num_threads())
    with cpu_threads(config.threads):
        built = _build(recipe, config, places)
        _announce(built, say)
        with closing(RunWriter(request.run_dir, request.is_resumed)) as writer:
            return _run(built, writer, request.is_resumed, say)


def _has_unfinished(run_dir: Path) -> bool:
    return (rundir.unfinished_path(run_dir) / rundir.CONFIG).is_file()


def _fresh_config(request: Request, recipe: Recipe, places: Places) -> RunConfig:
    return resolve_config(recipe, request.config_file, request.changes, places)


def _resumed_config(request: Request, recipe: Recipe, places: Places) -> RunConfig:
    path = rundir.unfinished_path(request.run_dir) / rundir.CONFIG
    if not path.is_file():
        raise UsageError(f"run directory {request.run_dir}: expected an unfinished run to resume, found none")
    if request.config_file or request.changes:
        raise UsageError("--resume: expected no settings beside it, for the run goes on with its own")
    return resolve_config(recipe, None, read_config(path, recipe.name), places)


def _build(recipe: Recipe, config: RunConfig, places: Places) -> Built:
    check_optimizer(config)
    device = resolve_device(config.device)
    make_deterministic(device)
    data = recipe.load_data(config, places)
    recipe = recipe.for_form(Form.of(data)) if recipe.for_form else recipe
    seed_global(config.seed, "init")
    model = recipe.build_model(config).to(device)
    if recipe.start:
        recipe.start(config, model)
    record = choose_compile(config.compile, device, places.cache_dir)
    return Built(recipe, config, data, model, make_optimizer(model.parameters(), config), device, record)


def _announce(built: Built, say: Callable[[str], None]) -> None:
    config = built.config
    say(f"{built.recipe.name} on {built.data.source}" + (f"; {built.data.note}" if built.data.note else ""))
    name = built.recipe.preset_for(built.data.name, config.to_flat())
    if preset := built.recipe.presets.get(name, {}):
        values = ", ".join(f"{key} {config.to_flat()[key]}" for key in preset)
        say(f"settings for {name}: {values}")
    record = built.compile_record
    say(f"device {device_title(built.device)}, compile {record.used}, seed {config.seed}")
    if record.reason:
        say(f"cannot compile here, going on eagerly: {record.reason}")


def _run(built: Built, writer: RunWriter, is_resumed: bool, say: Callable[[str], None]) -> Path:
    first_epoch = _first_epoch(built, writer) if is_resumed else 1
    writer.write_text(rundir.CONFIG, config_text(built.recipe, built.config))
    writer.write_json(rundir.ENVIRONMENT, describe(built.device))
    if built.recipe.for_form:
        Form.of(built.data).write(writer.path)
    display = open_display(built.config.epochs, say)
    try:
        fit(_job(built, say), Recorder(built, writer, display), first_epoch)
    finally:
        display.close()
    return _finish(built, writer, say)


def _first_epoch(built: Built, writer: RunWriter) -> int:
    path = writer.path / rundir.CHECKPOINT
    progress = load_checkpoint(path, built.model, built.optimizer) if path.is_file() else {"epoch": 0, "is_last": False}
    writer.keep_until(progress["epoch"])
    return built.config.epochs + 1 if progress["is_last"] else int(progress["epoch"]) + 1


def _job(built: Built, say: Callable[[str], None]) -> Job:
    autocast = torch.autocast(built.device.type, torch.bfloat16, enabled=built.config.precision == "bfloat16")
    objective = built.recipe.objective
    stepper = Stepper(built.model, objective, built.optimizer, built.compile_record, autocast, say)
    return Job(
        config=built.config,
        model=built.model,
        objective=objective,
        stepper=stepper,
        train=built.data.train.to(built.device),
        held_out=built.data.held_out.to(built.device),
        is_loss_after_epoch=built.recipe.is_loss_after_epoch,
        cure=built.recipe.cure,
    )


class Recorder:
    """Writes what the loop reports: metrics, curve points, and a checkpoint where enough time has passed."""

    def __init__(
        self, built: Built, writer: RunWriter, display: Display, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._built, self._writer, self._display, self._clock = built, writer, display, clock
        self._saved_at = clock()

    def on_progress(self, epoch: int, share: float) -> None:
        """Moves the display on."""
        self._display.progress(epoch, share)

    def on_epoch(self, report: EpochReport) -> None:
        """Writes the epoch's lines first and its checkpoint after them, so no checkpoint is ahead of its metrics."""
        if report.metrics:
            self._writer.append(rundir.METRICS, [report.metrics])
            self._writer.append(rundir.CURVE, [{"epoch": at, **metrics} for at, metrics in report.points])
        if report.is_last or self._clock() - self._saved_at >= self._built.config.checkpoint_every_s:
            progress = {"epoch": report.epoch, "is_last": report.is_last}
            path = self._writer.path / rundir.CHECKPOINT
            save_checkpoint(path, self._built.model, self._built.optimizer, progress)
            self._saved_at = self._clock()
        self._display.epoch(report)


def _finish(built: Built, writer: RunWriter, say: Callable[[str], None]) -> Path:
    rows, points = (rundir.read_lines(writer.path / name) for name in (rundir.METRICS, rundir.CURVE))
    finish = Finish(built.config, built.model.cpu().eval(), built.data, rows)
    measured = built.recipe.measure(finish) if built.recipe.measure else {}
    summary = summarise(built.recipe, built.config, built.data, built.model, rows, built.compile_record, measured)
    for line in closing_lines(summary):
        say(line)
    save_weights(writer.path / rundir.WEIGHTS, built.model)
    draw_curves(rows, points, writer.path)
    if built.recipe.draw:
        built.recipe.draw(finish, writer.path)
    check_required(summary)
    writer.write_json(rundir.SUMMARY, summary)
    return writer.finish()
