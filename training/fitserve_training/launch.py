"""A training run from request to finished run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.data.store.placing import is_to_be_staged, placed
from fitserve_training.device import cpu_threads, device_title, resolve_device
from fitserve_training.encoders.features import frozen_part
from fitserve_training.environment import describe
from fitserve_training.errors import UsageError
from fitserve_training.evaluating import evaluate
from fitserve_training.fit import Job, Progress, fit
from fitserve_training.form import Form
from fitserve_training.ignored import Watch, check_effects, check_read
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
from fitserve_training.resuming import RunPlan, check_same_data, data_record, plan_resumption, run_folder
from fitserve_training.rundir import RunWriter
from fitserve_training.seeding import seed_global, set_determinism
from fitserve_training.settings import config_text, given_settings, resolve_config
from fitserve_training.stepping import Stepper, StepPlan
from fitserve_training.validation import with_validation


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    Args:
        recipe: A name of the catalogue.
        run_dir: Where the finished run goes.
        config_file: Settings in TOML.
        changes: Settings by dotted key, over those of the file.
        data_dir: Where data files are; the environment's DATA_DIR where it is None.
        is_resumed: Go on with the unfinished run of `run_dir`, or train the finished one longer.
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
    validation_line: str = ""


def train(request: Request, say: Callable[[str], None]) -> Path:
    """Trains what is asked for and gives the directory of the finished run.

    Raises:
        UsageError: the request cannot be carried out, or the run cannot be written; nothing half-written is left.
        RunStoppedError: the loss is not finite, or the recipe's required figures were missed.
    """
    recipe = _load_recipe(request, say)
    places = Places.default(request.data_dir)
    plan = _plan(request, recipe, places)
    if plan is None:
        say(f"run {request.run_dir} is finished already; nothing to resume")
        return request.run_dir
    config = replace(plan.config, threads=plan.config.threads or torch.get_num_threads())
    device = resolve_device(local_device(config.device))
    with cpu_threads(config.threads), joined_workers(device) as workers:
        built = _build(recipe, config, plan.given, places, device, workers)
        if request.is_resumed:
            check_same_data(request.run_dir, built.data)
        if not workers.is_leader:
            return _follow(built, request)
        _announce(built, say)
        with closing(RunWriter(request.run_dir, request.is_resumed and not plan.is_reopened)) as writer:
            return _lead(built, writer, request.is_resumed, plan.is_reopened, say)


def _load_recipe(request: Request, say: Callable[[str], None]) -> Recipe:
    kept = rundir.kept_recipe(run_folder(request.run_dir)) if request.is_resumed else None
    recipe = load_recipe(request.recipe, kept)
    if kept is not None and Path(request.recipe).is_file() and Path(request.recipe).read_bytes() != kept:
        say(f"recipe {request.recipe} has changed since the run began; the run goes on with its own copy")
    return recipe


def _lead(built: Built, writer: RunWriter, is_resumed: bool, is_reopened: bool, say: Callable[[str], None]) -> Path:
    try:
        if is_reopened:
            writer.reopen()
        return _run(built, writer, is_resumed, say)
    except OSError as error:
        what = error.strerror or str(error)
        raise UsageError(f"run directory {writer.path}: cannot be written: {what}; {writer.give_up()}") from None


def _follow(built: Built, request: Request) -> Path:
    built.workers.wait()
    folder = rundir.unfinished_path(request.run_dir)
    fit(_job(built, print), Follower(), _load_progress(built, folder) if request.is_resumed else Progress())
    return request.run_dir


def _plan(request: Request, recipe: Recipe, places: Places) -> RunPlan | None:
    asked = (request.config_file, request.changes, places)
    if request.is_resumed:
        return plan_resumption(recipe, request.run_dir, *asked)
    return RunPlan(resolve_config(recipe, *asked), given_settings(recipe, *asked))


def _build(
    recipe: Recipe,
    config: RunConfig,
    given: Iterable[str],
    places: Places,
    device: torch.device,
    workers: Workers,
) -> Built:
    """Builds a run's parts; `given` are the settings that a person chose, none of which may be without effect."""
    _check_settings(config, workers)
    check_effects(given, config)
    watch = Watch(config)
    set_determinism(device, config.deterministic)
    loaded = recipe.load_data(watch.config, places)
    data, validation_line = with_validation(loaded, config)
    recipe = recipe.for_form(Form.of(data)) if recipe.for_form else recipe
    objective = training_objective(recipe, config, data, device)
    seed_global(config.seed, "init")
    model = recipe.build_model(watch.config).to(device)
    if config.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.start:
        recipe.start(watch.config, model, data)
    record = choose_compile(config.compile, device, places.cache_dir, data.train.lengths is not None)
    optimizer = _optimizer(recipe, watch.config, model, device, record)
    check_read(given, watch, recipe.name, loaded, model)
    return Built(recipe, config, data, objective, model, optimizer, device, record, workers, validation_line)


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
    if built.validation_line:
        say(built.validation_line)
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
    if built.recipe.source:
        writer.write_text(rundir.RECIPE, built.recipe.source.decode())
    writer.write_json(rundir.ENVIRONMENT, describe(built.device))
    writer.write_json(rundir.DATA, data_record(built.data))
    if built.recipe.for_form:
        Form.of(built.data).write(writer.path)
    writer.write_text(rundir.CONFIG, config_text(built.recipe, built.config))
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
    if not path.is_file():
        return Progress()
    progress = Progress(**load_checkpoint(path, built.model, built.optimizer))
    return replace(progress, is_last=progress.is_early or progress.epoch >= built.config.epochs)


def _job(built: Built, say: Callable[[str], None]) -> Job:
    config, objective = built.config, built.objective
    autocast = _autocast(built)
    train = placed(built.data.train.packed() if built.device.type == "cpu" else built.data.train, built.device)
    capture = choose_capture(built.device, built.optimizer, train.lengths is not None)
    capture = None if is_to_be_staged(train) else capture
    plan = StepPlan(config.micro_batch_size, config.clip_norm, built.workers, capture)
    model, held_out, validation = built.model, placed(built.data.held_out, built.device), built.data.validation
    validation = placed(validation, built.device) if validation is not None else None
    if part := frozen_part(model, train):
        say("the features of the frozen encoder are computed once, and the epochs train the head on them")
        model, train, held_out = part.head, part.encode(train, autocast), part.encode(held_out, autocast)
        validation = part.encode(validation, autocast) if validation is not None else None
    return Job(
        config=config,
        model=model,
        objective=objective,
        stepper=Stepper(model, objective, built.optimizer, built.compile_record, autocast, say, plan),
        train=train,
        held_out=held_out,
        validation=validation,
        scoring=built.recipe.objective,
        autocast=autocast,
        is_loss_after_epoch=built.recipe.is_loss_after_epoch,
        cure=built.recipe.cure,
    )


def _check_learned(built: Built, say: Callable[[str], None]) -> None:
    if not built.recipe.is_compared_with_constant:
        return
    # Some of the inputs are looked at; all of them may be more than the device holds.
    train = replace(built.data.train, targets=built.data.train.targets.to(built.device))
    compared = compare_with_constant(built.model, built.objective, train, built.config.seed, _autocast(built))
    if compared is None:
        say("the loss cannot be compared with that of a constant prediction: the outputs have another shape")
    elif warning := compared.check():
        say(warning)


def _autocast(built: Built) -> torch.autocast:
    return torch.autocast(built.device.type, torch.bfloat16, enabled=built.config.precision == "bfloat16")


def _finish(
    built: Built, writer: RunWriter, progress: Progress, test_outputs: Tensor | None, say: Callable[[str], None]
) -> Path:
    rows, points = (rundir.read_lines(writer.path / name) for name in (rundir.METRICS, rundir.CURVE))
    if progress.epoch < built.config.epochs:
        best = f"; best epoch {progress.best_epoch}" if progress.best_epoch else ""
        say(f"stopped after epoch {progress.epoch} of {built.config.epochs}{best}")
    if again := built.compile_record.recompilation_count:
        say(f"compiled again after the warm-up: {again} graphs; batches of one shape would need none")
    kept = rows
    if built.config.keep_weights == "best":
        load_weights(writer.path / rundir.BEST, built.model)
        test_outputs = test_outputs if progress.best_epoch == progress.epoch else None
        kept = [row for row in rows if row["epoch"] <= progress.best_epoch]
    if test_outputs is None:
        held_out = placed(built.data.held_out, built.device)
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
