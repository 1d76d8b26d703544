"""The command `fitserve-train`. torch is imported only once there is something to train."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

from fitserve_contract.printable import printable
from fitserve_training.catalogue import DATA_NAMES, ENTRIES, PICTURE_SIZES, TAKE_PICTURES, names, recipe_for_data
from fitserve_training.config import Values, parse_assignments, read_toml
from fitserve_training.errors import RunStoppedError, UsageError, unknown_name
from fitserve_training.interrupts import Interrupts
from fitserve_training.rundir import CHECKPOINT, CONFIG, unfinished_path

_EXAMPLE = """\
example:
  fitserve-train lenet --data digits --run-dir runs/lenet
  fitserve-train --data pictures/
  fitserve-train --data table.csv --set data.label=COLUMN
  fitserve-train my_recipe.py
  fitserve-train thermometer --set lr=1e-4 --set model.input_scale=1 --set epochs=100
  fitserve-train softmax --seeds 10
  torchrun --nproc-per-node 2 -m fitserve_training.cli lenet
  fitserve-train --index runs

Settings come from the defaults, then --config, then --set and the flags. A finished run in the run directory is
replaced when the new one is finished; until then the new one is in RUN_DIR.unfinished, where --resume goes on after
an interruption, and without --resume it is started anew. --resume --set epochs=N trains a finished run longer.
Exit code 0: finished; 1: the run was stopped; 2: the request cannot be carried out; 130, 143: SIGINT, SIGTERM.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; gives its exit code."""
    options = _parser().parse_args(argv)
    if options.list:
        for entry in ENTRIES:
            print(f"{entry.name:<16} {entry.summary}")
        return 0
    interrupts = Interrupts(lambda: printable(f"fitserve-train: {_interrupted(options)}"))
    with interrupts.caught():
        try:
            return _carry_out(options)
        except BaseException:  # an import that is interrupted may raise anything
            if interrupts.is_due:
                interrupts.end()
            raise


def _carry_out(options: argparse.Namespace) -> int:
    try:
        return _train(options) if options.index is None else _index(options)
    except UsageError as error:
        return _fail(str(error), 2)
    except RunStoppedError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2)


def _interrupted(options: argparse.Namespace) -> str:
    """Says what is left of the run; --resume is promised only where there is a checkpoint."""
    try:
        recipe = options.recipe or _recipe_for(options.data, _changes(options))
    except UsageError:
        recipe = None
    if options.index is not None or recipe is None:
        return "interrupted"
    run_dir = _run_dir(options, recipe)
    place = run_dir.resolve()
    folders = [unfinished_path(run_dir)]
    if options.seeds:
        folders = list(place.with_name(f"{place.name}-seeds").glob("seed-*"))
    if any((folder / CHECKPOINT).is_file() and (folder / CONFIG).is_file() for folder in folders):
        return "interrupted; --resume goes on from the last checkpoint"
    return "interrupted before the first checkpoint; start it again"


def _recipe_for(data: str | None, changes: Values) -> str | None:
    return recipe_for_data(data, "data.text" in changes, bool(changes.get("model.weights"))) if data else None


def _run_dir(options: argparse.Namespace, recipe: str) -> Path:
    run_dir: Path = options.run_dir or Path("runs") / Path(recipe.removesuffix(".py")).name
    return run_dir


def _fail(message: str, code: int) -> int:
    print(printable(f"fitserve-train: {message}"), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fitserve-train",
        description="Train a recipe into a run directory that fitserve-export turns into a served model.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help=f"one of {', '.join(names())}, or a file of your own")
    add("--list", action="store_true", help="list the recipes and exit")
    add("--index", type=Path, metavar="RUNS", help="write RUNS/index.html, which links the report of every run; exit")
    add("--seeds", type=_count, metavar="N", help="train with N seeds, the root seed onwards; ends with mean ± sd")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; may be repeated")
    add("--config", type=Path, metavar="FILE.toml", help="settings, for example the config.toml of another run")
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--compile", choices=("auto", "off", "module", "step"), help="what torch.compile gets (default auto)")
    add("--seed", metavar="N", help="root of all random numbers (default 0)")
    add("--run-dir", type=Path, metavar="DIR", help="where the run goes (default runs/RECIPE)")
    add("--data-dir", type=Path, metavar="DIR", help="where data files are (default: environment variable DATA_DIR)")
    add(
        "--data",
        metavar="NAME|PATH",
        help="auto, digits, fashion_mnist, bundled, goemotions (default auto), or a path to your own",
    )
    add("--skip-bad", action="store_true", help="go on without files of your pictures that cannot be read")
    add("--resume", action="store_true", help="go on with the run of the run directory")
    add("--version", action="version", version=f"fitserve-train {version('fitserve')}")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number of seeds of at least 1, got {text!r}")
    return int(text)


def _index(options: argparse.Namespace) -> int:
    others = [key for key, value in vars(options).items() if value and key != "index"]
    if others:
        raise UsageError(f"--index: expected nothing beside it, got {', '.join(others)}")
    runs: Path = options.index
    if not runs.is_dir():
        raise UsageError(f"folder of runs {runs}: expected a folder, found none")
    from fitserve_training.report import write_index

    print(f"index: {write_index(runs)}")
    return 0


def _say(line: str) -> None:
    # Under torchrun one process of several speaks.
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _train(options: argparse.Namespace) -> int:
    changes = _changes(options)
    recipe = options.recipe or _recipe_for(options.data, changes)
    if recipe is None:
        raise UsageError(f"expected a recipe (known: {', '.join(names())}), or --data with a path to your own data")
    if recipe not in names() and not recipe.endswith(".py"):
        raise unknown_name("recipe", recipe, names())
    if not options.resume:
        _check_pictures(recipe, changes, options)
    from fitserve_training.launch import Request, train

    request = Request(recipe, _run_dir(options, recipe), options.config, changes, options.data_dir, options.resume)
    if options.seeds:
        from fitserve_training.seeds import train_seeds

        _say(f"runs: {train_seeds(request, options.seeds, _say)}")
    else:
        _say(f"run: {train(request, _say)}")
    return 0


def _check_pictures(recipe: str, changes: Values, options: argparse.Namespace) -> None:
    """Reads the user's pictures before torch is imported, which takes longer than most mistakes are worth."""
    settings = (read_toml(options.config) if options.config else {}) | changes
    name = str(settings.get("data.name", "auto"))
    is_folder = recipe in TAKE_PICTURES and name not in DATA_NAMES and Path(name).is_dir()
    if options.skip_bad and not is_folder:
        raise UsageError(f"--skip-bad: expected --data with a folder of pictures beside it, got {name}")
    if is_folder and str(settings.get("data.skip_bad", "")).lower() != "true":
        from fitserve_training.data.own.picture_rows import prepare_pictures

        size = str(settings.get("data.image_size", PICTURE_SIZES[recipe]))
        is_known = PICTURE_SIZES[recipe] > 0 and size.isascii() and size.isdigit()
        prepare_pictures(Path(name), int(size) if is_known else 0)


def _changes(options: argparse.Namespace) -> Values:
    flags = {"device": options.device, "compile": options.compile, "seed": options.seed, "data.name": options.data}
    flags["data.skip_bad"] = "true" if options.skip_bad else None
    return parse_assignments(options.set) | {key: value for key, value in flags.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
