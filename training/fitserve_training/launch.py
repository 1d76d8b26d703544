"""A training run from request to finished run directory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fitserve_training import rundir
from fitserve_training.capturing import choose_capture
from fitserve_training.catalogue import load_recipe
from fitserve_training.checkpoint import load_checkpoint, load_weights, save_weights
from fitserve_training.compiling import CompileRecord, choose_compile
from fitserve_training.config import RunConfig, Values
from fitserve_training.constant import compare_with_constant
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.places import Places
from fitserve_training.device import cpu_threads, device_title, resolve_device
from fitserve_training.environment import describe
from fitserve_training.errors import UsageError
from fitserve_training.evaluating import evaluate
from fitserve_training.fit import Job, Progress, fit
from fitserve_training.form import Form
from fitserve_training.imbalance import imbalance_line, training_objective
from fitserve_training.objectives import Objective
from fitserve_training.optim import by_rate, check_optimizer, is_lr_scheduled, make_optimizer
from fitserve_training.outcome import check_required, class_summary, closing_lines, summarise
from fitserve_training.parallel import Workers, joined_workers, local_device
from fitserve_training.plots import draw_curves
from fitserve_training.progress import open_display
from fitserve_training.recipe import Finish, Recipe
from fitserve_training.recording import Follower, Recorder, check_tensorboard
from fitserve_training.report import write_report
from fitserve_training.rundir import RunWriter
from fitserve_training.seeding import seed_global, set_determinism
from fitserve_training.settings import config_text, read_config, resolve_config
from fitserve_training.stepping import Stepper, StepPlan


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
    objective: Objective
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    compile_record: CompileRecord
    workers: Workers


def train(request: Request, say: Callable[[str], None]) -> Path:
    """Trains what is asked for and gives the directory of the finished run.

    Raises:
        UsageError: the request cannot be carried out, or the run cannot be written; nothing half-written is left.
        RunStoppedError: the loss is not finite, or the recipe's required figures were missed.
    """
    recipe = _load_recipe(request, say)
    places = Places.default(request.data_dir)
    if request.is_resumed and rundir.is_finished(request.run_dir) and not _has_unfinished(request.run_dir):
        say(f"run {request.run_dir} is finished already; nothing to resume")
        return request.run_dir
    config = _resumed_config(request, recipe, places) if request.is_resumed else _fresh_config(request, recipe, places)
    config = replace(config, threads=config.threads or torch.get_num_threads())
    device = resolve_device(local_device(config.device))
    with cpu_threads(config.threads), joined_workers(device) as workers:
        built = _build(recipe, config, places, device, workers)
        if not workers.is_leader:
            return _follow(built, request)
        _announce(built, say)
        with closing(RunWriter(request.run_dir, request.is_resumed)) as writer:
            return _lead(built, writer, request.is_resumed, say)


def _load_recipe(request: Request, say: Callable[[str], None]) -> Recipe:
    kept = rundir.kept_recipe(rundir.unfinished_path(request.run_dir)) if request.is_resumed else None
    recipe = load_recipe(request.recipe, kept)
    if kept is not None and Path(request.recipe).is_file() and Path(request.recipe).read_bytes() != kept:
        say(f"recipe {request.recipe} has changed since the run began; the run goes on with its own copy")
    return recipe


def _lead(built: Built, writer: RunWriter, is_resumed: bool, say: Callable[[str], None]) -> Path:
    try:
        return _run(built, writer, is_resumed, say)
    except OSError as error:
        what = error.strerror or str(error)
        raise UsageError(f"run directory {writer.path}: cannot be written: {what}; {writer.give_up()}") from None


def _follow(built: Built, request: Request) -> Path:
    built.workers.wait()
    folder = rundir.unfinished_path(request.run_dir)
    fit(_job(built, print), Follower(), _load_progress(built, folder) if request.is_resumed else Progress())
    return request.run_dir


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
    return resolve_config(recipe, None, read_config(path, recipe.address), places)


def _build(recipe: Recipe, config: RunConfig, places: Places, device: torch.device, workers: Workers) -> Built:
    _check_settings(config, workers)
    set_determinism(device, config.deterministic)
    data = recipe.load_data(config, places)
    recipe = recipe.for_form(Form.of(data)) if recipe.for_form else recipe
    objective = training_objective(recipe, config, data, device)
    seed_global(config.seed, "init")
    model = recipe.build_model(config).to(device)
    if config.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.start:
        recipe.start(config, model, data)
    record = choose_compile(config.compile, device, places.cache_dir, data.train.lengths is not None)
    optimizer = _optimizer(recipe, config, model, device, record)
    return Built(recipe, config, data, objective, model, optimizer, device, record, workers)


def _optimizer(
    recipe: Recipe, config: RunConfig, model: nn.Module, device: torch.device, record: CompileRecord
) -> torch.optim.Optimizer:
    # A compiled step reads a scheduled rate from a tensor: a number would be compiled in, and again each time it moves.
    lr = torch.tensor(config.lr, device=device) if record.used == "step" and is_lr_scheduled(config) else None
    parameters = by_rate(model, recipe.rate_factors(config))
    return make_optimizer(parameters, config, lr, record.used == "step" and device.type == "cuda")


def _check_settings(config: RunConfig, workers: Workers) -> None:
    check_optimizer(config)
    if config.optimizer == "lbfgs" and (config.micro_batch_size or config.clip_norm or workers.count > 1):
        raise UsageError("optimizer lbfgs: expected no micro_batch_size, no clip_norm and one worker with it")
    if config.tensorboard:
        check_tensorboard()


def _announce(built: Built, say: Callable[[str], None]) -> None:
    config = built.config
    say(f"{built.recipe.name} on {built.data.source}" + (f"; {built.data.note}" if built.data.note else ""))
    name = built.recipe.preset_for(built.data.name, config.to_flat())
    if preset := built.recipe.presets.get(name, {}):
        values = ", ".join(f"{key} {config.to_flat()[key]}" for key in preset)
        say(f"settings for {name}: {values}")
    if line := imbalance_line(built.recipe, config, built.data):
        say(line)
    record = built.compile_record
    count = f", {built.workers.count} workers" if built.workers.count > 1 else ""
    say(f"device {device_title(built.device)}, compile {record.used}, seed {config.seed}{count}")
    if record.reason.startswith("auto: "):
        say(f"compile {record.used}: {record.reason.removeprefix('auto: ')}")
    elif record.reason:
        say(f"cannot compile here, going on eagerly: {record.reason}")


def _run(built: Built, writer: RunWriter, is_resumed: bool, say: Callable[[str], None]) -> Path:
    writer.write_text(rundir.CONFIG, config_text(built.recipe, built.config))
    if built.recipe.source:
        writer.write_text(rundir.RECIPE, built.recipe.source.decode())
    writer.write_json(rundir.ENVIRONMENT, describe(built.device))
    if built.recipe.for_form:
        Form.of(built.data).write(writer.path)
    built.workers.wait()
    progress = _load_progress(built, writer.path) if is_resumed else Progress()
    if is_resumed:
        writer.keep_until(progress.epoch)
    display = open_display(built.config.epochs, say)
    with closing(Recorder(built.config, built.model, built.optimizer, writer, display)) as recorder:
        progress = fit(_job(built, say), recorder, progress)
    return _finish(built, writer, progress, recorder.test_outputs, say)


def _load_progress(built: Built, folder: Path) -> Progress:
    path = folder / rundir.CHECKPOINT
    return Progress(**load_checkpoint(path, built.model, built.optimizer)) if path.is_file() else Progress()


def _job(built: Built, say: Callable[[str], None]) -> Job:
    config, objective = built.config, built.objective
    autocast = _autocast(built)
    capture = choose_capture(built.device, built.optimizer, built.data.train.lengths is not None)
    plan = StepPlan(config.micro_batch_size, config.clip_norm, built.workers, capture)
    return Job(
        config=config,
        model=built.model,
        objective=objective,
        stepper=Stepper(built.model, objective, built.optimizer, built.compile_record, autocast, say, plan),
        train=_resident(built.data.train, built.device),
        held_out=built.data.held_out.to(built.device),
        scoring=built.recipe.objective,
        autocast=autocast,
        is_loss_after_epoch=built.recipe.is_loss_after_epoch,
        cure=built.recipe.cure,
    )


def _check_learned(built: Built, say: Callable[[str], None]) -> None:
    if not built.recipe.is_compared_with_constant:
        return
    train = built.data.train.to(built.device)
    compared = compare_with_constant(built.model, built.objective, train, built.config.seed, _autocast(built))
    if compared is None:
        say("the loss cannot be compared with that of a constant prediction: the outputs have another shape")
    elif warning := compared.check():
        say(warning)


def _autocast(built: Built) -> torch.autocast:
    return torch.autocast(built.device.type, torch.bfloat16, enabled=built.config.precision == "bfloat16")


def _resident(train: Split, device: torch.device) -> Split:
    # A GPU divides by a number as it multiplies by its inverse, so bytes would not give the same bits there.
    return train.packed() if device.type == "cpu" else train.to(device)


def _finish(
    built: Built, writer: RunWriter, progress: Progress, test_outputs: Tensor | None, say: Callable[[str], None]
) -> Path:
    rows, points = (rundir.read_lines(writer.path / name) for name in (rundir.METRICS, rundir.CURVE))
    if progress.epoch < built.config.epochs:
        say(f"stopped after epoch {progress.epoch} of {built.config.epochs}; best epoch {progress.best_epoch}")
    if again := built.compile_record.recompilation_count:
        say(f"compiled again after the warm-up: {again} graphs; batches of one shape would need none")
    kept = rows
    if built.config.keep_weights == "best":
        load_weights(writer.path / rundir.BEST, built.model)
        test_outputs = test_outputs if progress.best_epoch == progress.epoch else None
        kept = [row for row in rows if row["epoch"] <= progress.best_epoch]
    if test_outputs is None:
        held_out = built.data.held_out.to(built.device)
        test_outputs = evaluate(built.model, built.recipe.objective, held_out, _autocast(built)).outputs
    _check_learned(built, say)
    finish = Finish(built.config, built.model.cpu().eval(), built.data, kept)
    measured = built.recipe.measure(finish) if built.recipe.measure else {}
    summary = summarise(built.recipe, finish, built.compile_record, built.device, progress, measured)
    summary |= class_summary(built.recipe.objective.kind, test_outputs, built.data)
    for line in closing_lines(summary):
        say(line)
    save_weights(writer.path / rundir.WEIGHTS, built.model)
    draw_curves(rows, points, writer.path)
    if built.recipe.draw:
        built.recipe.draw(finish, writer.path)
    check_required(summary)
    writer.write_json(rundir.SUMMARY, summary)
    write_report(built.recipe, finish, test_outputs.cpu(), writer.path)
    return writer.finish()
